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
        for step in job.steps():
            state = {name: value.numpy().copy() for name, value in job.weights.state_dict().items()}
            manager.save(step, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            job.saved(step)
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
