"""A byte-level GPT: 256 tokens, 0.9 million parameters, small enough for one core."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Attention over earlier bytes, then a two-layer perceptron, both residual.

    Shapes: B batch, T bytes, C channels, H heads.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C). Returns (B, T, C)."""
        x = x + self.attend(self.before_attention(x))
        return x + self.mlp(self.before_mlp(x))

    def attend(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, C / H)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, H, T, C / H)
        dropout = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.out(seen.transpose(1, 2).flatten(2))


class ByteGPT(nn.Module):
    def __init__(
        self, *, context: int, channels: int = 128, layers: int = 4, heads: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, channels)
        self.position = nn.Parameter(0.02 * torch.randn(context, channels))
        self.blocks = nn.Sequential(*(Block(channels, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 256)

    def forward(self, text: Tensor) -> Tensor:
        """text: bytes (B, T) as integers. Returns logits (B, T, 256)."""
        x = self.bytes(text) + self.position[: text.shape[1]]
        return self.head(self.norm(self.blocks(x)))
