"""``einsum``: its equation is the one it is called with."""

from __future__ import annotations

import math
import re

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


def einsum_flops(op: Op) -> float:
    """Operands are multiplied from left to right; what neither a later one nor the result has is summed over."""
    terms = _terms(op)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, op.operands, strict=False):
        for letter, size in _sizes(term, shape):
            sizes[letter] = max(size, sizes.get(letter, 1))
    total, held = 0.0, {*terms[0]}
    for n in range(1, len(op.operands)):
        held |= {*terms[n]}
        total += 2.0 * math.prod(sizes.get(letter, 1) for letter in held)
        held &= {letter for term in terms[n + 1 :] for letter in term}
    return total


def _sizes(term: list[str], shape: tuple[int, ...]) -> list[tuple[str, int]]:
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
