"""Manifests in a folder, and a server that has what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from attrs import define, field

from .objects import kind_of
from .server import KubernetesState
from .services import Key


@define(eq=False)
class Folder:
    """
    Keeps the objects of a server equal to the manifests in a folder. A file that cannot be read is reported once, and
    what it said before stays.
    """

    path: Path
    state: KubernetesState
    report: Callable[[str], None]
    _seen: dict[Path, tuple[int, int]] = field(factory=dict, init=False)
    _gave: dict[Path, set[tuple[str, Key]]] = field(factory=dict, init=False)

    def read(self) -> None:
        """Read what has changed since the last time."""
        found: dict[Path, tuple[int, int]] = {}
        for path in sorted(self.path.iterdir()):
            if path.suffix in (".yaml", ".yml", ".json"):
                try:
                    about = path.stat()
                except FileNotFoundError:
                    continue
                found[path] = (about.st_mtime_ns, about.st_size)
        for path in found:
            if self._seen.get(path) != found[path]:
                self._read(path)
        for path in self._gave.keys() - found.keys():
            self._give(path, [])
        self._seen = found

    def _read(self, path: Path) -> None:
        try:
            documents = [each for each in yaml.safe_load_all(path.read_text()) if each is not None]
            for document in documents:
                self.state.read(document)
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            self.report(f"{path} cannot be read: {' '.join(str(error).split())}")
            return
        if documents or path not in self._gave:
            self._give(path, documents)
        else:
            self.report(f"{path} is empty; delete it to delete what it said")

    def _give(self, path: Path, documents: list[dict[str, Any]]) -> None:
        stored = [self.state.put(document) for document in documents]
        given = {(kind_of(each).plural, each.key) for each in stored}
        before = self._gave.pop(path, set())
        if given:
            self._gave[path] = given
        elsewhere = set().union(*self._gave.values())
        for plural, (namespace, name) in sorted(before - elsewhere):
            if (namespace, name) in self.state.objects(plural):
                self.state.delete(name, namespace, plural)
