"""What pydantic says → what a person is told: the key, the spot, what was expected, an example.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from holdfast.spec.combine import lookup
from holdfast.spec.document import Node, Scalar, Table
from holdfast.spec.fields import WRONG, found
from holdfast.spec.mistakes import Ledger, Mistake, Span, nearest, quote, whole
from holdfast.spec.run_file import Spec
from holdfast.spec.shape import choices, field_at, fields_of, section_at

Path = tuple[str | int, ...]

# keys of neighbouring tools, and keys that people look for elsewhere
ELSEWHERE: Mapping[str, str] = {
    "env": "envs", "environment_variables": "envs", "env_vars": "envs",
    "command": "run", "cmd": "run", "entrypoint": "run", "script": "run",
    "python": "environment.python", "image": "environment.image", "conda": "environment.conda",
    "infra": "resources.infra", "accelerators": "resources.accelerators", "gpus": "resources.accelerators",
    "nodes": "num_nodes", "working_dir": "workdir", "mounts": "file_mounts", "volumes": "file_mounts",
    "session_limit": "segment", "timeout": "max_duration", "stop_grace": "stop_grace_period",
    "job_recovery": "restart", "retry": "restart",
    "max_retries": "restart.max_restarts", "max_restarts": "restart.max_restarts",
    "save_every": "checkpoint.every", "keep_last": "checkpoint.keep.last", "max_size": "logs.keep",
}  # fmt: skip

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a table (key: value)",
    "model": "a table (key: value)",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "{} or more"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "{} or less"),
    "less_than": ("lt", "less than {}"),
}
_YES_NO = {"on": "true", "yes": "true", "off": "false", "no": "false"}


def note(errors: Sequence[Any], root: Table, ledger: Ledger) -> None:
    """Put every error of a validation into the ledger."""
    for error in errors:
        path: Path = tuple(step for step in error["loc"] if step != "[key]")
        ledger.found.append(_mistake(error, path, root))


def dotted(path: Sequence[str | int]) -> str:
    """`checkpoint.every[1]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _mistake(error: Mapping[str, Any], path: Path, root: Table) -> Mistake:
    while len(path) > 1 and isinstance(lookup(root, path[:-1])[0], Scalar):
        path = path[:-1]  # a value that is short for a list or a table is called what it was called
    node, key_at = lookup(root, path)
    if error["type"] == "extra_forbidden":
        return _unknown(path, key_at)
    if error["type"] == "missing":
        parent = node.at if node is not None and path[:-1] else whole(root.at.source)
        return Mistake(message=f"{dotted(path)} is missing", at=key_at or parent, example=example(path))
    said, hint = _said(error, path)
    return Mistake(message=f"{dotted(path)}: {said}", at=_spot(node, key_at), hint=hint, example=example(path))


def _spot(node: Node | None, key_at: Span | None) -> Span | None:
    """The value; the key where the value is a table, whose own span is a single point."""
    if node is None or (key_at is not None and (isinstance(node, Table) or node.at.line < 0)):
        return key_at
    empty = (node.at.line, node.at.column) == (node.at.end_line, node.at.end_column)
    return key_at if empty and key_at is not None else node.at


def _unknown(path: Path, key_at: Span | None) -> Mistake:
    key, parent = str(path[-1]), path[:-1]
    section = section_at(Spec, parent)
    known = list(fields_of(section)) if section is not None else []
    where = f" in {dotted(parent)}" if parent else ""
    meant = nearest(key, known)
    if not meant and key in ELSEWHERE:
        meant = ELSEWHERE[key]
    if meant:
        message = f"unknown key {quote(key)}{where}; did you mean {meant!r}?"
        shown = example((*parent, meant)) if meant in known else _nested(meant)
        return Mistake(message=message, at=key_at, example=shown)
    return Mistake(message=f"unknown key {quote(key)}{where}", at=key_at, hint=f"known here: {', '.join(known)}")


def _said(error: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """(sentence, hint) of an error of a value."""
    kind, context, value = str(error["type"]), error.get("ctx", {}), error.get("input")
    value = ... if path[0] == "secrets" else value
    if kind == WRONG:
        return context["said"], context["hint"]
    if kind == "literal_error":
        return _not_a_choice(path, value)
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = context[name]
        said = words.format(f"{bound:g}" if isinstance(bound, float) else bound)
        return f"must be {said}, found {found(value)}", ""
    expected = next((words for start, words in _EXPECTED.items() if kind.startswith(start + "_")), "")
    if not expected:
        return f"{error['msg']}, found {found(value)}", ""
    hint = f"write {_YES_NO[value]}" if expected == "true or false" and value in _YES_NO else ""
    if expected == "text" and isinstance(value, (int, float)):
        hint = f'write "{value}" in quotes'
    return f"expected {expected}, found {found(value)}", hint


def _not_a_choice(path: Path, value: object) -> tuple[str, str]:
    field = field_at(Spec, path)
    words = choices(field.annotation) if field is not None else []
    meant = nearest(value, words) if isinstance(value, str) else ""
    said = f"expected one of {', '.join(words)}, found {found(value)}"
    return (f"{said}; did you mean {meant!r}?" if meant else said), ""


def example(path: Sequence[str | int]) -> str:
    """`key: value` as one would write it; empty where the schema has none."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    section = section_at(Spec, path[:-1]) if path else None
    field = fields_of(section).get(str(path[-1])) if section is not None else None
    if field is None or field_at(Spec, path) is not field:
        return ""
    shown = field.examples[0] if field.examples else default_text(Spec, path)
    return f"{path[-1]}: {shown}" if shown else ""


def _nested(path: str) -> str:
    """The example of a dotted path with its tables around it, on one line."""
    *tables, _ = path.split(".")
    shown = example(path.split("."))
    for table in reversed(tables):
        shown = f"{table}: {{{shown}}}"
    return shown


def default_text(root: type[Any], path: Sequence[str | int]) -> str:
    """A field's default as one would write it; empty for none, for required ones and for tables."""
    section, field = section_at(root, path[:-1]), field_at(root, path)
    if section is None or field is None or field.is_required() or section_at(root, path) is not None:
        return ""
    attribute = next(name for name, known in section.model_fields.items() if known is field)
    dumped = section.model_construct().model_dump(mode="json", include={attribute}, by_alias=False)[attribute]
    return _AS_TEXT.get(str(dumped), lambda: _plain(dumped))()


def _plain(dumped: Any) -> str:
    if isinstance(dumped, bool):
        return str(dumped).lower()
    if isinstance(dumped, float):
        return f"{dumped:g}"
    return f"[{', '.join(map(str, dumped))}]" if isinstance(dumped, list) else str(dumped)


_AS_TEXT: Mapping[str, Callable[[], str]] = {"None": str, "[]": str, "{}": str, "": str}
