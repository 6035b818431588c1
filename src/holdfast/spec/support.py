"""What this version does; every other field is refused unless it holds its default. The one place to change.

Pure data and the walk that applies it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from holdfast.spec.fields import Section
from holdfast.spec.shape import key_of

SUPPORTED = frozenset(
    {
        "name", "workdir", "envs", "secrets", "setup", "run",
        "resources.accelerators", "resources.failover",
        "environment.python",
        "checkpoint.dir", "checkpoint.every", "checkpoint.max_overhead", "checkpoint.timeout", "checkpoint.name",
        "checkpoint.memory", "checkpoint.memory_dir", "checkpoint.mirror", "checkpoint.keep",
        "restart", "watchdog", "logs", "link", "ports",
        "stop_signal", "stop_grace_period", "max_duration", "segment",
    }
)  # fmt: skip

# what other fields may say all the same: values that begin so
BEGINNINGS: Mapping[str, str] = {"resources.infra": "ssh/"}

# what to do instead, where there is something
INSTEAD: Mapping[str, str] = {
    "resources.infra": "ssh/HOST, or start holdfast on that machine: it runs where it is called",
    "num_nodes": "one machine with several devices works: run: torchrun --standalone …",
    "environment.conda": "build it yourself and give environment.python",
    "environment.uv": "build it yourself and give environment.python",
}


def is_supported(path: str, value: object = "") -> bool:
    """Whether this version does what the field at a dotted path asks for, with that value."""
    if path in BEGINNINGS and value:
        values = value if isinstance(value, tuple) else (value,)
        return all(isinstance(each, str) and each.startswith(BEGINNINGS[path]) for each in values)
    parts = path.split(".")
    return any(".".join(parts[:length]) in SUPPORTED for length in range(1, len(parts) + 1))


def refused(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, sentence) of each value that asks for what this version does not do."""
    for name, field in type(section).model_fields.items():
        if name not in section.model_fields_set:
            continue
        path, value = prefix + key_of(name, field), getattr(section, name)
        if is_supported(path, value) or value == field.get_default(call_default_factory=True, validated_data={}):
            continue
        elif isinstance(value, Section) and field.default is not None:
            yield from refused(value, path + ".")
        else:
            yield path, f"{path} is not supported yet"
