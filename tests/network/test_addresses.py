"""The addresses suite, in memory and in the kernel; and what only a kernel does."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from itertools import cycle
from math import inf
from threading import Event, Thread
from time import monotonic
from typing import Any

from attrs import define, field
from hypothesis import given
from hypothesis.strategies import integers, sampled_from
from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Assignment, Host, Link
from kiwi.network.addresses import (
    PROTOCOL,
    PROXY_INTERFACES,
    AddressWriter,
    Configured,
    DefaultRoute,
    NetlinkAddresses,
    can_administer,
    decode_address,
    decode_default_route,
    decode_link,
    default_interface,
    interface_exists,
    knows_protocol,
    label_for,
    preferred_lifetime,
)
from kiwi.network.interface import Assigned, Unassigned
from kiwi.network.memory import MemoryAddresses

from .addressestests import FIRST, GATEWAY, HERE, LOOPBACK, MANY, SECOND, make_addresses_tests
from .hosts import NamespacedHost, enter_host, enter_namespace, wait_until

HEADER = 16
"""Bytes in the header of a netlink message."""

FOREVER = 2**32 - 1


@define
class MemoryFixture:
    """An L{AddressesFixture} in memory."""

    clock: Clock = field(factory=Clock)
    addresses: MemoryAddresses = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.addresses = MemoryAddresses("em1", self.clock.seconds)
        self.addresses.subnets.add(HERE)
        self.addresses.elsewhere.add(LOOPBACK)
        self.addresses.gateways.add(GATEWAY)

    def now(self) -> float:
        return self.clock.seconds()

    def wait(self, condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            self.clock.advance(0.01)
        raise AssertionError("waited in vain")

    def configure(self, interface: IPv4Interface, elsewhere: bool = False) -> None:
        (self.addresses.elsewhere if elsewhere else self.addresses.subnets).add(interface)

    def delete(self, address: IPv4Address) -> None:
        self.addresses.delete(address)

    def make_permanent(self, address: IPv4Address) -> None:
        self.addresses.make_permanent(address)

    def unplug(self) -> None:
        self.addresses.set_ready(False)

    def remove_link(self) -> None:
        self.addresses.remove_link()

    def create_link(self) -> None:
        self.addresses.link = Link(9, "em1", b"\2\0\0\0\0\2", ready=True)


@define
class KernelFixture:
    """An L{AddressesFixture} in a network namespace."""

    host: NamespacedHost
    addresses: NetlinkAddresses

    def now(self) -> float:
        return monotonic()

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_until(condition)

    def configure(self, interface: IPv4Interface, elsewhere: bool = False) -> None:
        self.host.address("add", str(interface), "lo" if elsewhere else None)

    def delete(self, address: IPv4Address) -> None:
        self.host.address("del", f"{address}/32")

    def make_permanent(self, address: IPv4Address) -> None:
        self.host.address("replace", f"{address}/32", proto=PROTOCOL)

    def unplug(self) -> None:
        with self.host.at_neighbour(), IPRoute() as route:
            route.link("set", index=self.host.index("peer"), state="down")

    def remove_link(self) -> None:
        self.host.remove_link()

    def create_link(self) -> None:
        self.host.create_link()


def make_kernel_fixture(case: SynchronousTestCase) -> KernelFixture:
    host = enter_host(case)
    host.address("add", str(HERE))
    with IPRoute() as route:
        route.route("add", gateway=str(GATEWAY))
    return KernelFixture(host, NetlinkAddresses("em1", monotonic))


class MemoryAddressesTests(make_addresses_tests(lambda case: MemoryFixture())):  # type: ignore[misc]
    """Addresses that are only remembered."""

    def test_like(self) -> None:
        """One can be made that has what somebody else configured on another host, and nothing of ours."""
        self.assign(100, FIRST)
        before = self.read()
        other = MemoryAddresses.like(before, "em1", lambda: 0.0)
        self.assertEqual(other.read(), Host(before.link, {}, before.subnets, before.own, before.gateways))


class NetlinkAddressesTests(make_addresses_tests(make_kernel_fixture)):  # type: ignore[misc]
    """Addresses of an interface in a network namespace."""

    def test_many_expire(self) -> None:
        """A thousand addresses of one batch go together, little more than a second after their time at most."""
        expires = max(self.assign(2.5, *MANY).expires.values())
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
        self.assign(100, *MANY)
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
                self.assertEqual(self.read().assigned.keys(), MANY)
        finally:
            end.set()
            thread.join()


class OurAddressesTests(SynchronousTestCase):
    """How an address is tagged, and what is taken for ours."""

    def setUp(self) -> None:
        self.host = enter_host(self)
        self.addresses = NetlinkAddresses("em1", lambda: 0.0)

    def test_tag(self) -> None:
        """Every attribute is there when an address is new, and again after each replace."""
        for seconds in (50, 100):
            self.addresses.assign({Assignment(FIRST, seconds + 0.5)})
            (attributes,) = self.host.addresses().values()
            valid, preferred = attributes.pop("valid"), attributes.pop("preferred")
            self.assertEqual(self.host.addresses().keys(), {f"{FIRST}/32"})
            self.assertEqual(attributes, {"label": "em1:kube", "proto": PROTOCOL, "scope": 0})
            self.assertTrue(seconds - 5 < valid <= seconds)
            self.assertEqual(preferred - valid, preferred_lifetime(seconds) - seconds)

    def test_not_ours(self) -> None:
        """One that lacks a part of the tag is somebody else's: it is told as such, not replaced, and not removed."""
        theirs: dict[str, dict[str, Any]] = {
            f"{FIRST}/32": {"label": "em1:kube"},
            f"{FIRST + 1}/32": {"proto": PROTOCOL},
            f"{FIRST + 2}/32": {"label": "em1:kubes", "proto": PROTOCOL},
            f"{FIRST + 3}/32": {"label": "em1:kube", "proto": 4, "valid_lft": 1000, "preferred_lft": 1000},
            f"{FIRST + 4}/31": {"label": "em1:kube", "proto": PROTOCOL},
        }
        for address, attributes in theirs.items():
            self.host.address("add", address, **attributes)
        before = self.host.addresses()
        host = self.addresses.read()
        self.assertEqual((host.assigned, host.subnets), ({}, {IPv4Interface(address) for address in theirs}))
        addresses = {IPv4Interface(address).ip for address in theirs}
        self.assertEqual(self.addresses.assign({Assignment(each, 100) for each in addresses}).failed.keys(), addresses)
        self.assertEqual(self.addresses.unassign(addresses), Unassigned(frozenset(addresses)))
        self.assertEqual(self.host.addresses(), before)

    def test_protocol_forgotten(self) -> None:
        """One of ours stays ours when somebody changes it and leaves the protocol out, until somebody takes it away."""
        self.addresses.assign({Assignment(FIRST, 100.5)})
        self.host.address("replace", f"{FIRST}/32", label="em1:kube")
        self.assertEqual(self.addresses.read().assigned, {FIRST: inf})
        self.assertEqual(self.addresses.assign({Assignment(FIRST, 100.5)}).failed, {})
        (attributes,) = self.host.addresses().values()
        self.assertEqual(attributes["proto"], PROTOCOL)
        self.assertLessEqual(attributes["valid"], 100)
        self.host.address("del", f"{FIRST}/32")
        self.assertEqual(self.addresses.read().assigned, {})
        self.host.address("add", f"{FIRST}/32", label="em1:kube")
        self.assertEqual(self.addresses.read().assigned, {})

    def test_carrier_changes(self) -> None:
        """That carrier went and came back is told, also to who looks only afterwards."""
        before = self.addresses.read().link
        self.host.link(state="down")
        self.host.link(state="up")
        after = self.addresses.read().link
        assert before is not None and after is not None
        self.assertGreater(after.carrier_changes, before.carrier_changes)

    def test_label_guards_deletion(self) -> None:
        """The kernel itself deletes only what has the label in the message."""
        self.host.address("add", f"{FIRST}/32", label="em1:kube")
        for label, code in ((b"em1:kub", errno.EADDRNOTAVAIL), (b"em1:kube", 0)):
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
                route.send(AddressWriter(label).deleted(NLM_F_ACK, 0, self.host.index(), FIRST.packed))
                self.assertEqual(struct.unpack_from("=i", route.recv(4096), HEADER), (-code,))

    def test_same_tag_elsewhere(self) -> None:
        """What bears the tag on another interface is not ours."""
        self.host.address("add", f"{FIRST}/32", "lo", label="em1:kube", proto=PROTOCOL)
        host = self.addresses.read()
        self.assertEqual((host.assigned, host.own), ({}, {IPv4Interface(FIRST), LOOPBACK}))
        self.addresses.unassign({FIRST})
        self.assertEqual(self.addresses.read(), host)

    def test_proxies(self) -> None:
        """What a proxy keeps on an interface of its own is free to be carried here, and is left to the proxy."""
        for proxy in PROXY_INTERFACES:
            with IPRoute() as route:
                route.link("add", ifname=proxy, kind="bridge")
            self.host.address("add", f"{FIRST}/32", proxy)
            self.host.address("add", f"{SECOND}/32", proxy)
        theirs = {proxy: self.host.addresses(proxy) for proxy in PROXY_INTERFACES}
        self.assertEqual(self.addresses.read().own, {LOOPBACK})
        for seconds in (50, 100):
            self.assertEqual(self.addresses.assign({Assignment(FIRST, seconds)}), Assigned({FIRST: seconds}))
        self.assertEqual(self.host.addresses().keys(), {f"{FIRST}/32"})
        host = self.addresses.read()
        self.assertEqual((host.assigned.keys(), host.own), ({FIRST}, {LOOPBACK}))
        self.assertEqual(self.addresses.unassign({FIRST, SECOND}), Unassigned(frozenset({FIRST, SECOND})))
        self.assertEqual(self.host.addresses(), {})
        self.assertEqual({proxy: self.host.addresses(proxy) for proxy in PROXY_INTERFACES}, theirs)

    def test_old_kernel(self) -> None:
        """Where the kernel keeps no protocol, the label is the whole tag."""
        old = NetlinkAddresses("em1", lambda: 0.0, release="4.19.0-27-amd64")
        self.host.address("add", f"{FIRST}/32", label="em1:kube")
        self.assertEqual(old.read().assigned.keys(), {FIRST})
        self.host.address("add", f"{SECOND}/32", proto=4)
        self.assertEqual(old.read().assigned, {})

    def test_long_interface_name(self) -> None:
        """A name that leaves no room for the label is cut there, and addresses are still found again."""
        host = enter_host(self, "enp0s31f6-trunk")
        addresses = NetlinkAddresses("enp0s31f6-trunk", lambda: 0.0)
        self.assertEqual(addresses.assign({Assignment(FIRST, 100)}).failed, {})
        self.assertEqual(host.addresses()[f"{FIRST}/32"]["label"], "enp0s31f6-:kube")
        self.assertEqual(addresses.read().assigned.keys(), {FIRST})
        self.assertEqual(addresses.unassign({FIRST}), Unassigned(frozenset({FIRST})))
        self.assertEqual(host.addresses(), {})


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

        return NetlinkAddresses("em1", clock).assign({Assignment(FIRST, seconds)})

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
            {"label": "em1", "proto": None, "scope": 0, "valid": FOREVER, "preferred": FOREVER},
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

    @given(
        label=sampled_from(["em1:kube", "a:kube", "ab:kube", "abc:kube", "enp0s31f6-:kube"]),
        index=integers(1, 2**31 - 1),
        local=integers(0, 2**32 - 1).map(IPv4Address),
        seconds=integers(1, FOREVER),
    )
    def test_new(self, label: str, index: int, local: IPv4Address, seconds: int) -> None:
        """A message that creates an address has every attribute; and it is read as what it says."""
        data = AddressWriter(label.encode()).new(0x400, 7, index, local.packed, seconds)
        message = ifaddrmsg(data)
        message.decode()
        self.assertEqual(
            {name: message["header"][name] for name in ("length", "type", "flags", "sequence_number")},
            {"length": len(data), "type": 20, "flags": 0x401, "sequence_number": 7},
        )
        self.assertEqual((message["family"], message["prefixlen"], message["index"]), (socket.AF_INET, 32, index))
        self.assertEqual(
            dict(message["attrs"]),
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
        lifetime = None if seconds == FOREVER else seconds
        self.assertEqual(
            decode_address(data[HEADER:]), Configured(index, local.packed, 32, label.encode(), PROTOCOL, lifetime)
        )

    def test_preferred_lifetime(self) -> None:
        """It ends before the valid one, and leaves the kernel time for one look that is late; for ever stays."""
        lifetimes = (1, 2, 3, 9, 16, 17, 60, FOREVER)
        self.assertEqual([preferred_lifetime(seconds) for seconds in lifetimes], [1, 2, 1, 7, 14, 13, 51, FOREVER])

    def test_deleted(self) -> None:
        """A message that deletes an address names its label."""
        data = AddressWriter(b"em1:kube").deleted(4, 7, 3, FIRST.packed)
        message = ifaddrmsg(data)
        message.decode()
        self.assertEqual((message["header"]["type"], message["header"]["flags"], message["index"]), (21, 5, 3))
        self.assertEqual(
            dict(message["attrs"]), {"IFA_LOCAL": str(FIRST), "IFA_ADDRESS": str(FIRST), "IFA_LABEL": "em1:kube"}
        )

    def test_address_of_another_kind(self) -> None:
        """An address at one end of a point-to-point link is its own, not its peer's; one without attributes is bare."""
        message = ifaddrmsg()
        message["family"], message["prefixlen"], message["index"] = socket.AF_INET, 30, 5
        message["attrs"] = [("IFA_ADDRESS", "10.0.0.2"), ("IFA_LOCAL", "10.0.0.1")]
        message.encode()
        self.assertEqual(
            decode_address(bytes(message.data)[HEADER:]),
            Configured(5, IPv4Address("10.0.0.1").packed, 30, b"", 0, None),
        )

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

    @given(size=integers(0, 200))
    def test_cut(self, size: int) -> None:
        """A message whose attributes are cut short is read as far as it goes."""
        data = AddressWriter(b"em1:kube").new(0, 0, 3, FIRST.packed, 9)[HEADER:]
        kept = data[: 24 + size]
        self.assertEqual(decode_address(kept).local, FIRST.packed)

    def test_endless(self) -> None:
        """An attribute that claims to have no size ends the message."""
        data = AddressWriter(b"em1:kube").new(0, 0, 3, FIRST.packed, 9)[HEADER:] + struct.pack("=HH", 0, 3) + b"x" * 8
        self.assertEqual(decode_address(data), Configured(3, FIRST.packed, 32, b"em1:kube", PROTOCOL, 9))


class RouteTests(SynchronousTestCase):
    """Default routes and interfaces of a real host."""

    def setUp(self) -> None:
        self.host = enter_host(self)
        self.addresses = NetlinkAddresses("em1", lambda: 0.0)
        self.host.address("add", str(HERE))

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

    def test_interface_exists(self) -> None:
        """An interface is there or not, and what cannot be a name is not."""
        self.assertEqual(
            [interface_exists(name) for name in ("em1", "lo", "em9", "", "x" * 40, "a\0b")],
            [True, True, False, False, False, False],
        )

    def test_nothing_at_all(self) -> None:
        """A host without a network can be read."""
        enter_namespace(self)
        self.assertEqual(
            NetlinkAddresses("em1", lambda: 0.0).read(),
            Host(None, {}, frozenset(), frozenset({LOOPBACK}), frozenset()),
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
