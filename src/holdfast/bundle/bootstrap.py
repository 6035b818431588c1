"""From a link that is up to a node where our code lies, asking as little as can be."""

from __future__ import annotations

import posixpath
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from holdfast.bundle import places, probing, sources
from holdfast.bundle.places import Node, Platform
from holdfast.bundle.probing import Facts, Unfit
from holdfast.link import remote
from holdfast.link.client import Up
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.bundle.making import Tell
    from holdfast.bundle.push import Order, Progress

ANSWER_S = 30.0  # for the shell there, to one question
SERVICE = ("node", "service")


def ensure(
    up: Up,
    *,
    again: bool = False,
    within_s: float = ANSWER_S,
    tell: Tell = lambda _: None,
    progress: Progress = lambda _sent, _all: None,
) -> Node:
    """A node with this very holdfast on it.

    What is remembered is believed and nobody is asked; where that turns out wrong, nobody listening at the socket,
    `again` asks the node. within_s: for its answer; what is sent may take longer. Raises Unfit, HostUnreachable,
    NoWheel, HoldfastError, OSError.
    """
    made_of = sources.fingerprint()
    known = None if again else places.remembered(up.key)
    if known is not None and _is_ours(known, made_of):
        return known
    from holdfast.bundle.giving import give
    from holdfast.bundle.making import first_made, made
    from holdfast.bundle.push import push

    found = probing.ask(up, within_s=within_s)
    for warning in probing.warnings(up.alias, found):
        tell(warning)
    pythons = probing.choose(up.alias, found, sys.version_info[:2])
    if pythons:
        platform, bundle = first_made(up.alias, list(pythons), tell, made)
        python = pythons[platform].path
    else:
        platform, bundle, python = give(up, found, tell, progress)
    node = replace(_node(up, found, python, platform, bundle.hash), made_of=made_of)
    if bundle.hash not in found.bundles:
        probing.check_space(up.alias, found, 2 * bundle.unpacked_bytes)  # its bytecode, and a wheel at a time
        sent_bytes = sum(size for digest, size in bundle.sizes_bytes.items() if digest not in found.wheels)
        tell(f"sending holdfast to {up.alias}: {show_size(sent_bytes)}")
        push(up, python, bundle, _order(found), progress)
    places.remember(node)
    return node


def _is_ours(known: Node, made_of: str) -> bool:
    """Whether the bundle there is the one that we would push now; found out once for each `made_of`."""
    if made_of and made_of == known.made_of:
        return True
    from holdfast.bundle import closure

    wanted = closure.cached(known.platform)
    if wanted is None or wanted.hash != known.bundle:
        return False
    if made_of:
        places.remember(replace(known, made_of=made_of))
    return True


def _node(up: Up, found: Facts, python: str, platform: Platform, bundle: str) -> Node:
    return Node(
        alias=up.alias,
        key=up.key,
        uid=found.uid,
        home=found.home,
        python=python,
        platform=platform,
        folder=f"{found.bundles_folder}/{bundle}",
        bundle=bundle,
        socket=places.service_socket(found.uid, found.home, bundle),
    )


def _order(found: Facts) -> Order:
    from holdfast.bundle.push import Order

    return Order(folder=found.bundles_folder, runs=f"{found.home}/runs", kept=found.wheels, collect=not found.is_shared)


def start(up: Up, node: Node, words: tuple[str, ...] = SERVICE, *, within_s: float = ANSWER_S) -> None:
    """Run the holdfast of the bundle until it returns; a service does so when it listens.

    Raises Unfit with the last line it said, HostUnreachable.
    """
    outcome = remote.ask(up, probing.SHELL, starting(node, words).encode(), within_s=within_s)
    if outcome.error or outcome.status:
        places.forget(up.key)
        said = (outcome.error or outcome.err.decode(errors="replace")).strip().splitlines()
        raise Unfit(
            f"{up.alias}: {' '.join(words)} ended with status {outcome.status}: "
            f"{said[-1][:300] if said else 'it said nothing'}"
        )


def starting(node: Node, words: tuple[str, ...]) -> str:
    """The shell's lines. Bundle and Python are young again, so that they stay."""
    quote = shlex.quote
    brought = f"{posixpath.dirname(posixpath.dirname(node.python))}/{places.PYTHON}"  # where it is one that we brought
    return "\n".join(
        [
            f"touch -c {quote(f'{node.folder}/{places.CONTENTS}')} {quote(brought)}",
            f"cd / && HOLDFAST_HOME={quote(node.home)} exec {shlex.join(node.command(*words))} </dev/null",
            "",
        ]
    )
