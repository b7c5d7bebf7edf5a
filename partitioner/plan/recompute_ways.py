"""The ways in which backward runs parts of a block again instead of keeping what they made.

none         everything is kept
operators    what products by weights, attention and collectives make is kept, but for gathers; the rest runs again
selective    everything is kept but what attention writes of scores; its core runs again
mlp          what enters the MLP is kept; its products and what lies between them run again
full         what enters is kept; the block runs again

Those of modules go together, ``selective+mlp``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

NO_RECOMPUTE, OPERATORS, SELECTIVE, FULL_RECOMPUTE = "none", "operators", "selective", "full"
MLP = "mlp"
_TOGETHER = "+"


@dataclass(frozen=True)
class Way:
    """``whole``: the whole block runs again, from what enters it; else ``modules`` of it. ``keeps_results``: of
    products by weights, attention and collectives that do not gather, which do not run again then."""

    modules: tuple[str, ...] = ()
    keeps_results: bool = False

    @property
    def whole(self) -> bool:
        """Whether the whole block runs again, from what enters it."""
        return not self.modules


MODULES = (SELECTIVE, MLP)  # "selective" alone is of attention's core, as Megatron-LM has it


def of_modules(*modules: str) -> str:
    """The way that recomputes some of MODULES."""
    return _TOGETHER.join(sorted(modules, key=MODULES.index))


_SOME = [some for n in range(1, 1 + len(MODULES)) for some in itertools.combinations(MODULES, n)]
WAYS = {
    OPERATORS: Way(keeps_results=True), **{of_modules(*some): Way(some) for some in _SOME}, FULL_RECOMPUTE: Way(),
}  # fmt: skip
