"""
Many whole agents in one process: C{python -m bench.agents IDS OPTIONS}, with the options of C{kiwi} for all of them.

Each has the connections, the store and the converger that it would have in a process of its own. Only the host is in
memory, so no root is needed, and many fit into one machine.
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from kiwi.tap import Options, makeService


def main() -> None:
    ids, *options = sys.argv[1:]
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    for agent_id in ids.split(","):
        chosen = Options()
        chosen.parseOptions(["--no-driver", "--interface", "lo", "--agent-id", agent_id, *options])
        makeService(chosen).startService()
    reactor.run()


if __name__ == "__main__":
    main()
