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
from holdfast.commands import afar, failover, orders, placement, remembered, remote
from holdfast.commands.arguments import say
from holdfast.commands.placement import Choice
from holdfast.commands.progress import bar
from holdfast.commands.reach import Linked, linked
from holdfast.commands.remote import Asked
from holdfast.commands.secrets import secret_values
from holdfast.link.hosts import Settings, from_run_file, write
from holdfast.runs import RunDir
from holdfast.units import write_accelerators

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
        kept = {name: getattr(given, name) for name in given.model_fields_set}
        if resources := self._resources():
            changed["resources"] = type(given.resources).model_construct(**resources)
        else:
            kept.pop("resources", None)
        return spec.dump(type(given).model_construct(**{**kept, **changed}))

    def _resources(self) -> dict[str, Any]:
        """What the machine needs to know of `resources`: not which machine it is."""
        given = self.order.spec.resources
        known = {name: getattr(given, name) for name in given.model_fields_set - {"infra", "failover"}}
        return {**known, "failover": self.failover} if len(self.hosts) > 1 else known

    @property
    def failover(self) -> float | str:
        """After how much silence another host goes on, in seconds; or off."""
        given = self.order.spec.resources.failover
        return failover.DEFAULT_S if given is None else given


def show(wanted: Wanted, secrets: Sequence[str], *, as_json: bool) -> int:
    """The plan as the machine would make it. Nothing is started; the code is brought, for the plan looks at it."""
    workdir, values = _resolved(wanted, secrets)
    with linked(_choice(wanted, workdir).taken, wanted.within_s, wanted.link()) as there:
        folder = _bring(there, workdir)
        return _run(there, wanted, ("--dry-run", *(("--json",) if as_json else ())), values, folder)


def start(wanted: Wanted, secrets: Sequence[str], *, detach: bool, as_json: bool) -> int:
    """Make the run there and start it; stay with it unless `detach`. Its exit code, or that of a `run` that failed."""
    workdir, values = _resolved(wanted, secrets)
    choice, link, ports = _choice(wanted, workdir), wanted.link(), wanted.order.spec.ports
    host = choice.taken
    with linked(host, wanted.within_s, link) as there:
        folder = _bring(there, workdir)
        with orders.ordering(*_order(host, wanted, workdir)) as token:
            made = _made(there, wanted, ("-d", "--json", "--order", token), values, folder)
            moves = wanted.order.spec.checkpoint.mirror is not None  # else no other host has anything of it
            remembered.remember(host, made["run"], workdir, write(link), ports, wanted.hosts if moves else ())
            standing = _let_others_stand_by(wanted, choice, made["run"], workdir, values)
        if not detach:
            there.lead(ports)
            return remote.call(there, Asked(("attach", made["run"]), remote.looks(host)))
    name = f"{host}:{made['run']}"
    if as_json:
        click.echo(json.dumps({**made, "host": host, **({"standbys": standing} if len(wanted.hosts) > 1 else {})}))
    else:
        click.echo(name)
        say(f"{name} started", hint=f"holdfast attach {name}")
    return 0


def _let_others_stand_by(
    wanted: Wanted, choice: Choice, run: str, workdir: Path, secrets: Mapping[str, str]
) -> list[str]:
    """Ask the other hosts of the pool to go on with the run when `choice.host` is silent; those that will."""
    given, silent_s = wanted.order.spec, wanted.failover
    if len(wanted.hosts) < 2 or isinstance(silent_s, str):
        return []
    if given.checkpoint.mirror is None:
        say(
            f"no other host goes on with {run} should {choice.host} be lost: it has no mirror to continue from",
            hint="checkpoint: {mirror: s3://bucket/runs/${run}}; resources.failover: off says that this is meant",
        )
        return []
    facts = creation.facts_of(wanted.order, wanted.name, RunDir(Path("/") / run))
    wants = given.resources.accelerators
    return failover.order(
        failover.Silence(
            run=run, host=choice.taken, url=plan.references_of(given.checkpoint.mirror.url, given, facts),
            failover_s=silent_s, accelerators=write_accelerators(wants) if wants else "",
            env={name: value for name, value in given.envs.items() if value is not None},
        ),
        choice.able, secrets, wanted.within_s, lambda there: _bring(there, workdir),
    )  # fmt: skip


def _choice(wanted: Wanted, workdir: Path) -> Choice:
    """The host to take; of several the freest, or the one where this was ordered already. Raises NowhereToRun."""
    if len(wanted.hosts) == 1:
        return Choice(host=wanted.hosts[0])
    for host in wanted.hosts:
        if orders.is_open(*_order(host, wanted, workdir)):
            say(f"{host} was told to make this run and has not confirmed it: it is asked again")
            return Choice(host=host, able=tuple(other for other in wanted.hosts if other != host))
    asked = remote.at_each(dict.fromkeys(wanted.hosts, ("queue", "--json")), wanted.within_s)
    wants = wanted.order.spec.resources.accelerators or placement.ANY
    choice = placement.choose({outcome.host: _answer(outcome) for outcome in asked}, wants)
    if choice.host is None:
        raise placement.NowhereToRun(choice)
    say(choice.told(wanted.name))
    return choice


def _answer(outcome: remote.VerbOutcome) -> placement.Answer:
    if outcome.error is None and not outcome.status:
        told: dict[str, Any] = json.loads(outcome.out)
        return told
    said = str(outcome.error) if outcome.error else outcome.err.decode(errors="replace").partition("\n")[0]
    said = said.removeprefix("error: ").removeprefix(f"{outcome.host}: ").removeprefix(f"{outcome.host} ")
    return said or f"exit code {outcome.status}"


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
            say(f"that was the answer of {there.host}")
            raise click.exceptions.Exit(status)
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
            ("run", "-f", "-", *words, *wanted.words()), {afar.CALLED: there.host, **secrets}, cwd=folder,
            patience_s=wanted.within_s, stdin=text.fileno(), stdout=stdout,
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
