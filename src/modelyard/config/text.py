"""YAML files → one tree of plain values, with the file and line of each.

Used by `build` alone. It reads files, replaces `${NAME}` in string scalars, refuses duplicate keys, follows
anchors within a bound, and joins included files. It knows section names, not what they mean.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from modelyard.config.problems import ConfigErrors, Problem, is_below, join
from modelyard.config.reading import FilesRead

LARGEST_FILE = 2**20
DEEPEST = 32
MOST_NODES = 50_000
MOST_FILES = 256
_TAG = "tag:yaml.org,2002:"
_PLACEHOLDER = re.compile(r"\$(\$)?\{(?:([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\})?")
_JOINED = ("models", "engines", "devices")
_APPENDED = ("keys", "preload")


class PlainText(str):
    """An unquoted scalar after interpolation: free-form sections give it the type that YAML would."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Position:
    """Where a value was written; no file means a text that came without one."""

    file: Path | None
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else f"line {self.line}"


@dataclass(slots=True)
class Document:
    """The joined tree and the position of each path in it; `filled` are the paths that took something from
    the environment, which may be a secret."""

    tree: dict[str, object] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, path: str, message: str, position: Position | None) -> None:
        self.problems.append(Problem(path, message, str(position) if position else ""))


def read(path: Path | None, text: str | None, environ: Mapping[str, str], reading: FilesRead) -> Document:
    """The document of a file, or of `text` as if it stood in that file, with everything it includes; what is
    read is noted in `reading`.

    Problems that leave the rest readable are collected in `problems`. Raises ConfigErrors when a file cannot
    be read at all or is not YAML.
    """
    whole = Document()
    if path is None and text is None:
        return whole
    _Joiner(whole, environ, reading).add(path, text if text is not None else _text_of(path, reading))
    return whole


def retype(value: object) -> object:
    """The value as YAML would have typed it, for free-form sections: `${CTX:-4096}` becomes an integer."""
    if isinstance(value, PlainText):
        loader = yaml.SafeLoader("")
        tag = loader.resolve(yaml.ScalarNode, str(value), (True, False))  # type: ignore[no-untyped-call]
        return _scalar(loader, yaml.ScalarNode(tag, str(value)))
    if isinstance(value, dict):
        return {key: retype(item) for key, item in value.items()}
    if isinstance(value, list):
        return [retype(item) for item in value]
    return value


def _text_of(path: Path | None, reading: FilesRead) -> str:
    assert path is not None
    if (found := _look(path)) is not None:
        reading.see(path, found)  # before it is opened: to open a pipe may take for ever
    try:
        with path.open("rb") as file:
            reading.see(path, os.fstat(file.fileno()))
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        reading.note(path, found)
        raise ConfigErrors([Problem("", f"cannot read {path}: {error.strerror}")]) from None
    if len(raw) > LARGEST_FILE:
        raise ConfigErrors([Problem("", f"{path} is larger than 1 MiB; split it with `include:`")])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigErrors([Problem("", "is not UTF-8 text", f"{path}:{line}")]) from None


def _look(path: Path) -> os.stat_result | None:
    """What is there; None for nothing that could be looked at."""
    try:
        return path.stat()
    except OSError:
        return None


class _Joiner:
    """Reads files and joins them into one document; each file is read once. `_open` are those that are being
    read: each but the first is included by the one before it."""

    def __init__(self, whole: Document, environ: Mapping[str, str], reading: FilesRead) -> None:
        self._whole = whole
        self._environ = environ
        self._reading = reading
        self._seen: set[Path] = set()
        self._open: list[Path] = []

    def add(self, path: Path | None, text: str) -> None:
        if path is not None:
            self._seen.add(path.resolve())
            self._open.append(path.resolve())
        part = _Reader(path, self._environ).document(text)
        self._whole.problems += part.problems
        included = part.tree.pop("include", [])
        self._join(part)
        for name in self._includes(included, part.positions, path):
            self.add(name, _text_of(name, self._reading))
        if path is not None:
            self._open.pop()

    def _includes(self, value: object, positions: dict[str, Position], path: Path | None) -> list[Path]:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self._whole.refuse("include", "is not a list of file names", positions.get("include"))
            return []
        base = path.parent if path else Path.cwd()
        files: list[Path] = []
        for index, name in enumerate(names):
            is_glob = "*" in name and not name.startswith("/")
            found = self._reading.glob(base, name) if is_glob else [base / name]
            at = positions.get(f"include[{index}]", positions.get("include"))
            for file in found:
                real = Path(os.path.realpath(file))
                if real in self._seen:
                    if real in self._open and not is_glob:
                        self._refuse_circle(real, f"include[{index}]", at)
                    continue
                self._seen.add(real)
                there = _look(file)
                if there is None or not stat.S_ISREG(there.st_mode):
                    self._reading.note(file, there)
                    self._whole.refuse(f"include[{index}]", f"{file} is not a file", at)
                elif len(self._seen) > MOST_FILES:
                    self._whole.refuse("include", f"more than {MOST_FILES} files", at)
                    return files
                else:
                    files.append(file)
        return files

    def _refuse_circle(self, file: Path, path: str, at: Position | None) -> None:
        way = [str(each) for each in (*self._open[self._open.index(file) :], file)]
        self._whole.refuse(path, f"makes {file} include itself: {' includes '.join(way)}", at)

    def _join(self, part: Document) -> None:
        tree = self._whole.tree
        for section, value in part.tree.items():
            mine = tree.get(section)
            if section not in tree:
                tree[section] = value
            elif section in _JOINED and isinstance(mine, dict) and isinstance(value, dict):
                for name, item in value.items():
                    self._take_entry(mine, join(section, name), name, item, part)
                continue
            elif section in _APPENDED and isinstance(mine, list) and isinstance(value, list):
                start = len(mine)
                mine.extend(value)
                for index in range(len(value)):
                    _move(part, self._whole, join(section, index), join(section, start + index))
                continue
            else:
                first = self._whole.positions.get(section)
                message = f"is set twice; the other one is at {first}"
                self._whole.refuse(section, message, part.positions.get(section))
                continue
            _move(part, self._whole, section, section)

    def _take_entry(
        self, mine: dict[str, object], path: str, name: str, item: object, part: Document
    ) -> None:
        if name in mine:
            message = f"is defined twice; the other one is at {self._whole.positions.get(path)}"
            self._whole.refuse(path, message, part.positions.get(path))
            return
        mine[name] = item
        _move(part, self._whole, path, path)


def _move(source: Document, target: Document, old: str, new: str) -> None:
    """Copy what is known of a path and all below it."""
    for path, position in source.positions.items():
        if is_below(path, old):
            target.positions[new + path[len(old) :]] = position
    target.filled |= {new + path[len(old) :] for path in source.filled if is_below(path, old)}


class _Reader:
    """One YAML text → a document. Counts nodes, so that anchors cannot blow a small text up."""

    def __init__(self, file: Path | None, environ: Mapping[str, str]) -> None:
        self._file = file
        self._environ = environ
        self._document = Document()
        self._nodes = 0
        self._loader = yaml.SafeLoader("")

    def document(self, text: str) -> Document:
        node = self._compose(text)
        if node is None:
            raise ConfigErrors([Problem("", "is empty; name at least one section", str(self._at(1)))])
        if not isinstance(node, yaml.MappingNode):
            raise ConfigErrors(
                [Problem("", "is not a mapping of sections such as `models:`", self._of(node))]
            )
        tree = self._mapping(node, "", 0)
        self._document.tree = tree
        return self._document

    def _compose(self, text: str) -> yaml.Node | None:
        try:
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            message = f"is not valid YAML: {error.problem or error.context}"
            if error.problem_mark and text[: error.problem_mark.index + 1].endswith("${"):
                message += '; inside {…} and […] a reference needs quotes, as in "${NAME}"'
            raise ConfigErrors([Problem("", message, str(self._at(line)))]) from None
        except yaml.YAMLError:
            message = "holds a character that YAML does not allow"
            raise ConfigErrors([Problem("", message, str(self._at(1)))]) from None
        except RecursionError:
            raise ConfigErrors([Problem("", "is nested too deeply", str(self._at(1)))]) from None

    def _at(self, line: int) -> Position:
        return Position(self._file, line)

    def _of(self, node: yaml.Node) -> str:
        return str(self._at(node.start_mark.line + 1))

    def _value(self, node: yaml.Node, path: str, depth: int) -> object:
        self._nodes += 1
        if self._nodes > MOST_NODES or depth > DEEPEST:
            limit = f"{MOST_NODES} values" if self._nodes > MOST_NODES else f"{DEEPEST} levels"
            message = f"is larger than {limit} once its anchors are followed"
            raise ConfigErrors([Problem(path, message, self._of(node))])
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self._document.positions[join(path, index)] = self._at(item.start_mark.line + 1)
                items.append(self._value(item, join(path, index), depth + 1))
            return items
        assert isinstance(node, yaml.ScalarNode)
        return self._text(node, path)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, object]:
        result: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key, item in node.value:
            at = self._at(key.start_mark.line + 1)
            if key.tag == _TAG + "merge":
                for name, value in self._merged(item, path, depth):
                    merged.setdefault(name, value)
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
                self._document.refuse(
                    path, "has a key that YAML does not read as text; put quotes around it", at
                )
                continue
            below = join(path, key.value)
            if key.value in result:
                first = self._document.positions[below]
                self._document.refuse(below, f"is written twice; the first is at {first}", at)
                continue
            self._document.positions[below] = at
            result[key.value] = self._value(item, below, depth + 1)
        return {**merged, **result}

    def _merged(self, node: yaml.Node, path: str, depth: int) -> list[tuple[str, object]]:
        """What `<<:` brings in; its positions are those of the place it was written."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        entries: list[tuple[str, object]] = []
        for part in nodes:
            value = self._value(part, path, depth + 1)
            if isinstance(value, dict):
                entries += value.items()
            else:
                self._document.refuse(path, "`<<` takes a mapping", self._at(node.start_mark.line + 1))
        return entries

    def _text(self, node: yaml.ScalarNode, path: str) -> object:
        at = self._at(node.start_mark.line + 1)
        try:
            value = _scalar(self._loader, node)
        except (yaml.YAMLError, ValueError):
            self._document.refuse(path, "has a YAML tag or value that is not allowed here", at)
            return None
        if not isinstance(value, str) or "${" not in value:
            return value
        value = self._interpolate(value, path, at)
        return value if node.style else PlainText(value)

    def _interpolate(self, text: str, path: str, at: Position) -> str:
        def replace(match: re.Match[str]) -> str:
            escaped, name, default = match.groups()
            if escaped:
                return match[0][1:]
            if name is None:
                self._document.refuse(path, "has a `${` that is not ${NAME} or ${NAME:-default}", at)
                return ""
            value = self._environ.get(name)
            if value:
                self._document.filled.add(path)
            if default is not None:
                return value or str(default[2:])
            if value is None:
                message = (
                    f"needs the environment variable {name}, which is not set; or write ${{{name}:-default}}"
                )
                self._document.refuse(path, message, at)
            return value or ""

        return _PLACEHOLDER.sub(replace, text)


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> object:
    """A scalar's value; dates and other kinds that no field takes stay text."""
    if node.tag == _TAG + "timestamp":
        return node.value
    value: object = loader.construct_object(node)
    if isinstance(value, str | int | float | bool | None):
        return value
    raise ValueError(node.tag)
