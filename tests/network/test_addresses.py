"""The addresses suite, in memory and in the kernel; and what only a kernel does."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_interface
from itertools import cycle
from math import inf
from threading import Event, Thread
from time import monotonic
from typing import Any

from attrs import define, field
from hypothesis import given
from hypothesis.strategies import integers, lists, one_of, sampled_from, tuples
from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK
from pyroute2.netlink.rtnl import RTMGRP_IPV6_IFADDR
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, Assignment, Configured, Host, Link, ip
from kiwi.network.addresses import (
    PROTOCOL,
    PROXY_INTERFACES,
    AddressWriter,
    DefaultRoute,
    NetlinkAddresses,
    Traits,
    can_administer,
    decode_address,
    decode_addresses,
    decode_default_route,
    decode_link,
    default_interface,
    knows_protocol,
    label_for,
    preferred_lifetime,
    punctual_lifetime,
)
from kiwi.network.interface import Assigned, Unassigned
from kiwi.network.memory import MemoryAddresses
from kiwi.planning import KERNEL_LATENESS

from .addressestests import GATEWAYS, HERE, IPV4, IPV6, LOOPBACK, configured, make_addresses_tests, plus
from .hosts import IFA_F_NODAD, NamespacedHost, enter_host, enter_namespace, make_link, sysctl, wait_until

FIRST, SECOND, FIRST6, SECOND6 = IPV4.first, IPV4.second, IPV6.first, IPV6.second
GATEWAY = IPv4Address("192.168.1.1")

SO_RCVBUFFORCE = 33
"""C{asm-generic/socket.h}."""

IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_NOPREFIXROUTE = 0x8, 0x20, 0x200
"""C{linux/if_addr.h}."""

HEADER = 16
"""Bytes in the header of a netlink message."""

FOREVER = 2**32 - 1


@define
class MemoryFixture:
    """An L{AddressesFixture} in memory."""

    clock: Clock = field(factory=Clock)
    addresses: MemoryAddresses = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.addresses = MemoryAddresses(["em1", "em2"], self.clock.seconds)
        self.addresses.subnets["em1"].update(HERE)
        self.addresses.elsewhere.update(LOOPBACK)
        self.addresses.gateways.update(GATEWAYS)

    def now(self) -> float:
        return self.clock.seconds()

    def wait(self, condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            self.clock.advance(0.01)
        raise AssertionError("waited in vain")

    def configure(self, address: Configured, elsewhere: bool = False) -> None:
        (self.addresses.elsewhere if elsewhere else self.addresses.subnets["em1"]).add(address)

    def delete(self, address: Address) -> None:
        self.addresses.delete(address)

    def make_permanent(self, address: Address) -> None:
        self.addresses.make_permanent(address)

    def unplug(self) -> None:
        self.addresses.set_ready("em1", False)

    def remove_link(self, name: str) -> None:
        self.addresses.remove_link(name)

    def create_link(self, name: str) -> None:
        self.addresses.links[name] = Link(9, name, b"\2\0\0\0\0\2", ready=True)


@define
class KernelFixture:
    """An L{AddressesFixture} in a network namespace."""

    host: NamespacedHost
    addresses: NetlinkAddresses

    def now(self) -> float:
        return monotonic()

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_until(condition)

    def configure(self, address: Configured, elsewhere: bool = False) -> None:
        self.host.address("add", str(address), "lo" if elsewhere else None)

    def delete(self, address: Address) -> None:
        self.host.address("del", str(configured(address)))

    def make_permanent(self, address: Address) -> None:
        self.host.address("replace", str(configured(address)), proto=PROTOCOL)

    def unplug(self) -> None:
        with self.host.at_neighbour(), IPRoute() as route:
            route.link("set", index=self.host.index("peer"), state="down")

    def remove_link(self, name: str) -> None:
        self.host.remove_link(name)

    def create_link(self, name: str) -> None:
        self.host.create_link(name)


def make_kernel_fixture(case: SynchronousTestCase) -> KernelFixture:
    host = enter_host(case)
    host.create_link("em2")
    for address in HERE:
        host.address("add", str(address))
    with IPRoute() as route:
        for gateway in GATEWAYS:
            route.route("add", gateway=str(gateway), **({} if gateway.version == 4 else {"family": socket.AF_INET6}))
    return KernelFixture(host, NetlinkAddresses(["em1", "em2"], monotonic))


class MemoryAddressesTests(make_addresses_tests(lambda case: MemoryFixture(), IPV4)):  # type: ignore[misc]
    """IPv4 addresses that are only remembered."""

    def test_like(self) -> None:
        """One can be made that has what somebody else configured on another host, and nothing of ours."""
        before = self.read()
        self.assign(100, FIRST)
        self.assertEqual(MemoryAddresses.like(self.read(), ["em1", "em2"], lambda: 0.0).read(), before)


class MemoryIPv6AddressesTests(make_addresses_tests(lambda case: MemoryFixture(), IPV6)):  # type: ignore[misc]
    """The same with IPv6 addresses."""


class NetlinkAddressesTests(make_addresses_tests(make_kernel_fixture, IPV4)):  # type: ignore[misc]
    """IPv4 addresses of interfaces in a network namespace."""

    def test_many_expire(self) -> None:
        """A thousand addresses of one batch go together, little more than a second after their time at most."""
        expires = max(self.assign(2.5, *IPV4.many).expires.values())
        seen = []

        def gone() -> bool:
            now = monotonic()
            left = self.read().assigned
            if left:
                seen.append((now, len(left)))
            return not left

        wait_until(gone)
        self.assertLess(seen[-1][0], expires + 1.3)

    def test_read_meanwhile(self) -> None:
        """While somebody changes other addresses all the time, none of ours is overlooked."""
        index = self.host.host.index()
        others = [f"10.0.0.{number}" for number in range(1, 51)]
        with IPRoute() as route:
            for other in others:
                route.addr("add", index=index, address=other, prefixlen=32)
        self.assign(100, *IPV4.many)
        end = Event()

        def disturb() -> None:
            with IPRoute() as route:
                for other in cycle(others):
                    for command in ("del", "add"):
                        route.addr(command, index=index, address=other, prefixlen=32)
                        if end.wait(0.005):
                            return

        # A thread begins in the network namespace of the one that starts it.
        thread = Thread(target=disturb)
        thread.start()
        try:
            for _ in range(30):
                self.assertEqual(self.read().assigned.keys(), IPV4.many)
        finally:
            end.set()
            thread.join()


class NetlinkIPv6AddressesTests(make_addresses_tests(make_kernel_fixture, IPV6)):  # type: ignore[misc]
    """IPv6 addresses of interfaces in a network namespace."""

    def test_in_time(self) -> None:
        """
        The kernel has removed what is written together when its time has come, for all that it is late: also where the
        last ones are written so much later that they miss the pass that takes the first ones away.
        """
        for number in (3, 300):
            addresses = [plus(FIRST6, 1000 + each) for each in range(number)]
            ends = self.host.now() + 4.2
            assigned = self.addresses.assign({Assignment(address, ends, "em1") for address in addresses})
            self.assertEqual((assigned.expires.keys(), assigned.failed), (set(addresses), {}))
            self.host.wait(lambda ends=ends: self.host.now() > ends + KERNEL_LATENESS + 0.2)
            self.assertEqual(self.read().assigned, {})


class OurAddressesTests(SynchronousTestCase):
    """How an address is tagged, and what is taken for ours."""

    def setUp(self) -> None:
        self.host = enter_host(self)
        self.addresses = NetlinkAddresses(["em1"], lambda: 0.0)

    def assign(self, seconds: float, *addresses: Address) -> Assigned:
        return self.addresses.assign({Assignment(address, seconds, "em1") for address in addresses})

    def test_tag(self) -> None:
        """Every attribute is there when an address is new, and again after each replace."""
        for seconds in (50, 100):
            self.assign(seconds + 0.5, FIRST)
            (attributes,) = self.host.addresses().values()
            valid, preferred = attributes.pop("valid"), attributes.pop("preferred")
            self.assertEqual(self.host.addresses().keys(), {f"{FIRST}/32"})
            self.assertEqual(attributes, {"label": "em1:kube", "proto": PROTOCOL, "scope": 0, "flags": 0})
            self.assertTrue(seconds - 5 < valid <= seconds)
            self.assertEqual(preferred - valid, preferred_lifetime(seconds) - seconds)

    def test_tag_of_ipv6(self) -> None:
        """The same for IPv6: it answers at once, is nothing's source, and gets no route for its prefix."""
        for seconds in (50, 100):
            self.assign(seconds + 0.5, FIRST6)
            (attributes,) = self.host.addresses().values()
            valid = attributes.pop("valid")
            self.assertEqual(self.host.addresses().keys(), {f"{FIRST6}/128"})
            flags = IFA_F_NODAD | IFA_F_DEPRECATED | IFA_F_NOPREFIXROUTE
            self.assertEqual(attributes, {"label": None, "proto": PROTOCOL, "scope": 0, "flags": flags, "preferred": 0})
            self.assertTrue(seconds * 8 / 9 - 5 < valid <= punctual_lifetime(seconds + 0.5, 1))

    def test_many_end_soon(self) -> None:
        """
        Of so many IPv6 addresses that it takes long to write them, one that is due soon keeps the lifetime that it got
        when there was more time; unless its claim was confirmed since, or somebody changed it.
        """
        clock = Clock()
        addresses = NetlinkAddresses(["em1"], clock.seconds)
        many = [plus(FIRST6, number) for number in range(210)]

        def assign(expires: float) -> Mapping[Address, float]:
            assigned = addresses.assign({Assignment(address, expires, "em1") for address in many})
            self.assertEqual((assigned.expires.keys(), assigned.failed), (set(many), {}))
            return assigned.expires

        before = assign(3.5)
        clock.advance(1)
        with self.changes() as changed:
            self.assertEqual(assign(3.5), before)
        self.assertEqual(changed, set())
        self.host.address("replace", f"{FIRST6}/128", proto=PROTOCOL)
        with self.changes() as changed:
            assign(3.5)
        self.assertEqual(changed, {FIRST6})
        with self.changes() as changed:
            assign(3.9)
        self.assertEqual(changed, set(many))

    @contextlib.contextmanager
    def changes(self) -> Iterator[set[Address]]:
        """The IPv6 addresses of which the kernel tells meanwhile that they came or were changed."""
        changed: set[Address] = set()
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as route:
            route.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 2**22)
            route.bind((0, RTMGRP_IPV6_IFADDR))
            yield changed
            with contextlib.suppress(BlockingIOError):
                while True:
                    address = decode_address(route.recv(4096)[HEADER:])
                    assert address is not None
                    changed.add(ip(address[1]))

    def test_source(self) -> None:
        """The host opens nothing from an IPv6 address of ours, however like the destination it is."""
        self.host.address("add", "fd00::2/64")
        self.assign(100, FIRST6, SECOND6)
        asked = subprocess.run(["ip", "route", "get", "fd00::43"], check=True, capture_output=True, text=True)
        self.assertIn(" src fd00::2 ", asked.stdout)

    def test_nothing_left(self) -> None:
        """When an IPv6 address was taken off, or has gone by itself, no route of it is left."""
        before = subprocess.run(["ip", "-6", "route", "show", "table", "all"], check=True, capture_output=True).stdout
        self.assign(100, FIRST6)
        self.addresses.unassign({FIRST6})
        self.assign(1.2, SECOND6)
        wait_until(lambda: not self.host.addresses())
        after = subprocess.run(["ip", "-6", "route", "show", "table", "all"], check=True, capture_output=True).stdout
        self.assertEqual(after, before)

    def test_not_ours(self) -> None:
        """One that lacks a part of the tag is somebody else's: it is told as such, not replaced, and not removed."""
        theirs: dict[str, dict[str, Any]] = {
            f"{FIRST}/32": {"label": "em1:kube"},
            f"{FIRST + 1}/32": {"proto": PROTOCOL},
            f"{FIRST + 2}/32": {"label": "em1:kubes", "proto": PROTOCOL},
            f"{FIRST + 3}/32": {"label": "em1:kube", "proto": 4, "valid_lft": 1000, "preferred_lft": 1000},
            f"{FIRST + 4}/31": {"label": "em1:kube", "proto": PROTOCOL},
            f"{FIRST6}/128": {},
            f"{FIRST6 + 1}/128": {"valid_lft": 1000, "preferred_lft": 1000},
            f"{FIRST6 + 2}/128": {"proto": 4, "valid_lft": 1000, "preferred_lft": 1000},
            f"{FIRST6 + 4}/127": {"proto": PROTOCOL},
        }
        for address, attributes in theirs.items():
            self.host.address("add", address, **attributes)
        before = self.host.addresses()
        host = self.addresses.read()
        subnets = {"em1": {ip_interface(address) for address in theirs}}
        self.assertEqual((host.assigned, host.subnets, host.unclear), ({}, subnets, set()))
        addresses = {ip_interface(address).ip for address in theirs}
        self.assertEqual(self.assign(100, *addresses).failed.keys(), addresses)
        self.assertEqual(self.addresses.unassign(addresses), Unassigned(frozenset(addresses)))
        self.assertEqual(self.host.addresses(), before)

    def test_protocol_forgotten(self) -> None:
        """One of ours stays ours when somebody changes it and leaves the protocol out, until somebody takes it away."""
        for address, label in ((FIRST, {"label": "em1:kube"}), (FIRST6, {})):
            alone = str(configured(address))
            self.assign(100.5, address)
            self.host.address("replace", alone, **label)
            self.assertEqual(self.addresses.read().assigned, {address: inf})
            self.assertEqual(self.assign(100.5, address).failed, {})
            (attributes,) = self.host.addresses().values()
            self.assertEqual(attributes["proto"], PROTOCOL)
            self.assertLessEqual(attributes["valid"], 100)
            self.host.address("del", alone)
            self.assertEqual(self.addresses.read().assigned, {})
            self.host.address("add", alone, **label)
            self.assertEqual(self.addresses.read().assigned, {})
            self.host.address("del", alone)

    def test_carrier_changes(self) -> None:
        """That carrier went and came back is told, also to who looks only afterwards."""
        before = self.addresses.read().links["em1"]
        self.host.link(state="down")
        self.host.link(state="up")
        self.assertGreater(self.addresses.read().links["em1"].carrier_changes, before.carrier_changes)

    def test_label_guards_deletion(self) -> None:
        """The kernel itself deletes only what has the label in the message."""
        self.host.address("add", f"{FIRST}/32", label="em1:kube")
        for label, code in ((b"em1:kub", errno.EADDRNOTAVAIL), (b"em1:kube", 0)):
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
                writer = AddressWriter(socket.AF_INET, label).deleted(NLM_F_ACK, self.host.index())
                route.send(b"".join(writer.write(0, FIRST.packed)))
                self.assertEqual(struct.unpack_from("=i", route.recv(4096), HEADER), (-code,))

    def test_same_tag_elsewhere(self) -> None:
        """What bears the tag on another interface is not ours."""
        self.host.address("add", f"{FIRST}/32", "lo", label="em1:kube", proto=PROTOCOL)
        self.host.address("add", f"{FIRST6}/128", "lo", proto=PROTOCOL)
        host = self.addresses.read()
        self.assertEqual((host.assigned, host.own), ({}, {configured(FIRST), configured(FIRST6), *LOOPBACK}))
        self.addresses.unassign({FIRST, FIRST6})
        self.assertEqual(self.addresses.read(), host)

    def test_proxies(self) -> None:
        """What a proxy keeps on an interface of its own is free to be carried here, and is left to the proxy."""
        for proxy in PROXY_INTERFACES:
            with IPRoute() as route:
                route.link("add", ifname=proxy, kind="bridge")
            for address in (FIRST, SECOND, FIRST6, SECOND6):
                self.host.address("add", str(configured(address)), proxy)
        theirs = {proxy: self.host.addresses(proxy) for proxy in PROXY_INTERFACES}
        self.assertEqual(self.addresses.read().own, LOOPBACK)
        for seconds in (50, 100):
            assigned = self.assign(seconds, FIRST, FIRST6)
            self.assertEqual((assigned.expires.keys(), assigned.failed), ({FIRST, FIRST6}, {}))
        self.assertEqual(self.host.addresses().keys(), {f"{FIRST}/32", f"{FIRST6}/128"})
        host = self.addresses.read()
        self.assertEqual((host.assigned.keys(), host.own), ({FIRST, FIRST6}, LOOPBACK))
        gone = frozenset({FIRST, SECOND, FIRST6, SECOND6})
        self.assertEqual(self.addresses.unassign(gone), Unassigned(gone))
        self.assertEqual(self.host.addresses(), {})
        self.assertEqual({proxy: self.host.addresses(proxy) for proxy in PROXY_INTERFACES}, theirs)

    def test_duplicate(self) -> None:
        """
        An IPv6 address with our tag that another machine was found to have carries nothing, and is nobody else's; to
        assign it is to begin anew.
        """
        with self.host.at_neighbour():
            self.host.address("add", f"{FIRST6}/128", "peer")
        self.host.address("add", f"{FIRST6}/128", proto=PROTOCOL, flags=0)
        wait_until(lambda: bool(self.host.addresses()[f"{FIRST6}/128"]["flags"] & IFA_F_DADFAILED))
        host = self.addresses.read()
        self.assertEqual((host.assigned, host.where, host.subnets, host.own), ({}, {}, {"em1": set()}, LOOPBACK))
        assigned = self.assign(100, FIRST6)
        self.assertEqual((assigned.expires.keys(), assigned.failed), ({FIRST6}, {}))
        self.assertEqual(self.addresses.read().assigned.keys(), {FIRST6})
        self.assertEqual(self.host.addresses()[f"{FIRST6}/128"]["flags"] & IFA_F_DADFAILED, 0)

    def test_duplicate_unassigned(self) -> None:
        """Such an address is taken off like any other."""
        with self.host.at_neighbour():
            self.host.address("add", f"{FIRST6}/128", "peer")
        self.host.address("add", f"{FIRST6}/128", proto=PROTOCOL, flags=0)
        wait_until(lambda: bool(self.host.addresses()[f"{FIRST6}/128"]["flags"] & IFA_F_DADFAILED))
        self.assertEqual(self.addresses.unassign({FIRST6}), Unassigned(frozenset({FIRST6})))
        self.assertEqual(self.host.addresses(), {})

    def test_ipv6_disabled(self) -> None:
        """An interface that was told to have no IPv6 is a failure that says what to do; IPv4 goes on."""
        sysctl("net/ipv6/conf/em1/disable_ipv6", 1)
        assigned = self.assign(100, FIRST, FIRST6)
        self.assertEqual(assigned.expires.keys(), {FIRST})
        self.assertRegex(
            assigned.failed[FIRST6],
            r"\Aassigning fd00::41/128 on em1: .*; IPv6 is disabled there: "
            r"write 0 to /proc/sys/net/ipv6/conf/em1/disable_ipv6\Z",
        )

    def old_kernel(self) -> NetlinkAddresses:
        """As before, for a kernel that keeps no protocols; nothing here has one then."""
        self.host.address("del", "::1/128", "lo")
        return NetlinkAddresses(["em1"], lambda: 0.0, release="4.19.0-27-amd64")

    def test_old_kernel(self) -> None:
        """Where the kernel keeps no protocol, the label is the whole tag."""
        old = self.old_kernel()
        self.host.address("add", f"{FIRST}/32", label="em1:kube")
        self.assertEqual(old.read().assigned.keys(), {FIRST})
        self.host.address("add", f"{SECOND}/32", proto=4)
        self.assertEqual(old.read().assigned, {})

    def test_old_kernel_and_ipv6(self) -> None:
        """
        Where the kernel keeps no protocol, it is unclear whose an IPv6 address is that ends, with a prefix of its whole
        length: it is somebody else's until it is assigned.
        """
        old = self.old_kernel()
        lifetimes: dict[str, Any] = {"valid_lft": 1000, "preferred_lft": 0}
        self.host.address("add", f"{FIRST6}/128", **lifetimes)
        self.host.address("add", f"{SECOND6}/128")
        self.host.address("add", f"{FIRST6 + 2}/64", **lifetimes)
        host = old.read()
        theirs = {configured(FIRST6), configured(SECOND6), configured(plus(FIRST6, 2), 64)}
        self.assertEqual((host.assigned, host.subnets, host.unclear), ({}, {"em1": theirs}, {FIRST6}))
        self.assertEqual(old.unassign({FIRST6}), Unassigned(frozenset({FIRST6})))
        self.assertEqual(old.read(), host)
        wanted = {Assignment(address, 100, "em1") for address in (FIRST6, SECOND6)}
        assigned = old.assign(wanted)
        self.assertEqual((assigned.expires.keys(), assigned.failed.keys()), ({FIRST6}, {SECOND6}))
        self.assertLessEqual(self.host.addresses()[f"{FIRST6}/128"]["valid"], 100)

    def test_long_interface_name(self) -> None:
        """A name that leaves no room for the label is cut there, and addresses are still found again."""
        host = enter_host(self, "enp0s31f6-trunk")
        addresses = NetlinkAddresses(["enp0s31f6-trunk"], lambda: 0.0)
        self.assertEqual(addresses.assign({Assignment(FIRST, 100, "enp0s31f6-trunk")}).failed, {})
        self.assertEqual(host.addresses()[f"{FIRST}/32"]["label"], "enp0s31f6-:kube")
        self.assertEqual(addresses.read().assigned.keys(), {FIRST})
        self.assertEqual(addresses.unassign({FIRST}), Unassigned(frozenset({FIRST})))
        self.assertEqual(host.addresses(), {})


class KindTests(SynchronousTestCase):
    """Interfaces that are made of others."""

    def setUp(self) -> None:
        self.host = enter_host(self)

    def check(self, name: str, *make: str) -> None:
        """It is missing until it is made, ready while the one below has carrier, and carries addresses."""
        addresses = NetlinkAddresses(["em1", name], lambda: 0.0)
        self.assertEqual(addresses.read().links.keys(), {"em1"})
        make_link(self, *make)
        wait_until(lambda: addresses.read().links[name].ready)
        link = addresses.read().links[name]
        self.assertEqual((link.name, len(link.mac)), (name, 6))
        assigned = addresses.assign({Assignment(FIRST, 100, name), Assignment(FIRST6, 100, name)})
        self.assertEqual((assigned.expires.keys(), assigned.failed), ({FIRST, FIRST6}, {}))
        self.assertEqual(addresses.read().where, {FIRST: name, FIRST6: name})
        with self.host.at_neighbour(), IPRoute() as route:
            route.link("set", index=self.host.index("peer"), state="down")
        wait_until(lambda: not addresses.read().links[name].ready)
        self.assertGreater(addresses.read().links[name].carrier_changes, link.carrier_changes)

    def test_vlan(self) -> None:
        """A VLAN."""
        self.check("em1.5", "add link em1 name em1.5 type vlan id 5", "set em1.5 up")

    def test_bridge(self) -> None:
        """A bridge with one port."""
        self.check("br0", "add br0 type bridge", "set em1 master br0", "set br0 up")

    def test_bond(self) -> None:
        """A bond of one interface."""
        bond = "add bond0 type bond mode active-backup miimon 10"
        self.check("bond0", bond, "set em1 down", "set em1 master bond0", "set bond0 up")

    def test_macvlan(self) -> None:
        """A macvlan."""
        self.check("mac0", "add link em1 name mac0 type macvlan mode bridge", "set mac0 up")


class RacingTests(SynchronousTestCase):
    """
    What happens between the moment when an assignment looks at the host and the moment when the kernel acts. The clock
    is read in between, so what it does then comes in between.
    """

    def setUp(self) -> None:
        self.host = enter_host(self)

    def assign(self, seconds: float, *between: Callable[[], float]) -> Assigned:
        """Assign for so many seconds from 0, with these calls to the clock; all later ones repeat the last."""
        calls = list(between)

        def clock() -> float:
            call = calls.pop(0) if len(calls) > 1 else calls[0]
            return call()

        return NetlinkAddresses(["em1"], clock).assign({Assignment(FIRST, seconds, "em1")})

    def then(self, act: Callable[[], None]) -> Callable[[], float]:
        def clock() -> float:
            act()
            return 0.0

        return clock

    def test_foreign_appears(self) -> None:
        """An address that somebody else configures in that moment is not touched."""
        theirs = self.then(lambda: self.host.address("add", f"{FIRST}/32"))
        assigned = self.assign(100, theirs, lambda: 0.0)
        self.assertEqual(assigned, Assigned({}, {FIRST: f"somebody else configured {FIRST}/32 on this host"}))
        self.assertEqual(
            self.host.addresses()[f"{FIRST}/32"],
            {"label": "em1", "proto": None, "scope": 0, "flags": 0x80, "valid": FOREVER, "preferred": FOREVER},
        )

    def test_ours_appears(self) -> None:
        """An address that gets our tag in that moment is replaced."""
        ours = self.then(lambda: self.host.address("add", f"{FIRST}/32", label="em1:kube", proto=PROTOCOL))
        self.assertEqual(self.assign(100, ours, lambda: 0.0), Assigned({FIRST: 100.0}))
        self.assertLessEqual(self.host.addresses()[f"{FIRST}/32"]["valid"], 100)

    def test_ours_disappears(self) -> None:
        """An address of ours that somebody deletes in that moment is made anew."""
        self.assign(50, lambda: 0.0)
        gone = self.then(lambda: self.host.address("del", f"{FIRST}/32"))
        self.assertEqual(self.assign(100, gone, lambda: 0.0), Assigned({FIRST: 100.0}))
        self.assertEqual(self.host.addresses().keys(), {f"{FIRST}/32"})

    def test_interface_disappears(self) -> None:
        """An interface that goes in that moment is a failure with a reason."""
        assigned = self.assign(100, self.then(self.host.remove_link), lambda: 0.0)
        self.assertEqual(assigned.expires, {})
        self.assertIn("assigning 192.168.1.41/32 on em1: No such device", assigned.failed[FIRST])

    def test_late(self) -> None:
        """An address that took so long that it would outlive its claim is given a shorter lifetime."""
        self.assertEqual(self.assign(55.5, lambda: 0.0, lambda: 30.0), Assigned({FIRST: 55.0}))
        self.assertLessEqual(self.host.addresses()[f"{FIRST}/32"]["valid"], 25)

    def test_too_late(self) -> None:
        """An address that took so long that its claim is over is taken off again."""
        assigned = self.assign(55.5, lambda: 0.0, lambda: 55.0)
        self.assertEqual(assigned, Assigned({}, {FIRST: "its claim ends in 0.5 s"}))
        self.assertEqual(self.host.addresses(), {})

    def test_never_in_time(self) -> None:
        """A host that is always too slow for the lifetimes it is given gets no address."""
        slow = Clock()

        def clock() -> float:
            slow.advance(1)
            return slow.seconds()

        self.assertEqual(self.assign(100, clock), Assigned({}, {FIRST: "the host did not settle in 5 tries"}))
        self.assertEqual(self.host.addresses(), {})


class MessageTests(SynchronousTestCase):
    """Messages mean to another codec what they mean here."""

    def decoded(self, data: bytes) -> tuple[Any, dict[str, Any]]:
        """A message as another codec reads it, and its attributes."""
        message = ifaddrmsg(data)
        message.decode()
        self.assertEqual(message["header"]["length"], len(data))
        return message, dict(message["attrs"])

    @given(
        label=sampled_from(["em1:kube", "a:kube", "ab:kube", "abc:kube", "enp0s31f6-:kube"]),
        index=integers(1, 2**31 - 1),
        number=integers(0, 99),
        local=integers(0, 2**32 - 1).map(IPv4Address),
        seconds=integers(1, FOREVER),
    )
    def test_new(self, label: str, index: int, number: int, local: IPv4Address, seconds: int) -> None:
        """A message that creates an address has every attribute; and it is read as what it says."""
        writer = AddressWriter(socket.AF_INET, label.encode()).new(0x400, index, seconds)
        data = b"".join(writer.write(number, local.packed))
        message, attributes = self.decoded(data)
        header = {name: message["header"][name] for name in ("type", "flags", "sequence_number")}
        self.assertEqual(header, {"type": 20, "flags": 0x401, "sequence_number": number})
        self.assertEqual((message["family"], message["prefixlen"], message["index"]), (socket.AF_INET, 32, index))
        self.assertEqual(
            attributes,
            {
                "IFA_LOCAL": str(local),
                "IFA_ADDRESS": str(local),
                "IFA_LABEL": label,
                "IFA_PROTO": PROTOCOL,
                "IFA_CACHEINFO": {
                    "ifa_preferred": preferred_lifetime(seconds),
                    "ifa_valid": seconds,
                    "cstamp": 0,
                    "tstamp": 0,
                },
            },
        )
        traits = Traits(index, socket.AF_INET, 32, label.encode(), PROTOCOL, 0)
        lifetime = None if seconds == FOREVER else seconds
        self.assertEqual(decode_address(data[HEADER:]), (traits, local.packed, lifetime))

    @given(index=integers(1, 2**31 - 1), local=integers(0, 2**128 - 1).map(IPv6Address), seconds=integers(1, FOREVER))
    def test_new_ipv6(self, index: int, local: IPv6Address, seconds: int) -> None:
        """The same for an IPv6 address, which is deprecated from the start."""
        data = b"".join(AddressWriter(socket.AF_INET6).new(0x400, index, seconds).write(7, local.packed))
        message, attributes = self.decoded(data)
        self.assertEqual((message["family"], message["prefixlen"], message["index"]), (socket.AF_INET6, 128, index))
        lifetimes = {"ifa_preferred": 0, "ifa_valid": seconds, "cstamp": 0, "tstamp": 0}
        self.assertEqual(
            {**attributes, **{name: IPv6Address(attributes[name]) for name in ("IFA_LOCAL", "IFA_ADDRESS")}},
            {
                "IFA_LOCAL": local,
                "IFA_ADDRESS": local,
                "IFA_FLAGS": IFA_F_NODAD | IFA_F_NOPREFIXROUTE,
                "IFA_PROTO": PROTOCOL,
                "IFA_CACHEINFO": lifetimes,
            },
        )
        traits = Traits(index, socket.AF_INET6, 128, b"", PROTOCOL, IFA_F_NODAD | IFA_F_NOPREFIXROUTE)
        lifetime = None if seconds == FOREVER else seconds
        self.assertEqual(decode_address(data[HEADER:]), (traits, local.packed, lifetime))

    @given(
        lives=lists(
            tuples(
                one_of(integers(0, 2**32 - 1).map(IPv4Address), integers(0, 2**128 - 1).map(IPv6Address)),
                sampled_from([b"em1:kube", b"em1"]),
                integers(1, 2),
                sampled_from([1, 2, FOREVER]),
            ),
            unique_by=lambda life: life[0],
        )
    )
    def test_many(self, lives: Sequence[tuple[Address, bytes, int, int]]) -> None:
        """Many messages are read as each one is alone, however alike they are."""
        messages = []
        for local, label, index, seconds in lives:
            family = socket.AF_INET if local.version == 4 else socket.AF_INET6
            data = b"".join(AddressWriter(family, label).new(0, index, seconds).write(0, local.packed))
            messages += [_as_told(data[HEADER:])]
        expected: dict[Traits, dict[bytes, int | None]] = {}
        for message in messages:
            address = decode_address(message)
            assert address is not None
            expected.setdefault(address[0], {})[address[1]] = address[2]
        self.assertEqual(decode_addresses(messages), expected)

    def test_punctual_lifetime(self) -> None:
        """
        The kernel is late by up to an eighth of a lifetime, and a quarter of a second; and by a second more where there
        are too many addresses to be written at once, if there are three. Then they are gone half a second after their
        time at the latest.
        """
        for left in (1, 2, 2.5, 9.3, 17, 60, 3600, inf):
            for together, more in ((200, 0), (201, 1 if left >= 3 else 0)):
                lifetime = punctual_lifetime(left, together)
                self.assertLessEqual(lifetime * 9 / 8 + 0.25 + more, left + 0.5)
        self.assertEqual([punctual_lifetime(left, 1) for left in (1, 1.5)], [1, 1.5])

    def test_preferred_lifetime(self) -> None:
        """It ends before the valid one, and leaves the kernel time for one look that is late; for ever stays."""
        lifetimes = (1, 2, 3, 9, 16, 17, 60, FOREVER)
        self.assertEqual([preferred_lifetime(seconds) for seconds in lifetimes], [1, 2, 1, 7, 14, 13, 51, FOREVER])

    def test_deleted(self) -> None:
        """A message that deletes an address names its label, which IPv6 has not."""
        for address, label in ((FIRST, {"IFA_LABEL": "em1:kube"}), (FIRST6, {})):
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            writer = AddressWriter(family, b"em1:kube").deleted(4, 3)
            message, attributes = self.decoded(b"".join(writer.write(7, address.packed)))
            self.assertEqual((message["header"]["type"], message["header"]["flags"]), (21, 5))
            self.assertEqual((message["family"], message["index"]), (family, 3))
            self.assertEqual(attributes, {"IFA_LOCAL": str(address), "IFA_ADDRESS": str(address), **label})

    def test_address_of_another_kind(self) -> None:
        """An address at one end of a point-to-point link is its own, not its peer's; one without attributes is bare."""
        message = ifaddrmsg()
        message["family"], message["prefixlen"], message["index"] = socket.AF_INET, 30, 5
        message["attrs"] = [("IFA_ADDRESS", "10.0.0.2"), ("IFA_LOCAL", "10.0.0.1")]
        message.encode()
        expected = (Traits(5, socket.AF_INET, 30, b"", 0, 0), IPv4Address("10.0.0.1").packed, None)
        self.assertEqual(decode_address(bytes(message.data)[HEADER:]), expected)

    def test_no_address(self) -> None:
        """What is of another family, has no address, or one that is too short for its prefix, is none."""
        for family, prefix, attributes in (
            (socket.AF_PACKET, 32, b"\x08\0\2\0abcd"),
            (socket.AF_INET, 32, b""),
            (socket.AF_INET, 33, b"\x08\0\2\0abcd"),
            (socket.AF_INET6, 128, b"\x08\0\2\0abcd"),
        ):
            message = struct.pack("=BBBBI", family, prefix, 0, 0, 3) + attributes
            self.assertIsNone(decode_address(message))
            self.assertEqual(decode_addresses([message]), {})

    def test_link(self) -> None:
        """A link is ready with the flags for up and carrier, and has a MAC address where it is an Ethernet."""
        for kind, flags, link in (
            (1, 0x10001, Link(3, "em1", bytes.fromhex("020000000001"), True, 7)),
            (1, 0x00001, Link(3, "em1", bytes.fromhex("020000000001"), False, 7)),
            (1, 0x10000, Link(3, "em1", bytes.fromhex("020000000001"), False, 7)),
            (772, 0x10001, Link(3, "em1", b"", True, 7)),
        ):
            message = ifinfmsg()
            message["index"], message["flags"], message["ifi_type"] = 3, flags, kind
            message["attrs"] = [
                *(("IFLA_IFNAME", "em1"), ("IFLA_ADDRESS", "02:00:00:00:00:01"), ("IFLA_CARRIER_CHANGES", 7)),
            ]
            message.encode()
            self.assertEqual(decode_link(bytes(message.data)[HEADER:]), link)

    def test_default_route(self) -> None:
        """Only a unicast default route of the main table is one."""
        for changes, expected in (
            ({}, DefaultRoute(4, frozenset({GATEWAY}), 50)),
            ({"dst_len": 24}, None),
            ({"table": 255}, None),
            ({"type": 7}, None),
        ):
            message = rtmsg()
            message.update({"family": socket.AF_INET, "table": 254, "type": 1, **changes})
            message["attrs"] = [("RTA_GATEWAY", str(GATEWAY)), ("RTA_OIF", 4), ("RTA_PRIORITY", 50)]
            message.encode()
            self.assertEqual(decode_default_route(bytes(message.data)[HEADER:]), expected)

    @given(size=integers(0, 200), local=sampled_from([FIRST, FIRST6]))
    def test_cut(self, size: int, local: Address) -> None:
        """A message whose attributes are cut short is read as far as it goes."""
        family = socket.AF_INET if local.version == 4 else socket.AF_INET6
        data = b"".join(AddressWriter(family, b"em1:kube").new(0, 3, 9).write(0, local.packed))[HEADER:]
        address = decode_address(data[: 12 + len(local.packed) + size])
        assert address is not None
        self.assertEqual(address[1], local.packed)
        self.assertEqual(
            decode_addresses([data[: 12 + len(local.packed) + size]]), {address[0]: {address[1]: address[2]}}
        )

    def test_endless(self) -> None:
        """An attribute that claims to have no size ends the message."""
        data = b"".join(AddressWriter(socket.AF_INET, b"em1:kube").new(0, 3, 9).write(0, FIRST.packed))[HEADER:]
        traits = Traits(3, socket.AF_INET, 32, b"em1:kube", PROTOCOL, 0)
        endless = data + struct.pack("=HH", 0, 3) + b"x" * 8
        self.assertEqual(decode_address(endless), (traits, FIRST.packed, 9))


def _as_told(message: bytes) -> bytes:
    """A message that creates an address, in the order in which the kernel tells of it."""
    head, attributes = message[:8], message[8:]
    found = {}
    while attributes:
        size, kind = struct.unpack_from("=HH", attributes)
        found[kind] = attributes[: (size + 3) & ~3]
        attributes = attributes[(size + 3) & ~3 :]
    kinds = (1, 2, 3, 11, 8, 6) if message[0] == socket.AF_INET else (1, 6, 8, 11)
    return head + b"".join(found[kind] for kind in kinds if kind in found)


class RouteTests(SynchronousTestCase):
    """Default routes and interfaces of a real host."""

    def setUp(self) -> None:
        self.host = enter_host(self)
        self.addresses = NetlinkAddresses(["em1"], lambda: 0.0)
        for address in HERE:
            self.host.address("add", str(address))

    def route(self, *words: str) -> None:
        """Add a route by hand."""
        subprocess.run(["ip", "route", "add", *words], check=True)

    def test_none(self) -> None:
        """Without a default route there is no gateway, and no interface to choose."""
        self.route("10.0.0.0/8", "via", "192.168.1.9")
        self.assertEqual((self.addresses.read().gateways, default_interface()), (set(), None))

    def test_other_table(self) -> None:
        """A default route of another table is not the host's."""
        self.route("default", "via", "192.168.1.9", "table", "100")
        self.assertEqual((self.addresses.read().gateways, default_interface()), (set(), None))

    def test_metric(self) -> None:
        """Every default route has its gateway; the interface is that of the lowest metric."""
        with IPRoute() as route:
            route.link("add", ifname="em2", kind="veth", peer="other")
            for name in ("em2", "other"):
                route.link("set", index=self.host.index(name), state="up")
        self.host.address("add", "10.0.0.2/24", "em2")
        self.route("default", "via", "10.0.0.1", "metric", "200")
        self.route("default", "via", str(GATEWAY), "metric", "100")
        self.assertEqual(self.addresses.read().gateways, {GATEWAY, IPv4Address("10.0.0.1")})
        self.assertEqual(default_interface(), "em1")
        self.route("default", "via", "10.0.0.3", "metric", "50")
        self.assertEqual(default_interface(), "em2")

    def test_multipath(self) -> None:
        """A route with several next hops has several gateways."""
        self.route("default", "nexthop", "via", str(GATEWAY), "nexthop", "via", "192.168.1.9", "dev", "em1")
        self.assertEqual(self.addresses.read().gateways, {GATEWAY, IPv4Address("192.168.1.9")})
        self.assertEqual(default_interface(), "em1")

    def test_without_gateway(self) -> None:
        """A default route straight onto the link has an interface and no gateway."""
        self.route("default", "dev", "em1")
        self.assertEqual((self.addresses.read().gateways, default_interface()), (set(), "em1"))

    def test_ipv6(self) -> None:
        """The gateways of IPv6 are told too; its default route chooses the interface where IPv4 has none."""
        self.route("10.0.0.0/8", "via", "192.168.1.9")
        self.route("default", "nexthop", "via", "fd00::1", "nexthop", "via", "fd00::9", "dev", "em1")
        self.route("default", "via", "fd00::8", "table", "100")
        subprocess.run(["ip", "-6", "route", "add", "unreachable", "default", "metric", "50"], check=True)
        self.assertEqual(self.addresses.read().gateways, {ip("fd00::1"), ip("fd00::9")})
        self.assertEqual(default_interface(), "em1")
        self.host.create_link("em2")
        self.route("default", "dev", "em2")
        self.assertEqual(self.addresses.read().gateways, {ip("fd00::1"), ip("fd00::9")})
        self.assertEqual(default_interface(), "em2")

    def test_nothing_at_all(self) -> None:
        """A host without a network can be read."""
        enter_namespace(self)
        self.assertEqual(
            NetlinkAddresses(["em1"], lambda: 0.0).read(),
            Host(own=LOOPBACK),
        )


class OptionTests(SynchronousTestCase):
    """What options are checked with."""

    def test_label(self) -> None:
        """A label ends in C{:kube} and has at most 15 bytes."""
        self.assertEqual(
            [label_for(name) for name in ("em1", "enp0s31f60", "enp0s31f6-trunk", "é" * 7)],
            ["em1:kube", "enp0s31f60:kube", "enp0s31f6-:kube", "ééééé:kube"],
        )

    def test_release(self) -> None:
        """The kernel keeps protocol numbers from 5.18 on; one of an unknown kind is not relied upon."""
        releases = ["5.17.9", "5.18.0-1-amd64", "6.1.0-18-amd64", "4.19", "10.0", "unknown"]
        self.assertEqual([knows_protocol(release) for release in releases], [False, True, True, False, True, False])

    def test_privileges(self) -> None:
        """Both capabilities are needed, in the effective set."""
        status = self.mktemp()
        for effective, able in (("0000000000003000", True), ("0000000000001000", False), ("000001ffffffdfff", False)):
            with open(status, "w") as lines:
                lines.write(f"Name:\tkiwi\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\n")
            self.assertEqual(can_administer(status), able)
