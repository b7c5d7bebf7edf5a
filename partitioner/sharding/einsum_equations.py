"""``einsum``: its equation is the one it is called with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from partitioner.sharding.op_equations import Op

REST = "..."


def einsum(op: Op) -> str:
    """As it is written; a letter that stands twice in a term, for a diagonal, stays whole."""
    terms = _terms(op)
    twice = {letter for term in terms for letter in term if term.count(letter) > 1}
    words = [[_word(letter, n, d, letter in twice) for d, letter in enumerate(term)] for n, term in enumerate(terms)]
    *left, right = (" ".join(term) for term in words)
    return f"{', '.join(left)} -> {right}"


def _word(letter: str, term: int, place: int, twice: bool) -> str:
    return "*rest" if letter == REST else f"{letter}{term}x{place}!" if twice else letter


def products(op: Op, shapes: Sequence[Sequence[float]]) -> list[tuple[float, float, float, float]]:
    """m, n, k and count of each product of operands of these shapes, which are multiplied from left to right.

    What neither a later operand nor the result has is summed over.
    """
    terms = _terms(op)
    sizes: dict[str, float] = {}
    for term, shape in zip(terms, shapes, strict=False):
        for letter, size in _sizes(term, shape):
            sizes[letter] = max(size, sizes.get(letter, 1.0))
    found, left = list[tuple[float, float, float, float]](), {*terms[0]}
    for n in range(1, len(shapes)):
        right, wanted = {*terms[n]}, {letter for term in terms[n + 1 :] for letter in term}
        parts = (left & wanted) - right, (right & wanted) - left, (left | right) - wanted, left & right & wanted
        rows, columns, depth, count = (math.prod(sizes[letter] for letter in part) for part in parts)
        found.append((rows, columns, depth, count))
        left = (left | right) & wanted
    return found


def _sizes(term: list[str], shape: Sequence[float]) -> list[tuple[str, float]]:
    """Each letter's size; the three dots are as large as all dimensions that they stand for."""
    if REST not in term:
        return [*zip(term, shape, strict=True)]
    at, many = term.index(REST), len(shape) - len(term) + 1
    rest = [*shape[:at], math.prod(shape[at : at + many]), *shape[at + many :]]
    return [*zip(term, rest, strict=True)]


def _terms(op: Op) -> list[list[str]]:
    """The letters and the three dots of each operand and of the result, which is made up where it is not written."""
    left, arrow, right = str(op.literal("equation")).replace(" ", "").partition("->")
    terms = [re.findall(r"\.\.\.|\w", term) for term in left.split(",")]
    letters = [letter for term in terms for letter in term]
    once = sorted(c for c in letters if c != REST and letters.count(c) == 1)
    implied = [REST] * (REST in letters) + once
    return [*terms, re.findall(r"\.\.\.|\w", right) if arrow else implied]
