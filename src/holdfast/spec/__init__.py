"""The run file: text in, `Spec` out, or every mistake at once.

Pure: whoever calls reads the files and hands over the environment.

    spec = load([Source("holdfast.yaml", text)], overrides=["restart.max_restarts=5"], environ=os.environ)
"""

from __future__ import annotations

from holdfast.spec.load import dump, load
from holdfast.spec.mistakes import Mistake, RunFileMistakes, Source
from holdfast.spec.run_file import Spec

__all__ = ["Mistake", "RunFileMistakes", "Source", "Spec", "dump", "load"]
