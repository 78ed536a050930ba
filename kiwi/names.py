"""Names that only one process of this host may have at a time."""

from __future__ import annotations

import socket
from hashlib import blake2b


class NameTaken(Exception):
    """Another process of this host has the name."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind = kind
        self.name = name


def take_name(kind: str, name: str) -> socket.socket:
    """
    Take a name until the socket that is returned is closed, or this process ends in whatever way. Raises L{NameTaken}.

    The name is an abstract address of a Unix socket (unix(7)): the kernel knows it within one network namespace, which
    is one host as far as addresses and firewalls are concerned, and forgets it together with the process.
    """
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0kiwi {kind} {blake2b(name.encode(), digest_size=16).hexdigest()}")
    except OSError as error:
        holder.close()
        raise NameTaken(kind, name) from error
    return holder
