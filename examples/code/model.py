"""The decoder of examples/llama.py over the tokens of source files, of which none attends to another."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))
import llama


def model(
    vocab: int = 2048, hidden: int = 192, mlp: int = 512, layers: int = 4, heads: int = 6, groups: int = 2,
    seq: int = 128, documents: bool = True, batch: int = 2,
) -> tuple[nn.Module, dict[str, Tensor]]:  # fmt: skip
    """The module and an example batch of ``batch`` samples of ``seq`` tokens."""
    module = llama.Llama(llama.Size(vocab, hidden, mlp, layers, heads, groups))
    return module, llama.example(vocab, seq, batch, documents)
