"""Finding one's way in the schema by the path of a key, as it stands in the file.

Pure. List positions and the keys of free tables (`envs`) are steps of a path like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from holdfast.spec.fields import Section


def key_of(name: str, field: FieldInfo) -> str:
    """The key in the file."""
    return field.alias or name


def section_in(annotation: Any) -> type[Section] | None:
    """The table that a field holds, alone, as an option, or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (section_in(part) for part in get_args(annotation))
    return next((section for section in found if section is not None), None)


def fields_of(section: type[Section]) -> dict[str, FieldInfo]:
    """The fields of a table by their keys."""
    return {key_of(name, field): field for name, field in section.model_fields.items()}


def field_at(root: type[Section], path: Sequence[str | int]) -> FieldInfo | None:
    """The field that a path leads to or into; None when it leaves the schema."""
    section: type[Section] | None = root
    found: FieldInfo | None = None
    for step in path:
        if isinstance(step, int) or (found is not None and get_origin(found.annotation) is dict and section is None):
            continue
        field = fields_of(section).get(step) if section is not None else None
        if field is None:
            return found if found is not None and get_origin(found.annotation) is dict else None
        found, section = field, section_in(field.annotation)
    return found


def section_at(root: type[Section], path: Sequence[str | int]) -> type[Section] | None:
    """The table whose keys stand at a path."""
    if not path:
        return root
    field = field_at(root, path)
    return section_in(field.annotation) if field is not None else None


def choices(annotation: Any) -> list[str]:
    """The words of a Literal, also of an optional one."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in choices(part)]


def walk(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field with its dotted path, tables before what they hold."""
    for key, field in fields_of(section).items():
        yield prefix + key, field
        inner = section_in(field.annotation)
        if inner is not None:
            between = "<NAME>." if get_origin(field.annotation) is dict else ""
            yield from walk(inner, f"{prefix}{key}.{between}")
