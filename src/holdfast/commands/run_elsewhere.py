"""`holdfast run --on HOST`: all is resolved here, the code is brought there, and the run is made there, by `run`.

Of several hosts, which are asked at once, the freest takes it (`placement.py`).
What crosses is one run file without look-ups, on standard input; secrets are in the environment of that call alone.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from holdfast import creation, plan, spec
from holdfast.commands import orders, placement, remembered, remote
from holdfast.commands.arguments import say
from holdfast.commands.progress import bar
from holdfast.commands.reach import Linked, linked
from holdfast.commands.remote import Asked
from holdfast.commands.secrets import secret_values
from holdfast.link.hosts import Settings, from_run_file, write
from holdfast.runs import RunDir

_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run as it was asked for here. `copy` and `init` are options of `run`, None where they were not given."""

    hosts: tuple[str, ...]  # of which one takes it
    order: creation.Order
    name: str
    copy: bool | None
    init: str | None
    within_s: float

    def words(self) -> Iterator[str]:
        """Options that the `run` there is given."""
        if self.order.id is not None:
            yield from ("--id", self.order.id)
        if self.init is not None:
            yield from ("--from", self.init)
        if self.copy is not None:
            yield "--snapshot" if self.copy else "--in-place"

    def link(self) -> Settings:
        """What the run file says of the connection."""
        return from_run_file(self.order.spec.link)

    def text(self) -> str:
        """The run file that crosses: no secret, nothing to be looked up here, and the code where it will be."""
        given = self.order.spec
        changed: dict[str, Any] = {"name": self.name, "workdir": ".", "secrets": dict.fromkeys(given.secrets)}
        kept = {name: getattr(given, name) for name in given.model_fields_set - {"resources"}}
        if given.resources.accelerators is not None:  # which machine it is need not be told there
            changed["resources"] = type(given.resources).model_construct(accelerators=given.resources.accelerators)
        return spec.dump(type(given).model_construct(**{**kept, **changed}))


def show(wanted: Wanted, secrets: Sequence[str], *, as_json: bool) -> int:
    """The plan as the machine would make it. Nothing is started; the code is brought, for the plan looks at it."""
    workdir, values = _resolved(wanted, secrets)
    with linked(_host(wanted, workdir), wanted.within_s, wanted.link()) as there:
        folder = _bring(there, workdir)
        return _run(there, wanted, ("--dry-run", *(("--json",) if as_json else ())), values, folder)


def start(wanted: Wanted, secrets: Sequence[str], *, detach: bool, as_json: bool) -> int:
    """Make the run there and start it; stay with it unless `detach`. Its exit code, or that of a `run` that failed."""
    workdir, values = _resolved(wanted, secrets)
    host, link, ports = _host(wanted, workdir), wanted.link(), wanted.order.spec.ports
    with linked(host, wanted.within_s, link) as there:
        folder = _bring(there, workdir)
        with orders.ordering(*_order(host, wanted, workdir)) as token:
            made = _made(there, wanted, ("-d", "--json", "--order", token), values, folder)
            remembered.remember(host, made["run"], workdir, write(link), ports)
        if not detach:
            there.lead(ports)
            return remote.call(there, Asked(("attach", made["run"]), remote.looks()))
    name = f"{host}:{made['run']}"
    if as_json:
        click.echo(json.dumps({**made, "host": host}))
    else:
        click.echo(name)
        say(f"{name} started", hint=f"holdfast attach {name}")
    return 0


def _host(wanted: Wanted, workdir: Path) -> str:
    """The host to take; of several the freest, or the one where this was ordered already. Raises NowhereToRun."""
    if len(wanted.hosts) == 1:
        return wanted.hosts[0]
    for host in wanted.hosts:
        if orders.is_open(*_order(host, wanted, workdir)):
            say(f"{host} was told to make this run and has not confirmed it: it is asked again")
            return host
    asked = remote.at_each(dict.fromkeys(wanted.hosts, ("queue", "--json")), wanted.within_s)
    wants = wanted.order.spec.resources.accelerators or placement.ANY
    choice = placement.choose({outcome.host: _answer(outcome) for outcome in asked}, wants)
    if choice.host is None:
        raise placement.NowhereToRun(choice)
    say(choice.told(wanted.name))
    return choice.host


def _answer(outcome: remote.VerbOutcome) -> placement.Answer:
    if outcome.error is None and not outcome.status:
        told: dict[str, Any] = json.loads(outcome.out)
        return told
    said = str(outcome.error) if outcome.error else outcome.err.decode(errors="replace").partition("\n")[0]
    return said.removeprefix("error: ").removeprefix(f"{outcome.host} ") or f"exit code {outcome.status}"


def _order(host: str, wanted: Wanted, workdir: Path) -> tuple[str, ...]:
    """What tells one order from another."""
    return (host, str(workdir), wanted.text(), *wanted.words())


def project_key(workdir: Path) -> str:
    """The name of the code's folder on other machines: one for each laptop, person and folder."""
    whose = "\0".join((socket.gethostname(), getpass.getuser(), str(workdir)))
    name = _UNFIT.sub("-", workdir.name).strip("-._")[:40] or "project"
    return f"{name}-{hashlib.blake2b(whose.encode(), digest_size=4).hexdigest()}"


def _resolved(wanted: Wanted, secrets: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """The code's folder, and the values of the secrets. Raises RunFileError, SecretUnavailable."""
    order = wanted.order
    facts = creation.facts_of(order, wanted.name, RunDir(Path("/") / wanted.name))
    workdir = Path(plan.path_of(order.spec.workdir, order.spec, facts)).resolve()
    creation.check_workdir(workdir, copied=True)
    return workdir, secret_values(order.spec, plan.make(order.spec, facts), secrets, order.environ)


def _made(
    there: Linked, wanted: Wanted, words: tuple[str, ...], secrets: Mapping[str, str], folder: str
) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out:
        status = _run(there, wanted, words, secrets, folder, stdout=out.fileno())
        if status:
            raise click.exceptions.Exit(status)  # it has said why
        out.seek(0)
        found: dict[str, Any] = json.load(out)
        return found


def _run(
    there: Linked, wanted: Wanted, words: tuple[str, ...], secrets: Mapping[str, str], folder: str, *, stdout: int = 1
) -> int:
    with tempfile.TemporaryFile() as text:
        text.write(wanted.text().encode())
        text.seek(0)
        asked = Asked(
            ("run", "-f", "-", *words, *wanted.words()), secrets, cwd=folder, patience_s=wanted.within_s,
            stdin=text.fileno(), stdout=stdout,
        )  # fmt: skip
        return remote.call(there, asked)


def _bring(there: Linked, workdir: Path) -> str:
    """The code's folder there, made as it is here; what the ignore files name stays here."""
    from holdfast.commands.conversation import NotStarted

    try:
        return _synced(there, workdir)
    except NotStarted:
        there.ask_again()  # what was remembered of it is wrong
        return _synced(there, workdir)


def _synced(there: Linked, workdir: Path) -> str:
    from holdfast.commands.conversation import conversation
    from holdfast.sync import ends

    folder = f"{there.node.home}/workspaces/{project_key(workdir)}"
    with (
        bar(f"{workdir.name} → {there.host}") as progress,
        conversation(there.up, there.starting("node", "receive", folder, "--delete")) as frames,
    ):
        for outcome in ends.send(workdir, frames, progress=progress):
            for path in (*outcome.paths("kept"), *outcome.paths("changing")):
                say(
                    f"{path} in {folder} is not as it is here: somebody changes it",
                    hint=f"holdfast sync --overwrite {workdir} {there.host}:{folder}",
                )
    return folder
