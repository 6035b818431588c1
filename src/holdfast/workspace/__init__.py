"""The user's code, copied once for each run, so that edits made meanwhile do not change what is running.

snapshot(workdir, into)   copy what the ignore files leave, links and modes kept
describe_git(workdir)     commit and dirty state, None outside a repository
"""

from __future__ import annotations

from holdfast.workspace.copying import Copied, TooBig, snapshot
from holdfast.workspace.git_state import describe_git

__all__ = ["Copied", "TooBig", "describe_git", "snapshot"]
