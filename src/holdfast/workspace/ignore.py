"""Which files belong to the code: .gitignore and .holdfastignore at every level, as git reads them.

The innermost file with a word on a path decides; in one folder .holdfastignore comes after .gitignore and may take
back what that one left out (`!data/`). A folder that is left out is not looked into.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import UsageError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

FILES = (".gitignore", ".holdfastignore")
STAGING = ".holdfast-sync"  # in a folder that a sync writes to: what is not whole yet
ALWAYS = frozenset({".git", ".hg", ".svn", "__pycache__", STAGING})
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Ignore:
    """The rules that hold in one folder, innermost first; each with the folder it was found in."""

    levels: tuple[tuple[str, GitIgnoreSpec], ...] = ()

    def entering(self, root: Path, folder: str) -> Ignore:
        """With the ignore files of `folder` (relative to `root`, empty for itself) added."""
        names = (".git/info/exclude", *FILES) if not folder else FILES
        lines = [line for name in names for line in _lines(root / folder / name)]
        if not lines:
            return self
        from pathspec import GitIgnoreSpec  # where there are rules: the end of a sync that gets files has none

        try:
            spec = GitIgnoreSpec.from_lines(lines)
        except ValueError as error:
            raise UsageError(f"{root / folder}: a pattern in {' or '.join(FILES)} cannot be read: {error}") from error
        return Ignore(((folder, spec), *self.levels))

    def leaves_out(self, path: str, *, is_dir: bool) -> bool:
        """Whether `path`, relative to the root, is ignored."""
        if path.rpartition("/")[2] in ALWAYS:
            return True
        for folder, spec in self.levels:
            inside = path[len(folder) + 1 :] if folder else path
            verdict = spec.check_file(inside + "/" if is_dir else inside).include
            if verdict is not None:
                return verdict
        return False


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace").splitlines()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return []
