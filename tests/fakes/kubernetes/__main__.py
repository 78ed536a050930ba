"""A small API server, with nothing behind it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from twisted.internet.task import LoopingCall

from . import GROUPS, VERSIONS, Folder, KubernetesResource, KubernetesState


def main(arguments: Sequence[str]) -> None:
    """Serve until told to stop."""
    from twisted.internet import reactor
    from twisted.internet.endpoints import TCP4ServerEndpoint
    from twisted.internet.interfaces import IListeningPort
    from twisted.web.server import Site

    parser = argparse.ArgumentParser(prog="tests.fakes.kubernetes", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="ADDRESS:PORT")
    parser.add_argument("--api", default=",".join(VERSIONS), metavar="VERSION,...", help="the versions to offer")
    parser.add_argument("--groups", default=",".join(GROUPS), metavar="GROUP/VERSION,...", help="what else to offer")
    parser.add_argument("--watch", type=Path, metavar="FOLDER", help="serve the manifests in it")
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    versions, groups = options.api.split(","), [each for each in options.groups.split(",") if each]
    if not port.isdigit() or not set(versions) <= set(VERSIONS) or not set(groups) <= set(GROUPS):
        parser.error("wrong address or version")

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def now() -> str:
        return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    clock: Any = reactor
    state = KubernetesState(versions=versions, groups=groups, clock=clock, now=now)
    if options.watch is not None:
        LoopingCall(Folder(options.watch, state, report).read).start(0.1).addErrback(lambda f: report(f.getTraceback()))
    LoopingCall(state.bookmark).start(60).addErrback(lambda f: report(f.getTraceback()))

    def listening(listener: IListeningPort) -> None:
        where: Any = listener.getHost()
        print(f"Services at http://{where.host}:{where.port} in {', '.join(versions)}", flush=True)

    def failed(failure: Any) -> None:
        report(failure.getErrorMessage())
        clock.stop()

    TCP4ServerEndpoint(clock, int(port), interface=host).listen(Site(KubernetesResource(state))).addCallbacks(
        listening, failed
    )
    clock.run()


if __name__ == "__main__":
    main(sys.argv[1:])
