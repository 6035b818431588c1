"""What the caller gives besides the file: `--env`, `--secret`, and the environment for what is `null`.

Pure. Values of secrets are looked for, so that a missing one is told before anything starts, and never kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.spec import combine
from holdfast.spec.document import Entry, Items, Node, Scalar, Table
from holdfast.spec.fields import VARIABLE
from holdfast.spec.mistakes import Ledger, Source, Span, quote, whole

_RESERVED = "HOLDFAST_"
_SWITCHES = ("HOLDFAST_CHECK_SNAPSHOT",)  # but these are for people


def supply(
    root: Table, *, env: Sequence[str], secrets: Sequence[str], environ: Mapping[str, str], ledger: Ledger
) -> Table:
    """The tree with every environment variable that has a value, and a recipe or null for every secret."""
    _hide(root, ledger)
    root = _with_env(root, _options("--env", env, ledger), environ, ledger)
    root = _with_secrets(root, _options("--secret", secrets, ledger), environ, ledger)
    envs, hidden = _table(root, "envs"), _table(root, "secrets")
    for name, entry in [*envs.items(), *hidden.items()]:
        ours = name.startswith(_RESERVED) and name not in _SWITCHES
        if not VARIABLE.fullmatch(name) or ours:
            why = "is set by holdfast itself" if ours else "cannot be an environment variable"
            ledger.add(f"{quote(name)} {why}", entry.key_at)
    for name in envs.keys() & hidden.keys():
        ledger.add(
            f"{quote(name)} is under both envs and secrets", hidden[name].key_at, hint="keep the one under secrets"
        )
    return root


def _options(option: str, given: Sequence[str], ledger: Ledger) -> dict[str, tuple[str | None, Source]]:
    """Name → value and the option it came from; None for a value that the environment holds."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        source = Source(option, text if option == "--env" or not equals else f"{name}=…")
        if not VARIABLE.fullmatch(name):
            ledger.add(f"{quote(name)} cannot be an environment variable", _name_of(source, name), example="NAME=value")
            continue
        found[name] = (value if equals else None, source)
    return found


def _with_env(
    root: Table, options: Mapping[str, tuple[str | None, Source]], environ: Mapping[str, str], ledger: Ledger
) -> Table:
    for name, (value, source) in options.items():
        if value is None and name not in environ:
            ledger.add(f"{name} is not in the environment", _name_of(source, name), hint=f"--env {name}=VALUE")
        text = environ.get(name, "") if value is None else value
        root = combine.merge(root, combine.nest(source, ["envs", name], combine.scalar(source, text)))
    for name, entry in _table(root, "envs").items():
        if not _is_null(entry.value):
            continue
        if name not in environ:
            ledger.add(
                f"envs.{name} is null, so it must come from the caller", entry.key_at, hint=f"--env {name}=VALUE"
            )
        text = environ.get(name, "")
        root = _put(root, "envs", name, Entry(entry.key_at, combine.scalar(Source("environment", ""), text)))
    return root


def _with_secrets(
    root: Table, options: Mapping[str, tuple[str | None, Source]], environ: Mapping[str, str], ledger: Ledger
) -> Table:
    for name, (value, source) in options.items():
        if value is None and name not in environ:
            ledger.add(
                f"{name} is not in the environment", _name_of(source, name), hint=f"export {name} before the call"
            )
        null = Scalar(whole(source), "null")
        root = combine.merge(root, combine.nest(source, ["secrets", name], null))
    for name, entry in _table(root, "secrets").items():
        if _is_null(entry.value):
            if name not in options and name not in environ:
                message = f"secrets.{name} is null, so it must come from the caller"
                ledger.add(message, entry.key_at, hint=f"--secret {name}, with {name} in the environment")
        elif not isinstance(entry.value, Table):
            message = f"secrets.{name}: a secret must not stand in a file or an option"
            ledger.add(message, entry.value.at, hint=f"{name}: null, or {{command: …}}, or {{file: …}}")
            root = _put(root, "secrets", name, Entry(entry.key_at, Scalar(entry.value.at, "null")))
    return root


def _hide(root: Table, ledger: Ledger) -> None:
    """Note every value below `secrets` that is not a recipe, so that no excerpt shows it."""
    entry = root.entries.get("secrets")
    if entry is None:
        return
    for value in _flat(entry.value):
        ledger.hidden.append(value.at)


def _flat(node: Node) -> list[Scalar]:
    if isinstance(node, Scalar):
        return [] if _is_null(node) else [node]
    if isinstance(node, Items):
        return [scalar for item in node.items for scalar in _flat(item)]
    recipe = {"command", "file"}
    return [scalar for key, entry in node.entries.items() if key not in recipe for scalar in _flat(entry.value)]


def _put(root: Table, table: str, name: str, entry: Entry) -> Table:
    return combine.merge(root, Table(root.at, {table: Entry(entry.key_at, Table(root.at, {name: entry}))}))


def _table(root: Table, key: str) -> dict[str, Entry]:
    entry = root.entries.get(key)
    return entry.value.entries if entry is not None and isinstance(entry.value, Table) else {}


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None


def _name_of(source: Source, name: str) -> Span:
    return Span(source, 0, 0, 0, max(1, len(name)))
