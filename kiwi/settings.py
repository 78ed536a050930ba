"""What an operator may choose, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import ip_network
from typing import Any

from attrs import frozen

from .kubernetes.reading import is_dns_name
from .kubernetes.services import Sources
from .model import Network
from .network.firewall import WHOLE_MARK, FwMark
from .network.iptables import CHAIN_SIZE, valid_chain_name
from .selection import Attachment
from .urls import server_url

KUBE_APIS = ("auto", "v1", "v1beta3", "v1beta1")
STORES = ("auto", "kubernetes", "etcd2", "etcd3", "memory")
SOURCES = ("externalIPs", "loadBalancer")
FIREWALLS = ("iptables", "nftables", "none")


ETCD_OPTIONS = (
    "etcd-endpoint",
    "etcd-prefix",
    "etcd-ca",
    "etcd-cert",
    "etcd-key",
    "etcd-user",
    "etcd-password-file",
)

PASSWORD = "KIWI_ETCD_PASSWORD"
"""The variable of a password. There is no option for it: everybody on a host can read its command lines."""


class BadSetting(ValueError):
    """A setting that cannot be; its text names it, its value, and what to give instead."""


@frozen
class Settings:
    """
    One agent's settings, each of them valid.

    @ivar interfaces: where addresses go, each of another name; empty for the interface of the default route.
    @ivar cidr_ranges: the addresses that may be taken; empty where that is for the interfaces to say.
    @ivar kube_endpoint: the URL of the API server; C{None} where it is to be found, and always with C{kubeconfig}.
    @ivar kubeconfig: the path of a kubeconfig file.
    @ivar context: the name of a context in a kubeconfig; C{None} for the current one.
    @ivar etcd_is_given: somebody has said something of etcd: where it is, where Kiwi's keys are, or how to get in.
    @ivar etcd_ca: the path of the certificates that vouch for etcd; C{None} for those that the system trusts.
    @ivar etcd_cert: the path of the certificate that etcd is shown, and C{etcd_key} that of its key: both or neither.
    @ivar etcd_user: who this agent is to etcd, with a password; C{None} for nobody.
    @ivar etcd_password_file: the path of the password; C{None} where it is in the environment, see L{PASSWORD}. It is
        never among the settings itself.
    @ivar lease_namespace: where Leases are, if those are the claims.
    @ivar agent_id: unique among the agents.
    @ivar node_name: of the Node that this host is in Kubernetes.
    @ivar node_given: whether that was chosen: then the host is one. The agent's id only may be the name of one.
    @ivar sources: the fields of Services that count.
    @ivar ttl: of a claim, in seconds.
    @ivar firewall: what marks traffic: one of L{FIREWALLS}.
    @ivar driver: whether to touch interface and firewall at all.
    @ivar reconnect_interval: the longest wait between tries, in seconds.
    @ivar probe_wait: for another machine to say that it has an address already, in seconds; 0 for not asking.
    """

    interfaces: tuple[Attachment, ...]
    cidr_ranges: tuple[Network, ...]
    kube_endpoint: str | None
    kubeconfig: str | None
    context: str | None
    kube_api: str
    etcd_endpoints: tuple[str, ...]
    etcd_prefix: str
    etcd_is_given: bool
    etcd_ca: str | None
    etcd_cert: str | None
    etcd_key: str | None
    etcd_user: str | None
    etcd_password_file: str | None
    store: str
    lease_namespace: str
    agent_id: str
    node_name: str
    node_given: bool
    sources: Sources
    ttl: int
    firewall: str
    fwchain: str
    fwmark: FwMark
    driver: bool
    reconnect_interval: float
    probe_wait: float
    verbose: bool
    debug: bool


def settings(options: Mapping[str, Any], environment: Mapping[str, str], host_name: str) -> Settings:
    """
    The settings that options and C{KIWI_*} variables make together; an option comes before a variable. Raises
    L{BadSetting} for the first that cannot be.

    @param options: by long name; text, a list of text where an option may be repeated, or a truth value for a flag.
        What was not given is C{None}, empty or false.
    """

    def given(name: str, default: str) -> str:
        return str(options.get(name) or environment.get(_variable(name)) or default)

    def many(name: str, default: str) -> Iterable[str]:
        chosen = options.get(name) or re.split(r"[\s,]+", environment.get(_variable(name), "").strip())
        return [one for one in chosen if one] or default.split()

    def source(name: str) -> str:
        return f"--{name}" if options.get(name) else _variable(name)

    def checked(name: str, text: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse(text.strip())
        except ValueError as error:
            raise BadSetting(f"{source(name)}: {text!r}: {error}") from None

    def flag(name: str) -> bool:
        return bool(options.get(name)) or _truth(name, environment.get(_variable(name), ""))

    def without_credentials(name: str, instead: str) -> None:
        """What stands before an @ in a URL is not shown again, whatever it is."""
        chosen = options.get(name) or environment.get(_variable(name), "")
        for text in [chosen] if isinstance(chosen, str) else chosen:
            if "@" in text:
                shown = f"...@{text.rpartition('@')[2]}"
                raise BadSetting(
                    f"{source(name)}: {shown!r}: a URL may not have a name or a password in it; give {instead} instead"
                )

    without_credentials("kube-endpoint", "--kubeconfig FILE, which may have them,")
    without_credentials("etcd-endpoint", "--etcd-user NAME and --etcd-password-file FILE")
    endpoint, kubeconfig = given("kube-endpoint", "") or None, given("kubeconfig", "") or None
    if endpoint is not None:
        endpoint = checked("kube-endpoint", endpoint, _server("https", "http"))
        if kubeconfig is not None:
            raise BadSetting(
                f"{source('kubeconfig')}: {kubeconfig!r}: there is {source('kube-endpoint')} as well; give one of them"
            )

    etcd_ca, etcd_cert, etcd_key = (given(name, "") or None for name in ("etcd-ca", "etcd-cert", "etcd-key"))
    etcd_user, password_file = (given(name, "") or None for name in ("etcd-user", "etcd-password-file"))

    def alone(name: str, value: str | None, missing: str) -> BadSetting:
        return BadSetting(f"{source(name)}: {value!r}: give {missing} as well")

    if etcd_cert and not etcd_key:
        raise alone("etcd-cert", etcd_cert, "--etcd-key FILE, which may be the same file,")
    if etcd_key and not etcd_cert:
        raise alone("etcd-key", etcd_key, "--etcd-cert FILE, which may be the same file,")
    if etcd_user and not password_file and not environment.get(PASSWORD):
        raise alone("etcd-user", etcd_user, f"--etcd-password-file FILE (or the variable {PASSWORD})")
    if password_file and not etcd_user:
        raise alone("etcd-password-file", password_file, "--etcd-user NAME")
    if environment.get(PASSWORD) and not etcd_user:
        raise BadSetting(f"{PASSWORD}: give --etcd-user NAME as well")
    if password_file and environment.get(PASSWORD):
        raise BadSetting(
            f"{source('etcd-password-file')}: {password_file!r}: the variable {PASSWORD} is there as well; "
            "give one of them"
        )

    firewall = checked("firewall", given("firewall", "iptables"), _one_of(FIREWALLS))
    agent_id = checked("agent-id", given("agent-id", "") or environment.get("KIWI_ID") or host_name, _agent_id)
    node_name = given("node-name", "")
    sources = checked("sources", given("sources", ",".join(SOURCES)), _sources)
    etcd_endpoints = tuple(
        checked("etcd-endpoint", text, _server("https", "http"))
        for text in many("etcd-endpoint", "http://localhost:2379")
    )
    for name, value in (("etcd-ca", etcd_ca), ("etcd-cert", etcd_cert)):
        if value and not any(url.startswith("https://") for url in etcd_endpoints):
            raise BadSetting(
                f"{source(name)}: {value!r}: it is for https, and etcd is at {' '.join(etcd_endpoints)}; give "
                "--etcd-endpoint https://HOST:PORT"
            )
    return Settings(
        interfaces=checked(
            "interface", " ".join(options.get("interface") or [environment.get("KIWI_INTERFACE", "")]), _interfaces
        ),
        cidr_ranges=tuple(checked("cidr-range", text, _network) for text in many("cidr-range", "")),
        kube_endpoint=endpoint,
        kubeconfig=kubeconfig,
        context=given("context", "") or None,
        kube_api=checked("kube-api", given("kube-api", "auto"), _one_of(KUBE_APIS)),
        etcd_endpoints=etcd_endpoints,
        etcd_prefix=checked("etcd-prefix", given("etcd-prefix", "/kiwi"), _prefix),
        etcd_is_given=any(given(name, "") for name in ETCD_OPTIONS),
        etcd_ca=etcd_ca,
        etcd_cert=etcd_cert,
        etcd_key=etcd_key,
        etcd_user=checked("etcd-user", etcd_user, _user) if etcd_user else None,
        etcd_password_file=password_file,
        store=checked("store", given("store", "auto"), _one_of(STORES)),
        lease_namespace=checked("lease-namespace", given("lease-namespace", "kiwi"), _namespace),
        agent_id=agent_id,
        node_name=checked("node-name", node_name, _node_name) if node_name else agent_id,
        node_given=bool(node_name),
        sources=Sources(
            external_ips="externalIPs" in sources,
            load_balancer="loadBalancer" in sources,
            load_balancer_class=checked("load-balancer-class", given("load-balancer-class", ""), _class),
        ),
        ttl=checked("ttl", given("ttl", "10"), _ttl),
        firewall=firewall,
        fwchain=checked("fwchain", given("fwchain", "KUBE-PUBLIC"), _nft_chain if firewall == "nftables" else _chain),
        fwmark=checked("fwmark", given("fwmark", "1"), _mark),
        driver=not flag("no-driver"),
        probe_wait=checked("probe-wait", given("probe-wait", "30"), _milliseconds),
        reconnect_interval=checked("reconnect-interval", given("reconnect-interval", "5"), _interval),
        verbose=flag("verbose"),
        debug=flag("debug"),
    )


def _variable(name: str) -> str:
    return "KIWI_" + name.upper().replace("-", "_")


def _truth(name: str, text: str) -> bool:
    if text.strip().lower() in ("1", "true", "yes", "on"):
        return True
    if text.strip().lower() in ("", "0", "false", "no", "off"):
        return False
    raise BadSetting(f"{_variable(name)}: {text!r}: give 1 for yes or 0 for no")


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"give one of {', '.join(choices)}")
        return text

    return parse


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"give a range such as 192.168.1.0/24 ({error})") from None


def _interfaces(text: str) -> tuple[Attachment, ...]:
    """Interfaces with their ranges, as in C{em1=192.168.1.0/24,fd00::/64 em2}: what can be a range is one."""
    found: dict[str, list[Network]] = {}
    name = ""
    for word in re.split(r"[\s,]+", text.strip()):
        start, is_named, rest = word.rpartition("=")
        if is_named or (word and not _is_range(word)):
            name = start if is_named else word
            if not re.fullmatch(r"[!-.0-9:-~]{1,15}", name) or name in (".", ".."):
                raise ValueError(f"{name!r} cannot be the name of an interface")
            if name in found:
                raise ValueError(f"{name} is there twice; give all of its ranges at once, with commas between them")
            found[name] = []
        if is_named or (word and _is_range(word)):
            if not name:
                raise ValueError("give an interface such as em1, or with its ranges: em1=192.168.1.0/24,fd00::/64")
            found[name].append(_network(rest))
    _refuse_doubles(found)
    return tuple(Attachment(name, tuple(ranges)) for name, ranges in found.items())


def _is_range(word: str) -> bool:
    return "/" in word or ":" in word or re.fullmatch(r"[0-9.]+", word) is not None


def _refuse_doubles(found: Mapping[str, Collection[Network]]) -> None:
    """No address may belong to two interfaces by the same range."""
    owners: dict[Network, str] = {}
    for name, ranges in found.items():
        for each in ranges:
            if owners.setdefault(each, name) != name:
                raise ValueError(f"{each} is a range of both {owners[each]} and {name}; give it to one of them")


def _server(*schemes: str) -> Callable[[str], str]:
    return lambda text: server_url(text, schemes)


def _user(text: str) -> str:
    if not text.isprintable() or not text or ":" in text:
        raise ValueError("give the name of a user of etcd: printable characters, and no colon")
    return text


def _namespace(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError("give the name of a namespace: at most 63 small letters, digits and dashes between them")
    return text


def _prefix(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+/?", text) or re.search(r"/\.\.?(/|$)", text):
        raise ValueError("give a path such as /kiwi, of letters, digits, dots, dashes and underscores")
    return text.rstrip("/")


def _agent_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", text):
        raise ValueError(
            "give at most 253 letters, digits, dots, dashes and underscores; letters or digits at the ends"
        )
    return text


def _node_name(text: str) -> str:
    if not is_dns_name(text):
        raise ValueError(
            "give the name of a Node: at most 253 small letters, digits, dashes and dots; letters or digits at the ends"
        )
    return text


def _sources(text: str) -> Collection[str]:
    chosen = [each for each in re.split(r"[\s,]+", text) if each]
    if not chosen or not set(chosen) <= set(SOURCES):
        raise ValueError(f"give one of {', '.join(SOURCES)}, or both with a comma between them")
    return chosen


def _class(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    if text and not (
        re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", name) and (is_dns_name(prefix) or not slash)
    ):
        raise ValueError("give a class such as example.com/internal-vip or internal-vip")
    return text


def _whole(text: str, base: int = 10) -> int | None:
    try:
        return int(text, base)
    except ValueError:
        return None


def _ttl(text: str) -> int:
    ttl = _whole(text)
    if ttl is None or not 3 <= ttl <= 86400:
        raise ValueError("give a whole number of seconds, 3 or more (86400 at most)")
    return ttl


def _chain(text: str) -> str:
    if not valid_chain_name(text):
        raise ValueError(
            f"give at most {CHAIN_SIZE} letters, digits, dashes, dots and underscores, and no name of iptables' own"
        )
    return text


def _nft_chain(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_.][^:]*", text):
        raise ValueError("give a name without colons that does not begin with a digit; nft could not read any other")
    return _chain(text)


def _mark(text: str) -> FwMark:
    numbers = [_whole(part, 0) for part in text.split("/")]
    if not 1 <= len(numbers) <= 2 or not all(number and 0 < number <= WHOLE_MARK for number in numbers):
        raise ValueError("give a number from 1 to 0xffffffff, or a mark and the bits that it sets, as in 0x100/0xff00")
    return FwMark(*(number for number in numbers if number is not None))


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 3600:
        raise ValueError("give seconds, from 0.1 to 3600")
    return seconds


def _milliseconds(text: str) -> float:
    milliseconds = _whole(text)
    if milliseconds is None or not 0 <= milliseconds <= 1000:
        raise ValueError("give milliseconds, from 0 (do not ask) to 1000")
    return milliseconds / 1000
