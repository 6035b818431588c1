"""What a laptop runs must not need Linux: every name it takes of these modules is one that CPython has on macOS too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mypy

import holdfast

PACKAGE = Path(holdfast.__file__).parent
STUBS = Path(mypy.__file__).parent / "typeshed" / "stdlib"  # which platform has what, as type checkers know it
MODULES = ("asyncio", "errno", "fcntl", "os", "resource", "select", "signal", "socket", "time")
NOT_FOR_UNIX_SOCKETS = {"SOCK_SEQPACKET"}  # macOS has the name, and no such socket
ON_NODES = {f"service/{name}.py" for name in ("answers", "calls", "forking", "pipes", "resident", "server")}


def names_of(module: str, platform: str) -> set[str]:
    """All that `module` has there."""
    stub = STUBS / f"{module}.pyi"
    tree = ast.parse((stub if stub.exists() else STUBS / module / "__init__.pyi").read_text())
    return set(_defined(tree.body, SimpleNamespace(platform=platform, version_info=(3, 10))))


def _defined(body: list[ast.stmt], sys: SimpleNamespace) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.If):
            holds = eval(compile(ast.Expression(node.test), "stub", "eval"), {"sys": sys})
            yield from _defined(node.body if holds else node.orelse, sys)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


MISSING = {name: names_of(name, "linux") - names_of(name, "darwin") | NOT_FOR_UNIX_SOCKETS for name in MODULES}


def of_linux_alone(source: str) -> set[str]:
    """Names that a program takes of the modules, macOS has not, and nobody asks for first with getattr or hasattr."""
    taken, asked = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            taken.add((node.value.id, node.attr))
        elif isinstance(node, ast.ImportFrom):
            taken |= {(node.module or "", one.name) for one in node.names}
        elif isinstance(node, ast.Constant):
            asked.add(node.value)
    return {f"{module}.{name}" for module, name in taken if name in MISSING.get(module, ()) and name not in asked}


def test_what_only_linux_has_is_known() -> None:
    source = "from os import pidfd_open, fork\ntime.CLOCK_BOOTTIME, time.monotonic(), socket.SOCK_SEQPACKET\n"

    assert of_linux_alone(source) == {"os.pidfd_open", "time.CLOCK_BOOTTIME", "socket.SOCK_SEQPACKET"}
    assert of_linux_alone(source + "hasattr(time, 'CLOCK_BOOTTIME')") == {"os.pidfd_open", "socket.SOCK_SEQPACKET"}


def test_a_laptop_may_run_macos() -> None:
    folders = [PACKAGE / name for name in ("link", "bundle", "sync", "relay", "service", "commands")]
    files = {str(file.relative_to(PACKAGE)): file for folder in folders for file in folder.rglob("*.py")}
    assert files.keys() > ON_NODES

    of_linux = {name: of_linux_alone(file.read_text()) for name, file in files.items() if name not in ON_NODES}
    assert {name: found for name, found in of_linux.items() if found} == {}
