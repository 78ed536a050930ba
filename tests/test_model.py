"""The values that everything speaks in."""

from __future__ import annotations

import pickle
from ipaddress import IPv6Address, ip_network

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, AgentRecord, ServiceName, SliceName, in_order, ip, network_order


class AddressTests(SynchronousTestCase):
    """Addresses are those of the library, only quicker."""

    @given(st.ip_addresses())
    def test_same(self, address: Address) -> None:
        """Nothing tells one from the library's."""
        quick = ip(str(address))
        self.assertEqual(
            (quick, hash(quick), repr(quick), str(quick)), (address, hash(address), repr(address), str(address))
        )
        self.assertEqual({address: 1}[quick], {quick: 1}[address])
        self.assertEqual(pickle.loads(pickle.dumps(quick)), address)

    @given(st.ip_addresses())
    def test_one_of_each(self, address: Address) -> None:
        """Every way to say it gives the same object."""
        self.assertIs(ip(address.packed), ip(str(address)))

    @given(st.ip_addresses(v=6))
    def test_spellings(self, address: IPv6Address) -> None:
        """However an IPv6 address is spelt, it is one address."""
        for spelling in (address.exploded, address.exploded.upper(), str(address).upper()):
            self.assertIs(ip(spelling), ip(str(address)))

    def test_none(self) -> None:
        """What is no address is an error, and so is one that means something on one host only."""
        for text in ("", "192.168.1", "192.168.1.256", "web", "::1::", "fe80::1%em1"):
            self.assertRaises(ValueError, ip, text)

    @given(st.lists(st.ip_addresses()))
    def test_order(self, addresses: list[Address]) -> None:
        """Addresses of both families have one order, those of IPv4 first, and networks as well."""
        kinds = [(address.version, int(address)) for address in in_order(addresses)]
        self.assertEqual(kinds, sorted((address.version, int(address)) for address in addresses))
        texts = ("10.0.0.0/8", "10.0.0.0/16", "192.168.1.0/24", "fd00::/64")
        self.assertEqual(
            [str(each) for each in sorted(map(ip_network, reversed(texts)), key=network_order)], list(texts)
        )


class NameTests(SynchronousTestCase):
    """What things are called."""

    def test_objects(self) -> None:
        """Objects are named with their namespace, unless it is the default; those of two kinds are not the same."""
        self.assertEqual([str(ServiceName(each, "web")) for each in ("default", "shop")], ["web", "shop/web"])
        self.assertEqual(len({ServiceName("a", "b"), SliceName("a", "b"), ServiceName("a", "b")}), 2)

    def test_node(self) -> None:
        """An agent's Node has the agent's id for its name, unless it says another one."""
        record = AgentRecord("a", "host", "place", "only")
        self.assertEqual([record.node_name, evolve(record, node="node1").node_name], ["a", "node1"])
