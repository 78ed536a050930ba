"""Which firewall it is, and which others an earlier life of this agent may have used."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from .firewall import FwMark, Successor
from .interface import IFirewall, NetworkError
from .iptables import IptablesFirewall, choose_variant
from .memory import MemoryFirewall
from .nftables import NftablesFirewall


@frozen
class ChosenFirewall:
    """
    The firewall to use on this host.

    @ivar name: what it is, and why, for the log.
    @ivar without_ipv6: why marks for IPv6 will fail, in one line, so that no IPv6 address can be carried; C{None} where
        they should not.
    """

    firewall: IFirewall
    name: str
    without_ipv6: str | None = None


def choose_firewall(kind: str, chain: str, fwmark: FwMark, tell: Callable[[str], object]) -> ChosenFirewall:
    """
    The firewall of this kind, on this host: C{iptables}, C{nftables} or C{none}. Nothing is changed before it is used.
    Raises L{NetworkError}, with one line, where the host has nothing of the kind.

    @param tell: as in L{Successor}.
    """
    nftables = NftablesFirewall(chain, fwmark)
    trouble = nftables.check()
    if kind == "nftables" and trouble is not None:
        raise NetworkError(trouble)
    try:
        choice = choose_variant(chain)
    except NetworkError:
        if kind == "iptables":
            raise
        variants = []
    else:
        variants = [each for each in (choice.variant, choice.other) if each is not None]
    in_iptables = [IptablesFirewall(chain, fwmark, each) for each in variants]
    in_nftables = [nftables] if trouble is None else []
    if kind == "nftables":
        return ChosenFirewall(Successor(nftables, in_iptables, tell), f"nftables, in table inet {nftables.table}")
    if kind == "none":
        return ChosenFirewall(Successor(MemoryFirewall(), [*in_nftables, *in_iptables], tell), "nothing")
    usual, *others = in_iptables
    trouble = choice.variant.check()
    if trouble is not None:
        raise NetworkError(trouble)
    return ChosenFirewall(
        Successor(usual, [*in_nftables, *others], tell),
        f"iptables, in its {choice.variant.name} variant, for {choice.reason}",
        choice.variant.without_ipv6(),
    )
