"""Conversations with nf_tables."""

from __future__ import annotations

import subprocess

from pyroute2.netlink import NLM_F_CREATE
from twisted.trial.unittest import SynchronousTestCase

from kiwi.network.interface import NetworkError
from kiwi.network.netlink import attribute
from kiwi.network.nfnetlink import Message, Superseded, nftables

from .hosts import enter_namespace

NEWTABLE, DELTABLE = 0, 2


def table(name: str) -> Message:
    """Make a table."""
    return Message(NEWTABLE, NLM_F_CREATE, attribute(1, name.encode() + b"\0"))


def tables() -> list[str]:
    """The tables as nft lists them."""
    return subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout.splitlines()


class NftablesTests(SynchronousTestCase):
    def setUp(self) -> None:
        enter_namespace(self)

    def test_generation(self) -> None:
        """The generation stays the same until somebody changes something, and that of a transaction is known."""
        with nftables("test") as kernel:
            generation = kernel.generation()
            self.assertEqual(kernel.generation(), generation)
            self.assertEqual(kernel.commit([table("one"), table("two")], generation), kernel.generation())
            generation = kernel.generation()
            subprocess.run(["nft", "add", "table", "ip", "theirs"], check=True)
            self.assertNotEqual(kernel.generation(), generation)

    def test_superseded(self) -> None:
        """A transaction that is for a generation that is over is not made."""
        with nftables("test") as kernel:
            generation = kernel.generation()
            kernel.commit([table("one")], generation)
            self.assertRaises(Superseded, kernel.commit, [table("two")], generation)
            self.assertEqual(tables(), ["table inet one"])
            kernel.commit([table("two")], kernel.generation())
        self.assertEqual(tables(), ["table inet one", "table inet two"])

    def test_all_or_nothing(self) -> None:
        """A transaction of which a part is refused is not made, and the first refusal is told."""
        missing = Message(DELTABLE, 0, attribute(1, b"missing\0"))
        for messages in ([table("one"), missing], [missing, table("one")], [table("one"), missing, table("two")]):
            with self.assertRaises(NetworkError) as caught, nftables("cannot test") as kernel:
                kernel.commit(messages, kernel.generation())
            self.assertEqual(str(caught.exception), "cannot test: No such file or directory")
            self.assertEqual(tables(), [])

    def test_rehearse(self) -> None:
        """A rehearsal changes nothing, and tells what would be refused."""
        with nftables("test") as kernel:
            generation = kernel.generation()
            kernel.rehearse([table("one")])
            self.assertEqual((kernel.generation(), tables()), (generation, []))
            self.assertRaises(OSError, kernel.rehearse, [Message(DELTABLE, 0, attribute(1, b"missing\0"))])
