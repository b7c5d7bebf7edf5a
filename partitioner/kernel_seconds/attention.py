"""Seconds of fused attention: the scores that are seen, each with its products and its softmax, which half overlap.

    seconds = fixed + (scores + overhead x rows + tail) x hypot(products, softmax) of a score + bytes of keys

and no less than the longest block of rows takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from partitioner.hardware.device import Attention, Device

RING_PASSES = 5  # of the result that each step of a ring streams, each way: half of the queries copied, what was
# found so far read, corrected in float32 and written (AttnFuncWithCPAndKVP2P of Transformer Engine, by its code)
BLOCK = 128  # rows of queries, and keys, that one multiprocessor has at a time


@dataclass(frozen=True)
class Attended:
    """``rows`` queries, over all sequences and heads, see ``scores`` keys together, of ``keys`` that each sequence has.

    ``width``: of a query and of a value, together. ``key_heads``: keys over all sequences and heads of keys.
    ``backward``: whether it is the gradient of such a call.
    """

    rows: float
    scores: float
    keys: float
    width: float
    key_heads: float
    backward: bool = False

    @property
    def flops(self) -> float:
        """Of its two products; of backward's five."""
        return (5.0 if self.backward else 2.0) * self.scores * self.width

    def ring(self, ranks: int, causal: bool) -> tuple[Attended, ...]:
        """As so many ranks do it that pass their keys on, one call for the keys of each; under a causal mask, which
        deals every rank an early and a late part, all but the own keys meet half of the queries, or half of the keys
        all (Brandon et al., Striped Attention, 2023)."""
        own = replace(self, scores=self.scores / ranks, keys=self.keys / ranks, key_heads=self.key_heads / ranks)
        return own, *[replace(own, rows=own.rows / (2 if causal else 1))] * (ranks - 1)


def attention_seconds(attended: Attended, device: Device, dtype: str, generation: str = "") -> float:
    """``generation``: of its kernels, where they are not the fastest. Raises InputError where there is no peak for
    ``dtype``."""
    row, a = device.attention, attended
    rows, scores, keys, width, key_heads = (np.array([x]) for x in (a.rows, a.scores, a.keys, a.width, a.key_heads))
    found = seconds(
        rows, scores, keys, width, key_heads, row, device.peak(dtype) * device.sustained, device.multiprocessors,
        device.memory_bytes_per_second,
    )  # fmt: skip
    times = (row.backward if a.backward else 1.0) / row.generation_shares.get(generation, 1.0)
    return row.fixed_seconds + (float(found[0]) - row.fixed_seconds) * times


def seconds(
    rows: np.ndarray, scores: np.ndarray, keys: np.ndarray, width: np.ndarray, key_heads: np.ndarray, row: Attention,
    peak: float, multiprocessors: int, bandwidth: float,
) -> np.ndarray:  # fmt: skip
    """Of many calls at once; ``peak`` in FLOP/s, ``bandwidth`` in bytes/s."""
    each = np.hypot(2.0 * width / row.share, row.score_flops_each) / peak
    if multiprocessors == 1:
        return row.fixed_seconds + each * scores
    longest = BLOCK * multiprocessors * (keys + row.row_overheads)
    busy = np.maximum(scores + row.row_overheads * rows + row.tail * longest, longest)
    return row.fixed_seconds + each * busy + row.key_bytes_each * key_heads / bandwidth
