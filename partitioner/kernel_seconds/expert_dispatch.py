"""Seconds of a mixture's dispatch, which sends tokens to the ranks of their experts, and of its combine, back.

A token goes once to each rank that holds one of its experts, and once to each other node. That all
experts are chosen alike is assumed.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from partitioner.hardware.link import TokenExchange


def ranks_of_a_token(experts: np.ndarray, choices: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How many of ``groups`` equal groups of the experts hold one of a token's ``choices`` different ones, expected; of
    more groups than experts, as many hold one each."""
    groups, choices = np.minimum(groups, experts), np.minimum(choices, experts)
    others = experts - experts / groups
    missed = np.where(others >= choices, _ways(np.maximum(others, choices), choices) - _ways(experts, choices), -np.inf)
    return groups * (1 - np.exp(missed))


def _ways(of: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Logarithm of how many sets of so many there are."""
    return gammaln(of + 1) - gammaln(chosen + 1) - gammaln(of - chosen + 1)


def seconds(
    tokens: np.ndarray, token_bytes: np.ndarray, experts: np.ndarray, choices: np.ndarray, ranks: np.ndarray,
    nodes: np.ndarray, row: TokenExchange, far_bytes_per_second: float,
) -> np.ndarray:  # fmt: skip
    """Of ``tokens`` of each rank among ``ranks`` ranks in ``nodes`` nodes: inside nodes as measured of the link,
    between nodes by each rank's port, the slower of the two."""
    copies = ranks_of_a_token(experts, choices, ranks)
    inside = token_bytes * (copies / row.bytes_per_second + 1 / row.own_bytes_per_second)
    far = token_bytes * ranks_of_a_token(experts, choices, nodes) * (1 - 1 / nodes) / far_bytes_per_second
    return row.fixed_seconds + tokens * (row.token_seconds + np.maximum(inside, far))
