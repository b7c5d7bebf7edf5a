"""The next token of a text out of its logits: the likeliest, or one drawn by a key of seed, text and position.

    logits --> repetition penalty --> temperature --> top k --> top p --> the likeliest | drawn

The order and the meaning of each are those of transformers' ``generate``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from partitioner.errors import InputError
from partitioner.ops.distributions import sample
from partitioner.ops.own_ops import mix64


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. ``temperature`` 0: the likeliest. ``top_k``: of so many likeliest, 0 for all; ``top_p``:
    of the fewest that have this share of the probability together. ``repetition_penalty``: by which the score of each
    token that stands in the text is made less likely, 1 for none (Keskar et al., 2019). The same ``seed`` gives the
    same texts under every plan, however they are batched."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InputError for what can't be."""
        for name, right, words in (
            ("temperature", 0 <= self.temperature < math.inf, "0 or positive"),
            ("top_k", self.top_k >= 0, "0 (all) or positive"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at the most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "positive"),
        ):
            if not right:
                raise InputError(f"{name} is {getattr(self, name)}: it must be {words}")

    @property
    def is_likeliest(self) -> bool:
        """Whether a token is the one of the largest logit, whatever stands before it."""
        return self.temperature == 0 and self.repetition_penalty == 1 and self.top_p == 1


def scores(logits: torch.Tensor, text: Sequence[int], how: Sampling) -> torch.Tensor:
    """The scores (classes,), float64, of which a softmax is drawn from; -inf for what is left out."""
    found = logits.double().cpu()
    if how.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(text)))
        own = found[seen]
        less = torch.where(own < 0, own * how.repetition_penalty, own / how.repetition_penalty)
        found = found.scatter(0, seen, less)
    if how.temperature:
        found = found / how.temperature
    if how.top_k and how.top_k < len(found):
        found = found.masked_fill(found < found.topk(how.top_k).values[-1], -math.inf)
    if how.top_p < 1:
        rising, order = found.sort()
        left_out = rising.softmax(-1).cumsum(-1) <= 1 - how.top_p
        left_out[-1] = False
        found = found.masked_fill(left_out[order.argsort()], -math.inf)
    return found


def choose(logits: torch.Tensor, text: Sequence[int], how: Sampling, number: int) -> int:
    """The next token of the ``number``-th text, ``text`` so far, of logits (classes,)."""
    found = scores(logits, text, how)
    if how.temperature:  # Gumbel's trick: the largest is drawn as a softmax is, and hangs on no order of sums
        key = mix64(how.seed, number, len(text))
        exponential = sample("exponential", (1.0,), found.shape, key, torch.float64, torch.device("cpu"))
        found = found - exponential.clamp(min=1e-300).log()
    return int(found.argmax())
