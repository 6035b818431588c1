"""A small convolutional network with what makes an exact resume hard: dropout, and BatchNorm's running statistics."""

from __future__ import annotations

import hashlib

from torch import nn


def small_cnn(*, channels: int = 32, hidden: int = 512, dropout: float = 0.3) -> nn.Module:
    """Images (batch, 1, 8, 8) to logits (batch, 10); about 550 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(1, channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels),
        nn.GELU(),
        nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * channels * 16, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, 10),
    )


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor of the state dict, in order."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
