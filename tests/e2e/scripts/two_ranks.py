"""Two ranks under torchrun with DDP over gloo; rank 0 writes the digest of the final weights."""

import hashlib
import os
import pathlib
import sys
import time
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import holdfast

STEP_S, SLOW_FROM = float(os.environ.get("STEP_S", "0")), int(os.environ.get("SLOW_FROM", "1000000"))
RUN = pathlib.Path(os.environ["HOLDFAST_RUN_DIR"])
# Torch's compiler, which nothing here uses, and every optimizer and DDP import: half the time it takes to start.
sys.modules["torch._dynamo"] = SimpleNamespace(
    disable=lambda f, *_, **__: f, graph_break=lambda: None, trace_rules=SimpleNamespace(clear_lru_cache=lambda: None),
    utils=SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization"),
)  # fmt: skip


def work(step: int) -> None:
    """A step takes STEP_S; from SLOW_FROM on a second more, until a file `enough`: who watches need not hurry."""
    time.sleep(STEP_S)
    until_s = time.monotonic() + (step >= SLOW_FROM)
    while time.monotonic() < until_s and not (RUN / "enough").exists():
        time.sleep(0.01)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    dist.init_process_group("gloo")
    data = TensorDataset(x := torch.randn(256, 8), x.sum(1, keepdim=True))
    net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 1))
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = DataLoader(data, batch_size=16, sampler=DistributedSampler(data))
    ballast = nn.Linear(1, int(os.environ.get("BALLAST_MB", "0")) << 17)  # what makes a save take longer than a step
    run = holdfast.Run(model=model, optimizer=optimizer, ballast=ballast, loader=loader)
    for x, y in run.steps(loader, epochs=int(os.environ.get("EPOCHS", "5"))):
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log(loss=loss)
        if "SAVE_ALWAYS" in os.environ:
            run.save(reason="always")
        work(run.step + 1)
    if os.environ.get("NEWS_OF_RANK") == str(dist.get_rank()):
        run.state["after"] = "the loop"
    if dist.get_rank() == 0:
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
        (RUN / "final.txt").write_text(digest)
    dist.destroy_process_group()


main()
