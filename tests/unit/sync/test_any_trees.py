"""Two folders of any shape: afterwards they are equal but for what is ignored, and nothing is sent again."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sync.ends import held, synced

_NAMES = st.sampled_from(["a", "b", "c", "x.log", "é", "new\nline", "-", "…"])
_LEAF = st.one_of(
    st.binary(max_size=40).map(lambda data: ("file", data)),
    st.sampled_from(["a", "b/c", ".", "nowhere"]).map(lambda text: ("link", text)),
)
_TREES = st.recursive(
    st.dictionaries(_NAMES, _LEAF, max_size=4),
    lambda inner: st.dictionaries(_NAMES, st.one_of(_LEAF, inner), max_size=4),
    max_leaves=12,
)


def write(root: Path, shape: dict) -> None:  # type: ignore[type-arg]
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    _fill(root, shape)
    (root / ".gitignore").write_text("*.log\n")


def _fill(folder: Path, shape: dict) -> None:  # type: ignore[type-arg]
    for name, what in shape.items():
        if isinstance(what, dict):
            (folder / name).mkdir()
            _fill(folder / name, what)
        elif what[0] == "file":
            (folder / name).write_bytes(what[1])
        else:
            (folder / name).symlink_to(what[1])


@settings(max_examples=25, deadline=None)
@given(first=_TREES, second=_TREES)
def test_whatever_becomes_of_the_source_the_target_follows(first: dict, second: dict) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "s"), Path(folder, "t")
        write(source, first)
        synced(source, target).whole()
        assert held(target) == held(source)

        write(source, second)
        synced(source, target, delete=True).whole()
        assert held(target) == held(source)

        again = synced(source, target, delete=True).whole()
        assert (again.sent.moved_bytes, again.sent.lines) == (0, [])


@settings(max_examples=20, deadline=None)
@given(first=_TREES, mine=_TREES)
def test_what_was_there_stays_to_the_byte(first: dict, mine: dict) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "s"), Path(folder, "t")
        write(source, first)
        write(target, mine)
        before = held(target, without="no such")

        done = synced(source, target, delete=True).whole()

        after = held(target, without="no such")
        same = {path for path, what in held(source).items() if before.get(path, (None,))[0] == what[0]}
        assert {path: what for path, what in before.items() if path not in same} == {
            path: after.get(path) for path in before if path not in same
        }
        assert not done.sent.paths("deleted")
