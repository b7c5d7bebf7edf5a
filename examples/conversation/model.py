"""The decoder of examples/llama.py over packed dialogues, as it is, and frozen with adapters of low rank by peft."""

from __future__ import annotations

import sys
from pathlib import Path

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))
import llama

ADAPTED = ["q", "k", "v", "out", "gate", "up", "down"]  # every product of a block


def model(
    vocab: int = 2048, hidden: int = 192, mlp: int = 512, layers: int = 4, heads: int = 6, groups: int = 2,
    seq: int = 128, documents: bool = True, batch: int = 2,
) -> tuple[nn.Module, dict[str, Tensor]]:  # fmt: skip
    """The module and an example batch of ``batch`` samples of ``seq`` tokens."""
    module = llama.Llama(llama.Size(vocab, hidden, mlp, layers, heads, groups))
    return module, llama.example(vocab, seq, batch, documents)


def adapted(rank: int = 8, **settings: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same with adapters, which alone are trained."""
    module, batch = model(**settings)
    return with_adapters(module, rank), batch


def with_adapters(module: nn.Module, rank: int) -> nn.Module:
    """Adapters of ``rank`` beside every product of the blocks of a model, which is frozen."""
    return get_peft_model(module, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED))
