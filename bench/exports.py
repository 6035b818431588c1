"""What transformers makes of `holdfast ckpt export --format huggingface`: the same parameters to the bit, no others.

Models of a few thousand parameters, made from a config here, nothing downloaded: one with tied weights, one without,
one in bfloat16, one in several files with an index. Each is trained for two steps under `Run`, exported, loaded with
`from_pretrained` and compared. Exits with 1 when one differs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel
from transformers.utils import logging

import holdfast

STEPS, VOCABULARY = 2, 64


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and how it is exported."""

    make: Callable[[], PreTrainedModel]
    options: tuple[str, ...] = ()


def gpt2() -> PreTrainedModel:
    """Embedding and head are one tensor."""
    return AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    )


def llama() -> PreTrainedModel:
    """Embedding and head are two."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=False, **sizes))


CASES: Mapping[str, Case] = {
    "gpt2, tied": Case(gpt2),
    "llama": Case(llama),
    "llama, bfloat16": Case(lambda: llama().to(torch.bfloat16)),
    "llama, several files": Case(llama, ("--shard-size", "20KB")),
}


def trained(make: Callable[[], PreTrainedModel], folder: Path) -> PreTrainedModel:
    """The model after its steps, of which `folder` has the checkpoint."""
    torch.manual_seed(1)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run = holdfast.Run(dir=folder, model=model, optimizer=optimizer)
    run.begin()
    while run.step < STEPS:
        tokens = torch.randint(VOCABULARY, (2, 16))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.tick()
    run.close()
    return model


def differences(case: Case, work: Path) -> list[str]:
    """A sentence for each thing that `from_pretrained` makes other than it was."""
    model = trained(case.make, work / "run")
    model.config.save_pretrained(work / "config")
    argv = [sys.executable, "-m", "holdfast", "ckpt", "export", str(work / "run" / "checkpoints"), str(work / "out")]
    argv += ["--format", "huggingface", "--config", str(work / "config"), *case.options]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    loaded, told = AutoModelForCausalLM.from_pretrained(work / "out", dtype="auto", output_loading_info=True)
    said = [f"{kind}: {sorted(names)}" for kind, names in told.items() if names]
    here, there = model.state_dict(), loaded.state_dict()
    if here.keys() != there.keys():
        said.append(f"names: {sorted(here.keys() ^ there.keys())}")
    return said + [name for name, value in here.items() if name in there and not same_bits(value, there[name])]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Also where a number is no number."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def main() -> int:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as work:
            found[name] = differences(case, Path(work))
        print(f"{name:22} {'; '.join(found[name]) or 'the same to the bit'}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
