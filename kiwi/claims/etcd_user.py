"""Who an agent is to etcd, where etcd asks for that."""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen


@frozen
class EtcdUser:
    """
    A user of etcd.

    @ivar read_password: gives the password as it is now. Raises L{OSError} or L{ValueError}, with one printable line,
        where there is none to be had.
    """

    name: str
    read_password: Callable[[], str] = field(repr=False)
