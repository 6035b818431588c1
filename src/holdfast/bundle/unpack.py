"""Runs on a node, alone: takes a pack from standard input and makes it a bundle. Standard library only.

Whoever sends it starts a Python that reads this text, and from the same stream one line of JSON, the order, and the
wheels it lists, one behind the other. Python 3.6 can read it as far as saying that it is too old.
The last line on standard output is `MARK {"ok": true}`, or `MARK {"ok": false, "error": sentence, "hint": …}`.

With two paths as arguments it is run by a Python that was unpacked at the first one, and shall lie at the second.
"""

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

OLDEST = (3, 10)
CONTENTS = "bundle.json"
PYTHON = "python.txt"
LAUNCHER = "holdfast"
WHEELS = "wheels"  # as they were sent: what comes again, or after a cut, is not sent again
KEEP = 2  # bundles and Pythons, the newest, whoever uses them
ABANDONED_S = 3600.0  # so old a half-made one is nobody's
AT_ONCE = 8  # files that are made durable
PIECE = 1 << 20


class Refused(Exception):
    """A sentence, and a hint."""

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint


def main(stream: BinaryIO) -> int:
    """Take one pack; the exit status."""
    order = json.loads(stream.readline().decode())
    try:
        check(sys.version_info[:2])
        with told(order["folder"]):
            receive(stream, order)
    except Refused as refused:
        answer = {"ok": False, "error": str(refused), "hint": refused.hint}
    else:
        answer = {"ok": True}
    print("\n" + order["mark"], json.dumps(answer), flush=True)
    return int(not answer["ok"])


def check(version: "tuple[int, ...]") -> None:
    """Raises Refused."""
    if version < OLDEST:
        raise Refused(
            f"its Python {version[0]}.{version[1]} is too old, 3.10 is needed", "install a newer python3 there"
        )


@contextlib.contextmanager
def told(folder: str) -> "Iterator[None]":
    """What the machine refuses, as a sentence."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError) as error:
        raise Refused(f"a wheel is damaged: {error}") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space there" if full else "check the owner and the mount of the folder there"
        raise Refused(
            f"{folder} cannot be written: {error.strerror}", f"{hint}, or set HOLDFAST_HOME there to another disk"
        ) from error


def receive(stream: BinaryIO, order: "dict[str, Any]") -> None:
    """From the first wheel to the bundle's name."""
    folder = Path(order["folder"])
    make_private(folder)
    make_private(folder / WHEELS)
    sweep(folder)
    part = folder / f".{order['hash']}.{secrets.token_hex(4)}.part"
    part.mkdir(0o700)
    held = hold(part)
    try:
        for name, size, digest in order["wheels"]:
            wheel = folder / WHEELS / f"{digest}.whl"
            if digest in order["kept"]:
                check_kept(wheel, name, digest)
            else:
                take(stream, part / ".wheel", name, size, digest).replace(wheel)
            unpack(wheel, part)
        (part / CONTENTS).write_text(json.dumps({"hash": order["hash"], "wheels": order["wheels"]}))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:  # one waits for a processor, the other for the disk
            sent = everything(part)  # bytecode comes meanwhile: it may be lost, and is made again
            loading = pool.submit(load, part)
            make_durable(sent)
            loading.result()
        publish(part, folder / order["hash"], CONTENTS)
        launch(folder, order["hash"])
        sync(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if held is not None:
            os.close(held)
    if order["collect"]:
        collect(folder, order["hash"], Path(order["runs"]))


def make_private(folder: Path) -> None:
    """Make it, and refuse one where somebody else may write: code will be run from there."""
    folder.mkdir(0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise Refused(f"{folder} can be written by others than you", f"chmod go-w {folder}")


def hold(part: Path) -> "int | None":
    """A lock that says that it is being made; None where somebody has it, or the file system has none."""
    descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def sweep(folder: Path) -> None:
    """Remove what pushes left that were cut."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):  # somebody else sweeps too
            held = hold(part) if time.time() - part.stat().st_mtime > ABANDONED_S else None
            if held is not None:
                shutil.rmtree(part, ignore_errors=True)
                os.close(held)


def take(stream: BinaryIO, path: Path, name: str, size: int, digest: str) -> Path:
    """The next wheel, whole and as it was sent, at `path`."""
    seen, left = hashlib.sha256(), size
    with path.open("wb") as file:
        while left:
            piece = stream.read(min(left, PIECE))
            if not piece:
                raise Refused(f"the push was cut in the middle of {name}")
            seen.update(piece)
            file.write(piece)
            left -= len(piece)
    if seen.hexdigest() != digest:
        raise Refused(f"{name} did not arrive as it was sent")
    return path


def check_kept(wheel: Path, name: str, digest: str) -> None:
    """Raises Refused for one that is not there any more or is damaged: then it is sent the next time."""
    with contextlib.suppress(FileNotFoundError):
        if hashlib.sha256(wheel.read_bytes()).hexdigest() == digest:
            return
        wheel.unlink()
    raise Refused(f"{name} is not kept there any more", "try again: it will be sent")


def unpack(wheel: Path, into: Path) -> None:
    """As an installer would, without programs: modules of its data folder lie beside the others (PEP 427)."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            top, _, rest = entry.filename.partition("/")
            if top.endswith(".data"):
                kind, _, entry.filename = rest.partition("/")
                if kind not in ("purelib", "platlib") or not entry.filename:
                    continue
            archive.extract(entry, into)


def load(part: Path) -> None:
    """Import each package of it, so that what does not run there is known before anybody relies on it."""
    names = sorted(found.parent.name for found in part.glob("*/__init__.py"))
    text = "import sys, importlib; sys.path.insert(0, sys.argv[1]); [importlib.import_module(n) for n in sys.argv[2:]]"
    argv = [sys.executable, "-I", "-c", text, str(part), *names]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/", check=False
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise Refused(
            f"it does not load in {sys.executable}: {said[-1][:300]}", "another python3 on the PATH there may do"
        )


def everything(part: Path) -> "list[Path]":
    """Its files and folders, itself among them."""
    return [part, *part.rglob("*")]


def make_durable(paths: "list[Path]") -> None:
    """Several at once: one after the other each would wait for the disk by itself."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(sync, paths))


def sync(path: Path) -> None:
    """Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(part: Path, place: Path) -> int:
    """This very Python, unpacked at `part`, gets its name; the exit status."""
    (part / PYTHON).write_text(sys.version)
    make_durable(everything(part))
    publish(part, place, PYTHON)
    sync(place.parent)
    return 0


def publish(part: Path, bundle: Path, contents: str) -> None:
    """Give it its name, unless another laptop was faster. What bears it and is not whole goes."""
    if bundle.exists() and not (bundle / contents).exists():
        discard(bundle)
    try:
        part.rename(bundle)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def launch(folder: Path, name: str) -> None:
    """A program that stays where it is and starts what was pushed last: for people there, for clocks and for boots."""
    bundle = folder / name
    text = f"""#!/bin/sh
# The holdfast that was pushed here last, {bundle}/
unset __PYVENV_LAUNCHER__
exec {shlex.quote(sys.executable)} -I {shlex.quote(f"{bundle}/holdfast")} "$@"
"""
    new = folder / f".{LAUNCHER}.{secrets.token_hex(4)}"
    new.write_text(text)
    new.chmod(0o700)
    sync(new)
    new.replace(folder / LAUNCHER)


def discard(bundle: Path) -> None:
    """Nobody finds half of it: it loses its name first."""
    away = bundle.with_name(f".{bundle.name}.{secrets.token_hex(4)}.part")
    with contextlib.suppress(FileNotFoundError):
        bundle.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def collect(folder: Path, current: str, runs: Path) -> None:
    """Remove old bundles and Pythons that neither a live process nor a run needs; the newest stay."""
    for old in [*oldest(folder, CONTENTS), *oldest(folder, PYTHON)]:
        needed = any(str(old).encode() + b"/" in text for text in uses(folder, runs))
        if old.name != current and not needed:
            discard(old)
    listed = [json.loads(each.read_text())["wheels"] for each in folder.glob("[!.]*/" + CONTENTS)]
    kept = {digest for wheels in listed for _, _, digest in wheels}
    for wheel in (folder / WHEELS).glob("*.whl"):
        with contextlib.suppress(FileNotFoundError):
            if wheel.stem not in kept and time.time() - wheel.stat().st_mtime > ABANDONED_S:
                wheel.unlink()


def oldest(folder: Path, contents: str) -> "list[Path]":
    """All but the newest that have a file `contents`."""
    found = sorted(folder.glob("[!.]*/" + contents), key=lambda each: each.stat().st_mtime, reverse=True)
    return [each.parent for each in found[KEEP:]]


def uses(folder: Path, runs: Path) -> "Iterator[bytes]":
    """Where a bundle that is needed is named: by what processes of ours were started with or have mapped, by runs."""
    yield (folder / LAUNCHER).read_bytes()
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ", "maps"):
            with contextlib.suppress(OSError):  # it has ended, or is not ours
                yield (process / name).read_bytes().replace(b"\0", b"/\n")
    for link in runs.glob("*/lib/holdfast"):
        with contextlib.suppress(OSError):
            yield str(link.readlink()).encode()


if __name__ == "__main__":
    sys.exit(settle(*map(Path, sys.argv[1:])) if sys.argv[1:] else main(sys.stdin.buffer))
