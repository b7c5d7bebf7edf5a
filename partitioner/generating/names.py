"""Names of what a graph that answers is given beside the parameters of its model."""

from __future__ import annotations

TOKENS = "tokens"  # (b, n), of each text
START = "start"  # (b,), how many positions of each came before
LAST = "last"  # (b,), which of the n positions is to have logits
FRESH = "fresh"  # (b,), whether a row's source is a new one

# They stand among the parameters, each followed by a number: nothing trains them, and the graph writes them in place.
CACHE = "cache:"  # what positions before have left for those that look at them
MEMORY = "memory:"  # what a source has left for the positions of its answer


def is_kept(name: str) -> bool:
    """Whether a parameter is none of the model's, but what is kept from call to call."""
    return name.startswith((CACHE, MEMORY))
