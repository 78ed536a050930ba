"""The URLs of servers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit


def server_url(text: str, schemes: Sequence[str]) -> str:
    """
    The URL of a server, without a slash at its end. Raises L{ValueError} with what to give instead.

    @param schemes: those that may be used, such as C{http}.
    """
    advice = f"give {' or '.join(f'{scheme}://HOST:PORT' for scheme in schemes)}"
    try:
        parts = urlsplit(text)
    except ValueError:
        # An address in brackets that is none.
        raise ValueError(advice) from None
    if parts.scheme not in schemes:
        raise ValueError(advice)
    try:
        port = parts.port
    except ValueError:
        raise ValueError("its port is not between 1 and 65535") from None
    if port == 0:
        raise ValueError("its port is not between 1 and 65535")
    if not parts.hostname or not re.fullmatch(r"[A-Za-z0-9._:-]+", parts.hostname):
        raise ValueError(advice)
    if parts.query or parts.fragment or parts.username is not None or re.search(r"[^!-~]", text):
        raise ValueError(f"{advice}, and nothing behind it")
    return text.rstrip("/")
