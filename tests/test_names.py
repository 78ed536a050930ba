"""Names that only one process of a host may have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import kiwi
from kiwi.names import NameTaken, take_name

NAME = f"test-{os.getpid()}"
TAKE = "import sys; from kiwi.names import take_name; held = take_name('test', sys.argv[1]); print('taken')"


class NamesTests(SynchronousTestCase):
    def test_one_holder(self) -> None:
        """A name has one holder, and is free when that one lets go of it."""
        first = take_name("test", NAME)
        self.assertRaises(NameTaken, take_name, "test", NAME)
        first.close()
        take_name("test", NAME).close()

    def test_kinds(self) -> None:
        """Names of different kinds are different names, however long they are."""
        with take_name("test", NAME * 100), take_name("other", NAME * 100):
            pass

    def test_processes(self) -> None:
        """Another process does not get it, and leaves nothing behind when it ends."""

        def taken() -> int:
            return subprocess.run(
                [sys.executable, "-c", TAKE, NAME],
                check=False,
                capture_output=True,
                env={"PYTHONPATH": str(Path(kiwi.__file__).parents[1])},
            ).returncode

        with take_name("test", NAME):
            self.assertEqual(taken(), 1)
        self.assertEqual((taken(), taken()), (0, 0))
