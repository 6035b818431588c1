"""`holdfast node standby begin|stop|end|serve RUN`: how a laptop makes this machine stand by for a run of another one.

`begin` reads the order as JSON from standard input and secrets from its environment, and answers in one JSON object:
{"standing", "unfenced", "why"}. `serve` is the process that it leaves behind. `stop` ends that, and before lets it tell
the run to stop through its mirror; it answers {"told", "why"}, where nobody stands by without a reason.
"""

from __future__ import annotations

import json
import os
import secrets as chance
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast import runs, stores
from holdfast.commands.arguments import say
from holdfast.commands.resumable import Elsewhere
from holdfast.errors import HoldfastError, LeaseHeld, StoreRefused, UsageError
from holdfast.node import standby
from holdfast.node.standby import NEEDS_SECRETS, Order, Standby
from holdfast.runs import RunDir
from holdfast.stores import Store


def main(argv: Sequence[str]) -> int:
    """One of the three. Raises HoldfastError."""
    if len(argv) != 2 or argv[0] not in ("begin", "stop", "end", "serve"):
        raise UsageError(f"holdfast node standby {' '.join(argv)}: expected begin|stop|end|serve RUN")
    place = Standby(argv[1])
    if argv[0] == "serve":
        return place.serve(_connect, _take, _is_free)
    if argv[0] == "end":
        place.end()
        return 0
    sys.stdout.write(json.dumps(stop(place) if argv[0] == "stop" else begin(place, json.load(sys.stdin))))
    return 0


def begin(place: Standby, told: Mapping[str, Any]) -> dict[str, object]:
    """Stand by, unless the mirror or a run here is in the way. Raises HoldfastError, OSError."""
    order = Order.decoded({**told, "run": place.run, "cwd": str(Path.cwd()), "since_s": time.time()})
    secrets = {name: os.environ[name] for name in order.secret_names if name in os.environ}
    if (runs.home() / "runs" / order.run).exists():
        return {"standing": False, "unfenced": False, "why": f"there is a run {order.run} already"}
    if any(each.run == order.run and each.order().url != order.url for each in standby.every()):
        return {"standing": False, "unfenced": False, "why": f"it does so for another run called {order.run}"}
    try:
        store = stores.connect(order.url, environment(order, secrets), stores.IMPATIENT)
        enforced = stores.enforces_create(store, f"terms/probe-{chance.token_hex(8)}")
    except StoreRefused as error:
        return {"standing": False, "unfenced": False, "why": f"it cannot use the mirror: {error}"}
    if not enforced:
        return {"standing": False, "why": "", "unfenced": True}
    place.end()  # one that was asked before knows less
    place.keep(order)
    place.start(secrets)
    return {"standing": True, "unfenced": False, "why": ""}


def stop(place: Standby) -> dict[str, object]:
    """Tell the run to stop through its mirror, and stand by no more. Raises HoldfastError."""
    if not place.root.is_dir():
        return {"told": False, "why": ""}
    why = place.stop(_connect)
    if (runs.home() / "runs" / place.run).exists():  # it has been taken over meanwhile
        why = "it goes on there now"
    return {"told": not why, "why": why}


def again() -> int:
    """After a reboot: look after every one that needs no secret; the highest exit code of the others."""
    return max((_again(place) for place in standby.every() if place.holder() is None), default=0)


def _again(place: Standby) -> int:
    try:
        order = place.order()
        if order.secret_names:
            names = ", ".join(order.secret_names)
            place.note(NEEDS_SECRETS, why=f"secrets are missing: {names}")
            say(f"{place.run} has nobody who stands by: secrets are missing: {names}", hint="order it again")
            return HoldfastError.exit_code
        place.start({})
    except LeaseHeld:
        return 0
    except HoldfastError as error:
        say(f"{place.run}: {error}", hint=error.hint)
        return error.exit_code
    say(f"stands by for {place.run}")
    return 0


def environment(order: Order, secrets: Mapping[str, str]) -> dict[str, str]:
    """What the mirror is reached with."""
    return {**os.environ, **order.env, **secrets}


def _connect(order: Order, secrets: Mapping[str, str]) -> Store:
    return stores.connect(order.url, environment(order, secrets), stores.IMPATIENT)


def _take(order: Order, secrets: Mapping[str, str]) -> RunDir:
    """As `holdfast resume URL`, and detached."""
    from holdfast.commands import resume_elsewhere
    from holdfast.process import start_shim

    if Path(order.cwd).is_dir():
        os.chdir(order.cwd)
    run, values = resume_elsewhere.resume(
        Elsewhere(order.url, None), secrets=[f"{name}={value}" for name, value in secrets.items()], argv=(),
        environ=environment(order, {}), by_hand=False,
    )  # fmt: skip
    start_shim(run, secrets=values)
    return run


def _is_free(order: Order) -> bool:
    """Whether the run could begin at once here; no where that cannot be told."""
    if not order.accelerators:
        return True
    from holdfast.commands import placement, queue
    from holdfast.units import parse_accelerators

    wants = parse_accelerators(order.accelerators)
    try:
        return placement.standing("", queue.standing(), wants).free >= wants.count
    except HoldfastError:
        return False
