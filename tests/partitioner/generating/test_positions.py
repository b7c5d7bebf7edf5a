"""Models whose answers can't be made position by position are refused, by the name of the op that mixes positions."""

from __future__ import annotations

import re

import pytest
import torch
from answers import derived
from hand_decoders import MADE, HandDecoder, Mix, by_one_op, made
from refused_decoders import MIXES, causal_as_traced
from torch import nn
from torch.nn import functional as F

from partitioner.generating.refusal import NotDerived
from tools.models.load import load

EVERY_DAY = ("convolution", "mean", "running_sum", "no_mask", "next_position_seen", "causal_as_traced", "no_softmax")


@pytest.mark.parametrize(
    "mix", [pytest.param(m, marks=[] if m.__name__ in EVERY_DAY else [pytest.mark.parity]) for m in MIXES],
    ids=lambda mix: mix.__name__,
)  # fmt: skip
def test_mixed_positions_are_refused_by_name(mix: Mix) -> None:
    with pytest.raises(NotDerived, match=re.escape(f"{MIXES[mix]} in blocks.0 ")):
        derived(*made(mix), 40)


def test_a_mask_that_is_causal_at_a_length_is_refused_beyond_it_alone() -> None:
    assert derived(*made(causal_as_traced), 24).walked.masks
    with pytest.raises(NotDerived, match="looks at what comes later"):
        derived(*made(causal_as_traced), 25)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "word"),
    [("bert", "aten.scaled_dot_product_attention.default in bert.encoder.layer.0.attention.self looks at what comes"),
     ("mamba", "backbone.layers.0.mixer"), ("gpt_oss", "aten.cat.default in model.layers.0.self_attn")],
)  # fmt: skip
def test_models_of_transformers_that_mix_positions(name: str, word: str) -> None:
    source = load(f"hf:{name}", {}, seq=24, batch=2, shrink=True)
    with pytest.raises(NotDerived, match=re.escape(word)):
        derived(source.module, source.batch, 40)


class OfTheLast(HandDecoder):
    """Logits of one position of each text."""

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, tokens)
        return F.cross_entropy(self.head(self.norm(x)[:, -1]), labels[:, -1])


class TwoLosses(HandDecoder):
    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        first = self.head(self.norm(self.embed(tokens)))
        return super().forward(tokens, labels) + F.cross_entropy(first.flatten(0, 1), labels.flatten())


class Squared(HandDecoder):
    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(tokens))).square().mean()


@pytest.mark.parametrize(
    ("kind", "word"),
    [(OfTheLast, "mixes positions|not of each position"), (TwoLosses, "the loss has 2 cross entropies"),
     (Squared, "the loss has no cross entropies")],
)  # fmt: skip
def test_what_ends_in_no_logits_of_each_position(kind: type[HandDecoder], word: str) -> None:
    _, batch = MADE["by_one_op"]()
    model: nn.Module = kind(by_one_op)
    with pytest.raises(NotDerived, match=word):
        derived(model, batch, 40)
