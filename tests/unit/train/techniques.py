"""Ways to train, each a few lines that make objects for `Run` and a function for one step; all deterministic."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Step = Callable[[torch.Tensor, int], None]


class Made(NamedTuple):
    """What is registered, and one step on a batch (4, 6), given its number."""

    objects: dict[str, Any]
    step: Step


def net(device: torch.device, *, dropout: float = 0.3) -> nn.Sequential:
    """One tensor is large enough to be cut."""
    layers = [nn.Linear(6, 300), nn.BatchNorm1d(300), nn.Dropout(dropout), nn.Linear(300, 301), nn.Linear(301, 2)]
    return nn.Sequential(*layers).to(device)


def loss_of(model: Any, x: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(x).square().mean()
    return loss


def plain(make: Callable[[Any], torch.optim.Optimizer]) -> Callable[[torch.device], Made]:
    def build(device: torch.device) -> Made:
        model = net(device)
        optimizer = make(model.parameters())

        def step(x: torch.Tensor, _number: int) -> None:
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()

        return Made({"model": model, "optimizer": optimizer}, step)

    return build


def average(device: torch.device) -> Made:
    made = plain(lambda p: torch.optim.AdamW(p, 0.01))(device)
    ema = AveragedModel(made.objects["model"], multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    def step(x: torch.Tensor, number: int) -> None:
        made.step(x, number)
        ema.update_parameters(made.objects["model"])

    return Made({**made.objects, "ema": ema}, step)


def adversarial(device: torch.device) -> Made:
    """Two optimizers, clipped weights, and a critic that steps more often than the generator."""
    critic, generator = nn.Linear(6, 1).to(device), nn.Linear(3, 6).to(device)
    of_critic = torch.optim.RMSprop(critic.parameters(), 0.01)
    of_generator = torch.optim.Adam(generator.parameters(), 0.01, betas=(0.5, 0.9))

    def step(x: torch.Tensor, number: int) -> None:
        made = generator(torch.randn(4, 3, device=device))
        of_critic.zero_grad()
        (critic(made.detach()).mean() - critic(x).mean()).backward()
        of_critic.step()
        for parameter in critic.parameters():
            parameter.data.clamp_(-0.05, 0.05)
        if number % 2:
            of_generator.zero_grad()
            (-critic(made)).mean().backward()
            of_generator.step()

    objects = {"critic": critic, "generator": generator, "of_critic": of_critic, "of_generator": of_generator}
    return Made(objects, step)


def accumulation(device: torch.device) -> Made:
    model = net(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def step(x: torch.Tensor, number: int) -> None:
        loss_of(model, x).backward()
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()

    return Made({"model": model, "optimizer": optimizer}, step)


def in_backward(device: torch.device) -> Made:
    """An optimizer for each parameter, stepped as soon as its gradient is there."""
    model = net(device)
    optimizers = {p: torch.optim.Adam([p], 0.01) for p in model.parameters()}

    def act(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(act)

    def step(x: torch.Tensor, _number: int) -> None:
        loss_of(model, x).backward()

    named = {f"optimizer_{n}": optimizer for n, optimizer in enumerate(optimizers.values())}
    return Made({"model": model, **named}, step)


def closures(device: torch.device) -> Made:
    model = net(device, dropout=0.0)
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3, history_size=4, line_search_fn="strong_wolfe")

    def step(x: torch.Tensor, _number: int) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, x)
            loss.backward()
            return loss

        optimizer.step(closure)

    return Made({"model": model, "optimizer": optimizer}, step)


def scaler(device: torch.device) -> Made:
    """Every third step overflows and is left out; weights are clipped all the same."""
    model = net(device)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scaling = torch.amp.GradScaler(device.type, init_scale=2.0**10, growth_interval=2)

    def step(x: torch.Tensor, number: int) -> None:
        optimizer.zero_grad()
        overflow = float("inf") if number % 3 == 1 else 1.0
        scaling.scale(loss_of(model, x) * overflow).backward()
        scaling.step(optimizer)
        scaling.update()
        for parameter in model.parameters():
            parameter.data.clamp_(-0.3 + 0.01 * number, 0.3)

    return Made({"model": model, "optimizer": optimizer, "scaler": scaling}, step)


def tied(device: torch.device) -> Made:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 6)
            self.out = nn.Linear(6, 50, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.words(x.abs().mul(10).long() % 50).mean(1) + x)

    model = Language().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)

    def step(x: torch.Tensor, _number: int) -> None:
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()

    return Made({"model": model, "optimizer": optimizer}, step)


def compiled(device: torch.device) -> Made:
    """Model and step through Dynamo; no compiler is needed."""
    torch._dynamo.reset()  # past its limit of recompilations it steps in another way, with other roundings
    inner = nn.Linear(6, 2).to(device)
    model = torch.compile(inner, backend="eager")
    optimizer = torch.optim.SGD(inner.parameters(), 0.01, momentum=0.9)
    update = torch.compile(optimizer.step, backend="eager")

    def step(x: torch.Tensor, _number: int) -> None:
        optimizer.zero_grad()
        loss_of(model, x).backward()
        update()

    return Made({"model": model, "optimizer": optimizer}, step)


def parametrised(device: torch.device) -> Made:
    model = net(device)
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[3])
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)

    def step(x: torch.Tensor, _number: int) -> None:
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()

    return Made({"model": model, "optimizer": optimizer}, step)


def sparse(device: torch.device) -> Made:
    """Gradients of an embedding stay sparse and are accumulated over two batches."""
    words = nn.Embedding(40, 5, sparse=True).to(device)
    optimizer = torch.optim.SparseAdam(words.parameters(), 0.01)

    def step(x: torch.Tensor, number: int) -> None:
        words(x.abs().mul(10).long() % 40).square().mean().backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()

    return Made({"words": words, "optimizer": optimizer}, step)


def quantised(device: torch.device) -> Made:
    """A buffer that is a quantised copy of the weights, made anew with each step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = plain(lambda p: torch.optim.Adam(p, 0.01))(device)
        model = made.objects["model"]

        def shrink() -> torch.Tensor:
            weight = model[4].weight.detach()
            scales, zeros = weight.abs().amax(1) / 127, torch.zeros(2, dtype=torch.int64, device=device)
            return torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)

        model.register_buffer("small", shrink())

    def step(x: torch.Tensor, number: int) -> None:
        made.step(x + model.small.dequantize().mean(), number)
        model.small = shrink()

    return Made(made.objects, step)


def swapped(device: torch.device) -> Made:
    """Averaged weights stand in for the model's own between its step and the next."""
    made = plain(lambda p: torch.optim.AdamW(p, 0.01))(device)
    model = made.objects["model"]
    shadow = copy.deepcopy(model)

    def step(x: torch.Tensor, number: int) -> None:
        made.step(x, number)
        with torch.no_grad():
            for mean, own in zip(shadow.parameters(), model.parameters(), strict=True):
                mean.lerp_(own, 0.1)
            if number % 2:
                for mean, own in zip(shadow.parameters(), model.parameters(), strict=True):
                    own.data.copy_(mean)

    return Made({**made.objects, "shadow": shadow}, step)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "adam-foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True, amsgrad=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adam-loop": lambda p: torch.optim.Adam(p, 0.01, foreach=False),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
}
WAYS = (
    average,
    adversarial,
    accumulation,
    in_backward,
    closures,
    scaler,
    tied,
    compiled,
    parametrised,
    sparse,
    quantised,
)
TECHNIQUES: dict[str, Callable[[torch.device], Made]] = {
    **{name: plain(make) for name, make in OPTIMIZERS.items()},
    **{way.__name__: way for way in (*WAYS, swapped)},
}
