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
    @ivar without_ipv6: why marks for IPv6 will fail, in one line; C{None} where they should not.
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
    trouble_with_nftables = nftables.check()
    if kind == "nftables" and trouble_with_nftables is not None:
        raise NetworkError(trouble_with_nftables)
    others: list[IFirewall] = [] if trouble_with_nftables is not None else [nftables]
    if kind == "iptables":
        choice = choose_variant(chain)
        variant = choice.variant
        trouble = variant.check(variant.ipv4)
        if trouble is not None:
            raise NetworkError(trouble)
        others += [IptablesFirewall(chain, fwmark, other) for other in (choice.other,) if other is not None]
        return ChosenFirewall(
            Successor(IptablesFirewall(chain, fwmark, variant), others, tell),
            f"iptables, in its {variant.name} variant, for {choice.reason}",
            variant.check(variant.ipv6) if variant.has_ipv6() else None,
        )
    try:
        choice = choose_variant(chain)
    except NetworkError:
        pass  # There is no iptables, and so nothing that it could have left.
    else:
        variants = [each for each in (choice.variant, choice.other) if each is not None]
        iptables = [IptablesFirewall(chain, fwmark, each) for each in variants]
        others += iptables
    if kind == "nftables":
        return ChosenFirewall(Successor(nftables, others[1:], tell), f"nftables, in table inet {nftables.table}")
    return ChosenFirewall(Successor(MemoryFirewall(), others, tell), "nothing")
