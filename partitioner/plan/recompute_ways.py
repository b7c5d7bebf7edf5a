"""The ways in which backward runs parts of a block again instead of keeping what they made.

none         everything is kept
operators    what products by weights, attention and collectives make is kept, but for gathers; the rest runs again
selective    everything is kept but what attention writes of scores; its core runs again
full         what enters is kept; the block runs again
"""

from __future__ import annotations

from dataclasses import dataclass

NO_RECOMPUTE, OPERATORS, SELECTIVE, FULL_RECOMPUTE = "none", "operators", "selective", "full"


@dataclass(frozen=True)
class Way:
    """``whole``: the whole block runs again, from what enters it; else attention's core. ``keeps_results``: of products
    by weights, attention and collectives that do not gather, which do not run again then."""

    whole: bool = False
    keeps_results: bool = False


WAYS = {OPERATORS: Way(whole=True, keeps_results=True), SELECTIVE: Way(), FULL_RECOMPUTE: Way(whole=True)}
