"""What is known of the Services."""

from __future__ import annotations

from ipaddress import IPv4Address
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from kiwi.kubernetes.decoding import Decoded
from kiwi.kubernetes.known import Known
from kiwi.model import Protocol, Service, ServiceName, ServicePort

WEB, DNS = ServiceName("default", "web"), ServiceName("default", "dns")


def decoded(name: ServiceName, *addresses: str, problems: tuple[str, ...] = ()) -> Decoded:
    ports = frozenset({ServicePort(Protocol.TCP, 80)})
    service = Service(name, ports, tuple(map(IPv4Address, addresses))) if addresses else None
    return Decoded(name, service, problems)


class KnownTests(SynchronousTestCase):
    def test_learn(self) -> None:
        """A Service that asks for addresses is known until it asks for none."""
        known: Known[ServiceName, Service] = Known()
        known.learn(decoded(WEB, "10.0.0.1"))
        known.learn(decoded(WEB, "10.0.0.2"))
        known.learn(decoded(DNS))
        self.assertEqual(known.values(), {WEB: decoded(WEB, "10.0.0.2").value})
        known.learn(decoded(WEB))
        self.assertEqual(known.values(), {})

    def test_replace(self) -> None:
        """What is not among all there is, is gone."""
        known: Known[ServiceName, Service] = Known()
        known.learn(decoded(WEB, "10.0.0.1"))
        known.replace([decoded(DNS, "10.0.0.2")])
        self.assertEqual(known.values(), {DNS: decoded(DNS, "10.0.0.2").value})

    def test_handed_out(self) -> None:
        """What was handed out stays as it was."""
        known: Known[ServiceName, Service] = Known()
        known.learn(decoded(WEB, "10.0.0.1"))
        services = known.values()
        known.forget(WEB)
        self.assertEqual(services, {WEB: decoded(WEB, "10.0.0.1").value})

    def test_edition(self) -> None:
        """The edition is another one exactly when the Services are."""
        known: Known[ServiceName, Service] = Known()
        editions = [known.edition]
        for change in (
            lambda: known.learn(decoded(WEB, "10.0.0.1")),
            lambda: known.learn(decoded(WEB, "10.0.0.1", problems=("p",))),
            lambda: known.replace([decoded(WEB, "10.0.0.1"), decoded(DNS)]),
            lambda: known.forget(DNS),
            lambda: known.learn(decoded(WEB, "10.0.0.2")),
            lambda: known.replace([]),
        ):
            change()
            editions.append(known.edition)
        self.assertEqual(
            [after != before for before, after in pairwise(editions)],
            [True, False, False, False, True, True],
        )

    def test_problems(self) -> None:
        """A problem is told when it is new: again only after it was gone."""
        known: Known[ServiceName, Service] = Known()
        self.assertEqual(known.learn(decoded(WEB, problems=("p", "q"))), [(WEB, "p"), (WEB, "q")])
        self.assertEqual(known.replace([decoded(WEB, problems=("q", "r"))]), [(WEB, "r")])
        self.assertEqual(known.learn(decoded(WEB)), [])
        self.assertEqual(known.learn(decoded(WEB, problems=("q",))), [(WEB, "q")])
        known.forget(WEB)
        self.assertEqual(known.learn(decoded(WEB, problems=("q",))), [(WEB, "q")])

    def test_nameless(self) -> None:
        """Of a Service without a name, nothing is remembered."""
        known: Known[ServiceName, Service] = Known()
        for _ in range(2):
            self.assertEqual(known.learn(Decoded(None, None, ("it has no name",))), [(None, "it has no name")])
        self.assertEqual(known.names(), set())
