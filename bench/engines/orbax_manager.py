"""Orbax's CheckpointManager (JAX), asynchronous as it is by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.engines import NOTHING, Engine, Loaded
from bench.job import Job, Weights


def _manager(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    return ocp.CheckpointManager(folder.resolve(), options=ocp.CheckpointManagerOptions(max_to_keep=2))


class OrbaxManager(Engine):
    title = "Orbax CheckpointManager"
    documented = "https://orbax.readthedocs.io/en/latest/guides/checkpoint/orbax_checkpoint_101.html"
    packages = ("orbax-checkpoint", "jax")
    preload = ()  # JAX starts threads when imported: no process may be forked after that
    retention = "max_to_keep=2"

    def train(self, folder: Path, job: Job) -> None:
        import orbax.checkpoint as ocp

        manager = _manager(folder)
        under_way: list[int] = []

        def finish() -> None:
            manager.wait_until_finished()  # raises what went wrong
            while under_way:
                job.saved(under_way.pop())

        def look() -> None:
            if under_way and not manager.is_saving_in_progress():
                finish()

        job.each = look
        for step in job.steps():
            finish()
            state = {name: value.numpy() for name, value in job.weights.state_dict().items()}
            manager.save(step, args=ocp.args.StandardSave(state))
            under_way.append(step)
        finish()
        manager.close()

    def load(self, folder: Path, weights: Weights) -> Loaded:
        import orbax.checkpoint as ocp

        manager = _manager(folder)
        step = manager.latest_step()
        if step is None:
            return NOTHING
        template = {name: value.numpy() for name, value in weights.state_dict().items()}
        state = manager.restore(step, args=ocp.args.StandardRestore(template))
        weights.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
        return Loaded(step)
