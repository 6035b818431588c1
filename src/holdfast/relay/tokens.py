"""Who may come in, and where each may go. The relay keeps hashes; a token itself is with its owner alone.

A file of tokens has a line each:

    # name   SHA-256 of the token, hexadecimal   targets               perhaps a rate, both directions together
    alice    9f86d081…                           gpu-a:22,gpu-b:22     20MB/s
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.units import parse_rate

VARIABLE = "HOLDFAST_RELAY_TOKEN"
LEAST_CHARACTERS = 16
_TARGET = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):(\d{1,5})", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """One who may come in. `bytes_per_s` None sets no limit."""

    name: str
    digest: bytes
    targets: frozenset[str]
    bytes_per_s: int | None = None


def read_token(path: Path | None) -> str:
    """The token in `path`, else in the environment. Raises UsageError: missing, short, or readable for others."""
    if path is None:
        token, place = os.environ.get(VARIABLE, "").strip(), f"the variable {VARIABLE}"
    else:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(f"{path} can be read by others", hint=f"chmod 600 {path}")
        token, place = path.read_text().strip(), str(path)
    if not token:
        raise UsageError("there is no token", hint=f"--token-file FILE, or the variable {VARIABLE}")
    if len(token) < LEAST_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"the token in {place} is not {LEAST_CHARACTERS} or more printable characters", hint="openssl rand -hex 32"
        )
    return token


def digest_of(token: str) -> bytes:
    """What is kept of a token. It is random and long, so that a plain hash will do."""
    return hashlib.sha256(token.encode()).digest()


def read_tokens(path: Path) -> list[Token]:
    """A file of tokens. Raises UsageError that names the line."""
    lines = enumerate(path.read_text().splitlines(), start=1)
    tokens = [_parsed(line.split(), f"{path}:{n}") for n, line in lines if line.strip() and line.strip()[0] != "#"]
    if not tokens:
        raise UsageError(f"{path} has no token", hint="a line is: name, SHA-256 of the token, targets")
    for kind, values in (("name", [t.name for t in tokens]), ("token", [t.digest.hex() for t in tokens])):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise UsageError(f"{path} has the same {kind} twice: {min(twice)}")
    return tokens


def _parsed(words: list[str], place: str) -> Token:
    if len(words) not in (3, 4):
        raise UsageError(f"{place} has {len(words)} words", hint="a line is: name, SHA-256 of the token, targets")
    if not _DIGEST.fullmatch(words[1]):
        raise UsageError(f"{place}: {words[1][:12]!r} is no SHA-256", hint='printf %s "$TOKEN" | sha256sum')
    rate = parse_rate(words[3]) if len(words) == 4 else None
    return Token(words[0], bytes.fromhex(words[1]), checked_targets(words[2].split(",")), rate)


def checked_targets(words: Iterable[str]) -> frozenset[str]:
    """Words of the form host:port. Raises UsageError."""
    targets = frozenset(words)
    for target in targets:
        found = _TARGET.fullmatch(target)
        if found is None or not 0 < int(found[1]) < 65536:
            raise UsageError(f"{target!r} is not a target", hint="write it like gpu-a:22 or [fd00::1]:22")
    return targets


def target_of(host: str, port: int) -> str:
    """The word for a place; the relay compares it as it is."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def place_of(target: str) -> tuple[str, int]:
    """Host and port of a configured word."""
    host, _, port = target.rpartition(":")
    return host.strip("[]"), int(port)


def matching(tokens: Iterable[Token], shown: str) -> Token | None:
    """Whose token that is. Takes as long whichever it is, and whether it is one."""
    digest, found = digest_of(shown), None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest):
            found = token
    return found
