"""The GPT of examples/gpt.py over tokens: learned positions, GELU, one table for embedding and head."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))
import gpt


def model(
    vocab: int = 2048, hidden: int = 192, layers: int = 4, heads: int = 6, seq: int = 128, dropout: float = 0.0,
    batch: int = 2,
) -> tuple[nn.Module, dict[str, Tensor]]:  # fmt: skip
    """The module and an example batch of ``batch`` samples of ``seq`` tokens."""
    return gpt.model(vocab, hidden, layers, heads, seq, dropout, tied=True, batch=batch)
