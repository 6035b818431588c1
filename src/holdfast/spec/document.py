"""YAML text → a tree that knows where everything stands.

Pure. Built from the parser's events, so that nothing is decided behind our back: no tags, no anchors, no second
document, no duplicate key, bounded size, depth and number of nodes. Plain scalars follow the core schema of YAML 1.2:
`on`, `yes` and `1:30` are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml import events as yaml
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from holdfast.spec.mistakes import Ledger, Source, Span, quote
from holdfast.units import show_size

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 20_000

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,18}|[0-9]{1,18}(\.[0-9]{0,18})?)([eE][-+]?[0-9]{1,3})?")
_SECRETS = re.compile(r".*\bsecrets\b[\"']?\s*[:.]")
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A value as written; `plain` when it stands without quotes."""

    at: Span
    text: str
    plain: bool = True

    @property
    def value(self) -> Any:
        """None, bool, int, float or str, by the core schema of YAML 1.2."""
        if not self.plain:
            return self.text
        if self.text in _CONSTANTS:
            return _CONSTANTS[self.text]
        if _INTEGER.fullmatch(self.text):
            return int(self.text)
        if _OCTAL_OR_HEX.fullmatch(self.text):
            return int(self.text, 0)
        return float(self.text) if _FLOAT.fullmatch(self.text) else self.text


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    at: Span
    items: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Entry:
    """`key: value` of a table."""

    key_at: Span
    value: Node


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping; keys are text, in their order."""

    at: Span
    entries: dict[str, Entry] = field(default_factory=dict)


Node: TypeAlias = Scalar | Items | Table


class _StopReadingError(Exception):
    """The rest of this text cannot be read; why is in the ledger."""


def parse(source: Source, ledger: Ledger, *, skip: int = 0) -> Node | None:
    """The tree of `source` from character `skip` on; None when there is none, or when it cannot be read (then the
    ledger says why)."""
    ledger.unread, before = True, ledger.unread
    if len(source.text.encode("utf-8", "replace")) > MAX_BYTES:
        ledger.add(f"{source.name} is bigger than {show_size(MAX_BYTES)}, which no run file is")
        return None
    try:
        tree = _Builder(source, ledger, skip).build(YAML(typ="safe", pure=True).parse(source.text[skip:]))
    except _StopReadingError:
        pass  # the ledger says why
    except MarkedYAMLError as error:
        ledger.add(*_said(source, error, skip))
    except (YAMLError, ValueError, OverflowError) as error:
        ledger.add(f"{source.name} is not YAML: {quote(' '.join(str(error).split()), 120)}")
    else:
        ledger.unread = before
        return tree
    ledger.hidden += _secret_lines(source)
    return None


def _secret_lines(source: Source) -> list[Span]:
    """What may be secrets in a text that could not be read: values on the line of `secrets:` and those below it."""
    found, depth = [], None
    for number, line in enumerate(source.text.split("\n")):
        indent = len(line) - len(line.lstrip())
        if opened := _SECRETS.match(line):
            depth = indent
            found.append(Span(source, number, opened.end(), number, len(line)))
        elif depth is not None and line.strip():
            if indent <= depth and line[indent] not in "-}]":
                depth = None
                continue
            found.append(Span(source, number, line.find(":") + 1, number, len(line)))
    return found


class _Builder:
    """Folds parser events into nodes, with a stack of its own, so that depth is ours to bound."""

    def __init__(self, source: Source, ledger: Ledger, skip: int) -> None:
        self._source = source
        self._skip = skip
        self._ledger = ledger
        self._root: Node | None = None
        self._open: list[Items | Table] = []
        self._keys: list[tuple[str, Span] | None] = []  # one for each open node: the key that awaits its value
        self._nodes = 0
        self._documents = 0

    def build(self, events: Iterator[Any]) -> Node | None:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    self._refuse(event, "a run file is one document; a second one begins here", "remove the `---`")
            elif isinstance(event, yaml.AliasEvent):
                self._refuse(event, f"anchors and aliases are not allowed, found *{event.anchor}", "write it out")
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                self._open.pop()
                self._keys.pop()
            elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent, yaml.ScalarEvent)):
                self._node(event)
        return self._root

    def _node(self, event: Any) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._refuse(event, f"more than {MAX_NODES} values, which no run file has")
        if event.anchor is not None:
            self._refuse(event, f"anchors and aliases are not allowed, found &{event.anchor}", "write it out")
        if event.ctag is not None:
            self._refuse(event, f"tags are not allowed, found {event.ctag}", "remove the tag")
        at = self._span(event)
        if isinstance(event, yaml.ScalarEvent):
            self._place(Scalar(at, event.value, plain=event.style is None), event)
            return
        opened: Items | Table = Table(at) if isinstance(event, yaml.MappingStartEvent) else Items(at)
        self._place(opened, event)
        self._open.append(opened)
        self._keys.append(None)
        if len(self._open) > MAX_DEPTH:
            self._refuse(event, f"nested more than {MAX_DEPTH} deep, which no run file is")

    def _place(self, node: Node, event: Any) -> None:
        if not self._open:
            self._root = node
        elif isinstance(parent := self._open[-1], Items):
            parent.items.append(node)
        elif (key := self._keys[-1]) is not None:
            self._keys[-1] = None
            self._enter(parent, key, node)
        elif isinstance(node, Scalar):
            self._keys[-1] = (node.text, node.at)
        else:
            self._refuse(event, "a key must be a word, found a list or a table")

    def _enter(self, parent: Table, key: tuple[str, Span], node: Node) -> None:
        name, at = key
        if (first := parent.entries.get(name)) is not None:
            line = first.key_at.line + 1
            self._ledger.add(f"{quote(name)} is given twice; first on line {line}", at, hint="remove one of them")
        else:
            parent.entries[name] = Entry(at, node)

    def _span(self, event: Any) -> Span:
        return _span(self._source, event.start_mark, event.end_mark, self._skip)

    def _refuse(self, event: Any, message: str, hint: str = "") -> None:
        self._ledger.add(message, self._span(event), hint=hint)
        raise _StopReadingError


def _span(source: Source, start: Any, end: Any, skip: int) -> Span:
    """From mark to mark; only the first line is moved by what was skipped."""
    first, last = (mark.column + (0 if mark.line else skip) for mark in (start, end))
    return Span(source, start.line, first, end.line, last)


def _said(source: Source, error: MarkedYAMLError, skip: int) -> tuple[str, Span | None]:
    """A syntax error in plain words, and where it is."""
    problem = " ".join(str(error.problem or error.context or "it cannot be read").split())
    unended = "end of stream" in problem or "<stream end>" in problem
    if unended and error.context_mark is not None:
        problem, mark = f"what begins here does not end: {error.context or problem}", error.context_mark
    else:
        mark = error.problem_mark or error.context_mark
    at = _span(source, mark, mark, skip) if mark else None
    if "'\\t'" in problem or "\\t" in problem:
        return "a tab is used for indentation; YAML wants spaces", at
    if "mapping values are not allowed" in problem:
        return "a ':' where none can be; put text that contains ': ' in quotes, or check the indentation", at
    return f"this is not YAML: {problem}", at
