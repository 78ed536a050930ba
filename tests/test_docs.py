"""What the documentation says of the options, and which pages there are."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kiwi.tap import Options

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text()

ALIASES = {"id": "agent-id"}
"""Second names of options."""

OPTIONS = {name.rstrip("=") for name in Options().longOpt} - {"help", "version"}
"""All options, by their long names."""


def variable(option: str) -> str:
    return f"KIWI_{option.upper().replace('-', '_')}"


class OptionsTests(SynchronousTestCase):
    """Every option there is, and no other."""

    def test_page(self) -> None:
        """C{docs/options.rst} has a paragraph about each, with its variable."""
        terms = re.findall(r"^(``--.*) \(``(KIWI_\w+)``\)", (ROOT / "docs/options.rst").read_text(), re.MULTILINE)
        found = [(name, variable) for names, variable in terms for name in re.findall(r"``--([a-z-]+)``", names)]
        self.assertEqual(sorted(found), sorted((name, variable(ALIASES.get(name, name))) for name in OPTIONS))

    def test_readme(self) -> None:
        """The README's table has a row for each."""
        rows = re.findall(r"^(``--.*?``)  ", README, re.MULTILINE)
        self.assertEqual(sorted(name for row in rows for name in re.findall(r"--([a-z-]+)", row)), sorted(OPTIONS))

    def test_deployed(self) -> None:
        """Every variable in C{deploy/} is that of an option."""
        texts = [path.read_text() for path in (ROOT / "deploy").rglob("*.yaml")]
        found = {each for text in texts for each in re.findall(r"KIWI_\w+", text)}
        self.assertIn("KIWI_NODE_NAME", found)
        self.assertEqual(found - {variable(name) for name in OPTIONS}, set())


class PagesTests(SynchronousTestCase):
    def test_index(self) -> None:
        """The README's index names every page."""
        _, index = README.split("\nDocumentation\n=============\n")
        pages = {path.name for path in (ROOT / "docs").glob("*.rst")}
        self.assertEqual(set(re.findall(r"^``docs/(\w+\.rst)``", index, re.MULTILINE)), pages)
