"""Secrets that come from a command or a file, fetched when an attempt needs them; nothing here writes one anywhere."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from holdfast.errors import HoldfastError

_TIMEOUT_S = 60.0
_MOST_BYTES = 1 << 20


class SecretUnavailable(HoldfastError):
    """A secret could not be fetched; what the command or file said is not shown."""


def fetch(recipes: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The value of each recipe (`{command}` or `{file}`). Raises SecretUnavailable.

    A command's standard error goes to the caller's, so that a password prompt can be seen; its output does not.
    """
    return {
        name: _from_command(name, recipe["command"]) if "command" in recipe else _from_file(name, recipe["file"])
        for name, recipe in recipes.items()
    }


def _from_command(name: str, command: str) -> str:
    try:
        done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SecretUnavailable(f"secret {name}: its command did not end: {type(error).__name__}") from error
    if done.returncode != 0:
        raise SecretUnavailable(f"secret {name}: its command ended with {done.returncode}", hint=f"try it: {command}")
    lines = done.stdout.splitlines()
    return _checked(name, lines[0] if lines else b"", "the first line of its command's output")


def _from_file(name: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SecretUnavailable(f"secret {name}: {path} cannot be read: {error.strerror}") from error
    return _checked(name, content.rstrip(b"\r\n"), path)


def _checked(name: str, value: bytes, origin: str) -> str:
    if not value or len(value) > _MOST_BYTES or b"\0" in value:
        raise SecretUnavailable(f"secret {name}: {origin} is empty, too long, or not text")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SecretUnavailable(f"secret {name}: {origin} is not UTF-8") from error
