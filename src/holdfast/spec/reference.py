"""The run file described, from the schema itself: docs/reference/schema.json and docs/reference/run-file.md."""

from __future__ import annotations

from typing import Any, get_origin

from pydantic.fields import FieldInfo

from holdfast.spec.explain import default_text
from holdfast.spec.fields import Section
from holdfast.spec.run_file import Spec
from holdfast.spec.shape import choices, fields_of, section_in, walk
from holdfast.spec.support import BEGINNINGS, is_supported

SHORT_FORMS = frozenset({"mirror", "publish"})  # tables that may be given as one text
_HEAD = """# The run file

`holdfast.yaml`: YAML 1.2, without tags, anchors or duplicate keys; only `run` is required. This page is printed by
`holdfast schema --markdown`, the JSON schema by `holdfast schema`.

- **Quantities** carry their unit: durations `30s 15m 12h 7d 1h30m 500ms`, sizes `64MiB 2GB` (MB is 10^6, MiB 2^20),
  rates `200MB/s`, percentages `3%`, triggers `15m`, `1000 steps`, `1 epoch`.
- **Paths** that are relative stand on the folder of the (first) run file. `${name}`, `${run}` (the run id) and
  `${VARIABLE}` of `envs` are replaced in `workdir`, `environment.python`, `checkpoint.dir`, `checkpoint.memory_dir`,
  the URL of `checkpoint.mirror` and the `file` of a secret, and nowhere else: `run` and `setup` go to `bash -c` (`sh`
  where there is no bash) untouched. A `run` that is a list goes without any shell.
- **Several files** (`-f a.yaml -f b.yaml`) are merged key by key, later ones over earlier ones; `--set a.b=c` goes over
  files. `--env K=V`, `--env K`, `--secret K=V` and `--secret K` give variables and secrets (`K` alone: from the
  caller's environment, which other users of the machine cannot see in a list of processes).
- **null** as an environment variable or secret means that the caller must give it.
- **Code**: each run gets a snapshot of `workdir`. `.gitignore` and `.holdfastignore` are honoured at every level; in
  `.holdfastignore` a line `!data/` takes back what `.gitignore` leaves out. `.git`, `__pycache__` and virtual
  environments are left out. More than 2 GiB or 100,000 files are refused: give data by absolute paths. With
  `holdfast run -- COMMAND` and no run file the command runs where it is called; `--snapshot` changes that.
- **Environment**: the caller's is inherited. Recorded, and so the same after a reboot, are `envs` and the few variables
  that choose programs, libraries and devices (PATH, CONDA_PREFIX, CUDA_VISIBLE_DEVICES, …); secrets never. With
  `resources.accelerators` each attempt gets the devices that it has in CUDA_VISIBLE_DEVICES.

A field marked *later* is part of the schema already, and is refused with "not supported yet" unless it holds its
default.
"""


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the run file."""
    made = Spec.model_json_schema(by_alias=True)
    inner = (section_in(field.annotation) for _, field in walk(Spec))
    sections: set[type[Section]] = {Spec, *(section for section in inner if section is not None)}
    for section in sections:
        _as_written(section, made if section is Spec else made["$defs"][section.__name__])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "holdfast run file"}


def _as_written(section: type[Section], schema: dict[str, Any]) -> None:
    """Defaults as one writes them (`30m`, not 1800), no titles that repeat the key, the short forms let in."""
    defaults = section.model_construct().model_dump(mode="json", warnings=False)
    for key, field in fields_of(section).items():
        described = schema["properties"][key]
        described.pop("title", None)
        if not field.is_required():
            described["default"] = defaults[key]
        if key in SHORT_FORMS:
            described["anyOf"].append({"type": "string"})


def markdown() -> str:
    """The reference page: a table of fields for each table of the file."""
    parts = [_HEAD, _table(Spec, "")]
    for path, field in walk(Spec):
        inner = section_in(field.annotation)
        if inner is not None:
            prefix = path + (".<NAME>" if get_origin(field.annotation) is dict else "")
            parts.append(f"## `{prefix}`\n\n{(inner.__doc__ or '').splitlines()[0]}\n\n{_table(inner, path)}")
    return "\n".join(parts)


def _table(section: type[Section], path: str) -> str:
    rows = ["| key | default | what |", "| --- | --- | --- |"]
    for key, field in fields_of(section).items():
        full = f"{path}.{key}" if path else key
        rows.append(f"| `{key}` | {_default(section, key, field)} | {_what(field, full)} |")
    return "\n".join(rows) + "\n"


def _default(section: type[Section], key: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if (text := default_text(section, (key,))) != "":
        return f"`{text}`"
    return "see below" if section_in(field.annotation) is not None and field.default is not None else ""


def _what(field: FieldInfo, path: str) -> str:
    said = (field.description or "").replace("|", "\\|")
    words = choices(field.annotation)
    said += f"; one of {', '.join(words)}" if words else ""
    shown = field.examples or []
    said += f". Example: {' or '.join(f'`{example}`' for example in shown)}" if shown else ""
    return said if is_supported(path) or path in BEGINNINGS or _holds_supported(path) else f"*later*: {said}"


def _holds_supported(path: str) -> bool:
    return any(is_supported(inner) for inner, _ in walk(Spec) if inner.startswith(path + "."))
