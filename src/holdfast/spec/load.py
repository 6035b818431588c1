"""Files, options and environment → one `Spec`. Stages, each going on where the one before found mistakes:

parse     each file and option into a tree that knows its places
combine   files in order, then `--set`, then `--name` and the command
supply    values that `null` asks the caller for, `--env` and `--secret`
validate  against the schema; what is wrong is noted, left out, and the rest looked at again
check     not supported yet, references to unknown names
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from holdfast.spec import combine, explain, support
from holdfast.spec.document import Items, Node, Scalar, Table, parse
from holdfast.spec.fields import references
from holdfast.spec.mistakes import Ledger, RunFileMistakes, Source, Span, quote, whole
from holdfast.spec.run_file import Spec
from holdfast.spec.supply import supply

# fields in which ${name}, ${run} and ${VARIABLE} of envs are replaced; shell text is never touched
EXPANDED = (
    ("workdir",),
    ("environment", "python"),
    ("checkpoint", "dir"),
    ("checkpoint", "memory_dir"),
    ("checkpoint", "mirror", "url"),  # or `mirror` itself, when that is the URL
)


def load(
    sources: Sequence[Source],
    *,
    overrides: Sequence[str] = (),
    env: Sequence[str] = (),
    secrets: Sequence[str] = (),
    environ: Mapping[str, str],
    name: str | None = None,
    argv: Sequence[str] = (),
) -> Spec:
    """The run that `sources` declare, later ones over earlier ones.

    overrides: `a.b=c` each, c in YAML. env: `K=V` or `K`, then from `environ`. secrets: `K=V` or `K`; only names are
    kept. name, argv: over what the files say. Raises RunFileMistakes with everything that is wrong.
    """
    ledger = Ledger()
    root = _combined(sources, overrides, ledger)
    if name is not None:
        root = combine.merge(root, _given(Source("--name", name), "name", [name], alone=True))
    if argv:
        root = combine.merge(root, _given(Source("--", " ".join(argv)), "run", argv, alone=False))
    root = supply(root, env=env, secrets=secrets, environ=environ, ledger=ledger)
    spec = _validated(root, ledger)
    _check(spec, root, ledger)
    if ledger.found:
        raise RunFileMistakes(ledger.found, ledger.hidden)
    return spec


def dump(spec: Spec) -> str:
    """The run file of `spec` in YAML: what was given and nothing else. Loading it gives the same spec."""
    given = spec.model_dump(mode="json", exclude_unset=True)
    for key in ("setup", "run"):
        if "\n" in (given.get(key) or ""):
            given[key] = LiteralScalarString(given[key])
    writer, text = YAML(typ="rt", pure=True), io.StringIO()
    writer.width = 4096
    writer.dump(given, text)
    return text.getvalue()


def _combined(sources: Sequence[Source], overrides: Sequence[str], ledger: Ledger) -> Table:
    start = sources[0] if sources else Source("command line", "")
    root = Table(whole(start))
    for source in sources:
        tree = parse(source, ledger)
        if isinstance(tree, Table):
            root = combine.merge(root, tree)
        elif tree is not None and getattr(tree, "value", "") is not None:
            ledger.add("a run file is a table of key: value", tree.at, example="run: python train.py")
            ledger.unread = True
    for option in overrides:
        tree = _override(Source("--set", option), ledger)
        root = combine.merge(root, tree) if tree is not None else root
    return root


def _override(source: Source, ledger: Ledger) -> Table | None:
    key, equals, _ = source.text.partition("=")
    if not equals or not all(steps := key.split(".")):
        ledger.add(
            f"{quote(source.text)} is not KEY=VALUE",
            Span(source, 0, 0, 0, len(source.text)),
            example="restart.max_restarts=5",
        )
        return None
    value = parse(source, ledger, skip=len(key) + 1)
    if value is None:
        value = combine.scalar(source, "")
    return combine.nest(source, steps, value)


def _given(source: Source, key: str, words: Sequence[str], *, alone: bool) -> Table:
    scalars: list[Node] = [combine.scalar(source, word) for word in words]
    return combine.nest(source, [key], scalars[0] if alone else Items(whole(source), scalars))


def _validated(root: Table, ledger: Ledger) -> Spec:
    """The spec; where something is wrong, the spec of what is left, for the checks that follow."""
    data = combine.values(root)
    spec, errors = _attempt(data)
    explain.note([error for error in errors if not (ledger.unread and error["type"] == "missing")], root, ledger)
    while spec is None:
        for error in errors:
            _leave_out(data, error["type"], error["loc"])
        spec, errors = _attempt(data)
    return spec


def _attempt(data: dict[str, Any]) -> tuple[Spec | None, Sequence[Any]]:
    try:
        return Spec.model_validate(data), ()
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _leave_out(data: dict[str, Any], kind: str, path: Sequence[Any]) -> None:
    """Remove the innermost key on `path`, or, where something is missing, what it is missing from."""
    path = path[:-1] if kind == "missing" else path
    if not path:
        data["run"] = "true"
    parent, last = data, ""
    inner: Any = data
    for step in path:
        if isinstance(inner, dict) and step in inner:
            parent, last = inner, step
        elif not isinstance(inner, list) or not isinstance(step, int):
            break
        inner = inner[step]
    parent.pop(last, None)


def _check(spec: Spec, root: Table, ledger: Ledger) -> None:
    for refused, sentence in support.refused(spec):
        _, key_at = combine.lookup(root, refused.split("."))
        ledger.add(sentence, key_at, hint=support.INSTEAD.get(refused, "remove it"))
    if spec.resources.accelerators is not None and "CUDA_VISIBLE_DEVICES" in spec.envs:
        _, key_at = combine.lookup(root, ("envs", "CUDA_VISIBLE_DEVICES"))
        message = "envs.CUDA_VISIBLE_DEVICES: the queue sets it, where resources.accelerators is given"
        ledger.add(message, key_at, hint="remove one of the two")
    known = {"name", "run", *spec.envs}
    for path in (*EXPANDED, *(("secrets", name, "file") for name in spec.secrets)):
        node, _ = combine.lookup(root, path)
        if not isinstance(node, Scalar):
            continue
        for word in references(node.text):
            if word not in known:
                message = f"{explain.dotted(path)}: ${{{word}}} has no value"
                ledger.add(message, node.at, hint=f"known: {', '.join(sorted(known))}")
