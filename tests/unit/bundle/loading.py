"""A Python program in a bundle that lies on a node, and all that a user's own start-up files may say to Pythons."""

from __future__ import annotations

import shlex
from pathlib import Path

from holdfast.bundle import Node, places
from holdfast.link import remote
from holdfast.link.client import Up

IMPORTS = "import holdfast, holdfast.commands, pydantic, blake3, zstandard, ruamel.yaml, rich, click, pathspec"

_SPOILT = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONPLATLIBDIR", "__PYVENV_LAUNCHER__")
SPOILING = "".join(f"export {name}=$HOME\n" for name in _SPOILT) + "export PYTHONWARNINGS=error PYTHONINSPECT=1\n"


def spoil(home: Path) -> None:
    """Modules that nobody should find lie in that home, where SPOILING leads, and where a command begins."""
    for name in ("json", "typing", "click", "holdfast"):
        (home / f"{name}.py").write_text("raise SystemExit('a module of the user')\n")


def loads(up: Up, node: Node, text: str = IMPORTS) -> str:
    """What it says on its standard output; it has to end well."""
    python = ["env", "-u", places.VENV_LAUNCHER, node.python]
    argv = [*python, "-I", "-c", f"import sys; sys.path.insert(0, {node.folder!r}); {text}"]
    outcome = remote.ask(up, shlex.join(argv), within_s=30)
    assert (outcome.status, outcome.error) == (0, ""), outcome
    return outcome.out.decode()
