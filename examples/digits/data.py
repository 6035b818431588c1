"""Handwritten digits: 1797 real scans that come inside scikit-learn, augmented at random in the loader's workers."""

from __future__ import annotations

import random

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset

TRAINING_IMAGES = 1437  # 80 %


class Digits(Dataset):
    """Images (1, 8, 8) in 0..1 and labels 0..9; with `augment` each look at an image is a different one."""

    def __init__(self, *, train: bool, augment: bool) -> None:
        bunch = load_digits()
        order = np.random.default_rng(0).permutation(len(bunch.target))
        chosen = order[:TRAINING_IMAGES] if train else order[TRAINING_IMAGES:]
        self.images = torch.from_numpy(bunch.images[chosen] / 16).float()[:, None]
        self.labels = torch.from_numpy(bunch.target[chosen])
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return (augmented(image) if self.augment else image), self.labels[index]


def augmented(image: Tensor) -> Tensor:
    """Shift, contrast, noise: from the generators of Python, NumPy and torch, which a resume must all bring back."""
    shift = (random.randint(-1, 1), random.randint(-1, 1))
    contrast = float(np.random.uniform(0.8, 1.2))
    return torch.roll(image, shift, dims=(-2, -1)) * contrast + 0.05 * torch.randn_like(image)
