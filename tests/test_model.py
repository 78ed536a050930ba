"""The values that everything speaks in."""

from __future__ import annotations

import pickle
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import AgentRecord, ServiceName, SliceName, ip, ipv4


class AddressTests(SynchronousTestCase):
    """Addresses are those of the library, only quicker."""

    @given(st.ip_addresses(v=4))
    def test_same(self, address: IPv4Address) -> None:
        """Nothing tells one from the library's."""
        quick = ipv4(str(address))
        self.assertEqual(
            (quick, hash(quick), repr(quick), str(quick)), (address, hash(address), repr(address), str(address))
        )
        self.assertEqual({address: 1}[quick], {quick: 1}[address])
        self.assertEqual(pickle.loads(pickle.dumps(quick)), address)

    @given(st.ip_addresses(v=4))
    def test_one_of_each(self, address: IPv4Address) -> None:
        """Every way to say it gives the same object."""
        self.assertIs(ipv4(address.packed), ipv4(str(address)))
        self.assertIs(ip(str(address)), ipv4(str(address)))

    @given(st.ip_addresses(v=6))
    def test_ipv6(self, address: IPv6Address) -> None:
        """IPv6 addresses are the library's own."""
        self.assertEqual(ip(str(address)), address)

    def test_none(self) -> None:
        """What is no address is an error."""
        for text in ("", "192.168.1", "192.168.1.256", "::1"):
            self.assertRaises(AddressValueError, ipv4, text)
        self.assertRaises(ValueError, ip, "web")


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
