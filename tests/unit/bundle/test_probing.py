"""What a node says of itself in any shell, and the sentence for each node where nothing of ours can run."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from holdfast import runs
from holdfast.bundle import places, probing
from holdfast.bundle.places import Platform
from holdfast.bundle.probing import Facts, Python, Unfit
from holdfast.errors import HoldfastError
from tests.labs.mounts import apart
from tests.needs import need, need_program

SCRIPT = Path(probing.__file__).with_name("probe.sh").read_text()
GOOD = Python("/usr/bin/python3", (3, 11, 2), fits=True)
FACTS = Facts(
    uid=1000,
    asked="/home/u/.holdfast",
    home="/home/u/.holdfast",
    place="/home/u/.holdfast",
    trials={"home": "runs"},
    system="Linux",
    machine="x86_64",
    libc="glibc 2.36",
    files="ext2/ext3",
    free_bytes=10 << 30,
    home_free_bytes=10 << 30,
    ahead_s=0.2,
    pythons=(GOOD,),
    bundles=(),
    wheels=frozenset(),
)


def probe(home: Path, *before: str, shell: str = "sh", path: str = "/usr/bin:/bin") -> Facts:
    """Through `shell`, as sshd starts it."""
    environ = {"HOME": str(home), "PATH": path}
    argv = [*before, need_program(shell), "-c", probing.SHELL]
    text = f"mark=MARK-1\n{SCRIPT}".encode()
    done = subprocess.run(argv, input=text, capture_output=True, env=environ, cwd="/", timeout=60)
    told = probing.answers(b"welcome!\nuid=7\n" + done.stdout, "MARK-1")
    assert told is not None, done
    return probing.facts(told, time.time())


@pytest.mark.parametrize("shell", ["sh", "bash", "tcsh"])
def test_it_runs_in_the_users_shell(tmp_path: Path, shell: str) -> None:
    found = probe(tmp_path, shell=shell)

    assert (found.uid, found.system, found.machine) == (os.getuid(), "Linux", os.uname().machine)
    assert found.home == found.place == str(tmp_path / ".holdfast")
    assert found.trials["home"] == "runs"
    assert found.libc.startswith(("glibc 2.", "musl 1."))
    assert found.free_bytes > 1 << 20
    assert abs(found.ahead_s) < 5
    assert found.pythons[0].version[0] == 3
    assert list((tmp_path / ".holdfast" / "bundles").iterdir()) == []


def test_an_old_python_first_on_the_path_does_not_hide_a_newer_one(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "3.6.9 cpython True m"\n')
    fake.chmod(0o755)

    found = probe(tmp_path, path=f"{tmp_path}/bin:/usr/bin:/bin")

    assert found.pythons[0] == Python(str(fake), (3, 6, 9))
    assert str(fake) not in {each.path for each in probing.choose("gpu-a", found, (3, 11)).values()}


@pytest.mark.parametrize(("cover", "versions"), [("bin/python3", {(3, 8, 10)}), ("nothing", set())])
def test_on_a_machine_whose_pythons_are_too_old_or_missing_none_is_chosen(
    tmp_path: Path, cover: str, versions: set[tuple[int, ...]]
) -> None:
    need(os.geteuid() == 0, "needs root to mount")
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text('#!/bin/sh\necho "3.8.10 cpython True"\n')
    old.chmod(0o755)
    (tmp_path / "nothing").touch()  # no program
    every = "/usr/bin/python3* /usr/local/bin/python3* /opt/conda/bin/python3*"
    mounts = f'for each in {every}; do [ ! -f "$each" ] || mount --bind {tmp_path}/{cover} "$each"; done'

    found = probe(tmp_path, *apart(), "sh", "-c", f'{mounts}; "$@"', "sh")

    assert {each.version for each in found.pythons} == versions
    assert probing.choose("gpu-a", found, (3, 11)) == {}


def test_a_machine_that_gets_no_python_is_told_why_what_it_has_and_what_to_do() -> None:
    pythons = (Python("/usr/bin/python3", (3, 6, 8), fits=True), Python("/opt/pypy3"))

    none = probing.no_python("gpu-a", (), HoldfastError("this machine has no uv, which fetches it", hint="get uv"))
    other = probing.no_python("gpu-a", pythons, HoldfastError("nobody answers"))

    sentence = "gpu-a has no CPython of 3.10 or newer for 64 bits (found {}), and none can be sent: {}"
    by_hand = "install one there for yourself, without root: `uv python install 3.12`, or a Miniforge in your home"
    assert str(none) == sentence.format("no python3", "this machine has no uv, which fetches it")
    assert none.hint == f"get uv; or {by_hand}"
    assert str(other) == sentence.format(
        "/usr/bin/python3 (3.6.8), /opt/pypy3 (which does not answer)", "nobody answers"
    )
    assert other.hint == by_hand


def test_a_python_of_the_machine_is_taken_before_one_that_was_brought() -> None:
    brought = Python("/home/u/.holdfast/bundles/python-0123456789abcdef/bin/python3", (3, 13, 1), fits=True)
    found = dataclasses.replace(FACTS, pythons=(brought, GOOD))

    assert list(probing.choose("gpu-a", found, (3, 13)).values()) == [GOOD, brought]
    assert list(probing.choose("gpu-a", dataclasses.replace(found, pythons=(brought,)), (3, 11)).values()) == [brought]


def test_a_place_that_shells_would_read_otherwise_takes_no_python() -> None:
    probing.check_plain(FACTS)
    with pytest.raises(HoldfastError, match="'/home/u/my home' has a character"):
        probing.check_plain(dataclasses.replace(FACTS, place="/home/u/my home"))


def test_bundles_that_are_whole_are_told(tmp_path: Path) -> None:
    bundles = tmp_path / ".holdfast" / "bundles"
    for name in ("whole", "half", ".made.part"):
        (bundles / name).mkdir(parents=True)
    (bundles / "whole" / "bundle.json").touch()
    (bundles / "wheels").mkdir()
    (bundles / "wheels" / "abc.whl").touch()

    assert (probe(tmp_path).bundles, probe(tmp_path).wheels) == (("whole",), {"abc"})


def test_a_home_that_cannot_run_files_sends_code_to_another_place(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "needs root to mount")
    script = f'mount -t tmpfs -o noexec tmpfs {tmp_path} && mount -t tmpfs tmpfs /var/tmp && "$@"'

    found = probe(tmp_path, *apart(), "sh", "-c", script, "sh")

    assert (found.trials, found.place) == ({"home": "noexec", "/var/tmp": "runs"}, "/var/tmp/holdfast-0")
    assert found.files == "tmpfs"
    assert probing.choose("gpu-a", found, (3, 11))
    assert "mounted noexec: our code lies in /var/tmp/holdfast-0" in probing.warnings("gpu-a", found)[0]


def test_a_place_that_somebody_else_made_is_not_taken(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "needs root to mount")
    mounts = "mount -t tmpfs -o noexec tmpfs /tmp && mount -t tmpfs tmpfs /var/tmp"
    made = "mkdir /var/tmp/holdfast-0 && chown 65534 /var/tmp/holdfast-0"

    found = probe(Path("/tmp/home"), *apart(), "sh", "-c", f'{mounts} && {made} && "$@"', "sh")

    assert (found.place, found.trials) == ("", {"home": "noexec", "/tmp": "noexec"})


@pytest.mark.parametrize(("options", "sentence"), [
    ("ro", "cannot be written: Read-only file system"),
    ("size=9m,nr_inodes=1", "cannot be written: No space left on device"),
])  # fmt: skip
def test_a_home_that_cannot_be_written_is_told(tmp_path: Path, options: str, sentence: str) -> None:
    need(os.geteuid() == 0, "needs root to mount")
    found = probe(tmp_path, *apart(), "sh", "-c", f'mount -t tmpfs -o {options} tmpfs {tmp_path} && "$@"', "sh")

    with pytest.raises(Unfit, match=sentence):
        probing.choose("gpu-a", found, (3, 11))
    assert (found.place, list(found.trials)) == ("", ["home"])


def test_a_full_home_is_told(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "needs root to mount")
    script = f'mount -t tmpfs -o size=64k tmpfs {tmp_path} && head -c 65536 /dev/zero >{tmp_path}/all; "$@"'

    found = probe(tmp_path, *apart(), "sh", "-c", script, "sh")

    with pytest.raises(Unfit, match=f"the disk of {tmp_path}/.holdfast is full: 0 B are free"):
        probing.choose("gpu-a", found, (3, 11))


def test_a_python_whose_path_a_shell_would_read_otherwise_does_not_fit() -> None:
    lines = ("/opt/a-b_1.2+c/python3 3.12.1 cpython True", "/opt/$(id)/python3 3.12.1 cpython True")

    found = probing.facts([("python", line) for line in lines], 0.0)

    assert [python.fits for python in found.pythons] == [True, False]


@pytest.mark.usefixtures("laptop")
def test_what_another_version_remembers_of_a_node_is_asked_anew() -> None:
    platform = Platform("3.11", "x86_64", "glibc", "2.36")
    words = dict.fromkeys(("alias", "key", "home", "python", "folder", "bundle", "socket"), "word")
    node = places.Node(uid=1, platform=platform, **words)
    places.remember(node)
    assert places.remembered("word") == node
    (file,) = (runs.home() / "hosts").iterdir()
    told = json.loads(file.read_text())

    file.write_text(json.dumps({**told, "version": told["version"] + 1}))

    assert places.remembered("word") is None


def test_noise_around_the_answers_is_none() -> None:
    out = b"motd\nuid=7\nprompt> M-1\nuid=5\nno answer\nhome=/a=b\nM-1\nuid=9\n"

    assert probing.answers(out, "M-1") == [("uid", "5"), ("home", "/a=b")]
    assert probing.answers(b"motd\nM-1\nuid=5\n", "M-1") is None
    assert probing.answers(b"M-1\n" + b"x=y\n" * 100_000 + b"M-1\n", "M-1") is None


def test_the_laptops_own_version_is_chosen_before_others() -> None:
    other = Python("/opt/conda/bin/python3", (3, 13, 1), fits=True)
    found = dataclasses.replace(FACTS, pythons=(GOOD, other))

    assert list(probing.choose("gpu-a", found, (3, 13)).items()) == [
        (Platform("3.13", "x86_64", "glibc", "2.36"), other),
        (Platform("3.11", "x86_64", "glibc", "2.36"), GOOD),
    ]
    assert list(probing.choose("gpu-a", found, (3, 12)).values()) == [GOOD, other]


SET_HOME = "set HOLDFAST_HOME at the top of ~/.bashrc there to a folder that "


@pytest.mark.parametrize(("changed", "sentence", "hint"), [
    ({"system": "Darwin"}, "gpu-a is a Darwin: runs are for Linux", ""),
    ({"libc": ""}, "gpu-a has neither glibc nor musl", "wheels are made for these two"),
    (
        {"place": "", "trials": {"home": "noexec", "/tmp": "noexec"}},
        r"is mounted noexec, .* \(/tmp: noexec\)",
        f"{SET_HOME}is not mounted noexec",
    ),
    (
        {"trials": {"home": "Permission denied"}},
        "/home/u/.holdfast cannot be written: Permission denied",
        f"{SET_HOME}can be written",
    ),
    (
        {"trials": {"home": "x"}, "home_free_bytes": 4096},
        "the disk of /home/u/.holdfast is full: 4.0 KiB are free",
        f"free some space there, or {SET_HOME}has some",
    ),
])  # fmt: skip
def test_a_node_where_nothing_of_ours_runs_is_a_sentence(changed: dict[str, object], sentence: str, hint: str) -> None:
    with pytest.raises(Unfit, match=sentence) as refused:
        probing.choose("gpu-a", dataclasses.replace(FACTS, **changed), (3, 11))  # type: ignore[arg-type]
    assert refused.value.hint.startswith(hint)


def test_too_little_space_is_told_before_anything_is_sent() -> None:
    with pytest.raises(Unfit, match=r"gpu-a: 5\.0 MiB are free at /home/u/.holdfast, 60\.0 MiB are needed") as refused:
        probing.check_space("gpu-a", dataclasses.replace(FACTS, free_bytes=5 << 20), 60 << 20)
    assert refused.value.hint.startswith("free some space there, or set HOLDFAST_HOME")


def test_a_clock_that_is_far_off_is_a_warning() -> None:
    assert probing.warnings("gpu-a", dataclasses.replace(FACTS, ahead_s=59.0)) == []
    assert probing.warnings("gpu-a", dataclasses.replace(FACTS, ahead_s=-90.0)) == [
        "gpu-a: its clock is 1 min 30 s behind this machine's"
    ]


@pytest.mark.parametrize(("says", "kills"), [("b true", True), ("b false", False), ("", False)])
def test_a_machine_that_ends_what_a_login_has_begun_is_a_warning(tmp_path: Path, says: str, kills: bool) -> None:
    bus = tmp_path / "bin" / "busctl"
    bus.parent.mkdir()
    bus.write_text(
        f'#!/bin/sh\ncase "$*" in *" org.freedesktop.login1.Manager KillUserProcesses") echo "{says}";; esac\n'
    )
    bus.chmod(0o755)

    found = probe(tmp_path, path=f"{bus.parent}:/usr/bin:/bin")

    assert found.kills_at_logout is kills
    told = " ".join(probing.warnings("gpu-a", dataclasses.replace(FACTS, kills_at_logout=found.kills_at_logout)))
    assert ("(KillUserProcesses=yes): runs end with it" in told) is kills
    assert probing.warnings("gpu-a", dataclasses.replace(FACTS, kills_at_logout=kills, uid=0)) == []


def test_a_folder_of_several_machines_is_known_as_such() -> None:
    assert [dataclasses.replace(FACTS, files=each).is_shared for each in ("nfs4", "xfs", "fuseblk", "tmpfs")] == [
        True, False, True, False,
    ]  # fmt: skip
