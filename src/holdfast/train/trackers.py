"""Ids that experiment trackers make for themselves, told so that the next attempt continues the same history.

W&B takes an id that we choose before it starts; MLflow makes its own, and continues it where `MLFLOW_RUN_ID` names it.
"""

from __future__ import annotations

import contextlib
import sys


def mlflow_run_id() -> str:
    """The id of MLflow's active run in this process; empty without one. Never imports MLflow."""
    mlflow = sys.modules.get("mlflow")
    with contextlib.suppress(AttributeError):  # imported only in part, or not what we take it for
        active = mlflow.active_run() if mlflow is not None else None
        return str(active.info.run_id) if active is not None else ""
    return ""
