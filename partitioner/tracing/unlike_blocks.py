"""Blocks that have no twin: modules that run one after the other, found by which modules hold which ops.

    modules     patch | stage 0          | stage 1                  | norm head
                      | block    block   | merge   block    block   |
    found               ^--------^---------^-------^----------------^

A module is a block where it holds products and can't be divided itself: what it holds does not follow one on the other,
or each of its parts is added to what the part read (attention, then an MLP). Cut is where the fewest values cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import fx

from partitioner.graph.dependence import module_path
from partitioner.graph.nodes import operands
from partitioner.sharding.op_rules import rule_of

PRODUCTS, MOST = 2, 16  # with parameters that a block holds at least; blocks without a twin of one stretch
Span = tuple[int, int]


def unlike_blocks(modules: Modules, live: np.ndarray, span: Span, alone: bool) -> dict[Span, str]:
    """Blocks of the stretch ``span`` of the body by name, one behind the other; none where there are not two.

    ``live``: bytes that cross before each op. ``alone``: whether a module whose parts are each added to what they read
    may be divided where nothing else can.
    """
    parts = modules.parts(span, 0, False)
    if len(parts) < 2 and alone:
        parts = modules.parts(span, 0, True)
    found = _merged(_touching(parts, span, modules, live), modules.products) if parts else []
    return {block: _name(modules.body, block, parts) for block in found} if len(found) > 1 else {}


class Modules:
    """What the modules of ``body`` hold. ``products``: how many products with parameters stand before each op."""

    def __init__(self, body: Sequence[fx.Node], ahead: set[fx.Node]) -> None:
        self.body, self.ahead = body, ahead
        self.place = {n: i for i, n in enumerate(body)}
        self.products = np.cumsum([0, *(is_weighty(n) for n in body)])
        self.values = _values(body, ahead)

    def parts(self, span: Span, depth: int, added: bool) -> list[Span]:
        """Blocks of a stretch whose ops share ``depth`` modules; ``added``: the first sum of its parts is divided."""
        heavy = [s for s in self._children(span, depth) if self.products[s[1]] - self.products[s[0]] >= PRODUCTS]
        chain = self._chain(heavy)
        if len(chain) == 1 == len(heavy):
            found = self.parts(heavy[0], depth + 1, added)
            return found if len(found) > 1 else [span]
        if len(chain) < 2 or (not added and self._is_sum(chain, depth)):
            return [span] if heavy else []
        nested = [self.parts(s, depth + 1, False) if s in heavy else [s] for s in chain]
        return [part for span, parts in zip(chain, nested, strict=True) for part in (parts or [span])]

    def _children(self, span: Span, depth: int) -> list[Span]:
        """Where each child runs; what a module does itself is of no child."""
        found: list[Span] = []
        for path, group in groupby(range(*span), lambda i: module_path(self.body[i])[depth : depth + 1]):
            at = list(group)
            found += [(at[0], at[-1] + 1)] if path else []
        return found

    def _chain(self, spans: list[Span]) -> list[Span]:
        """``spans``, those joined of which the second reads nothing that follows from the first."""
        found: list[Span] = []
        for n, span in enumerate(spans):
            if n and not self._follows(spans[n - 1], span):
                found[-1] = found[-1][0], span[1]
            else:
                found.append(span)
        return found

    def _follows(self, first: Span, second: Span) -> bool:
        made = self._made_of(first, second[1])
        return any(self.body[i] in made for i in range(*second))

    def _made_of(self, span: Span, end: int) -> set[fx.Node]:
        """What ``span`` computes, and what follows from it before ``end``."""
        made = set(self.body[slice(*span)])
        for node in self.body[span[1] : end]:
            if any(n in made for n in operands(node)):
                made.add(node)
        return made

    def _is_sum(self, chain: list[Span], depth: int) -> bool:
        """Whether the module itself joins what each part makes with what stood before the part."""
        return all(self._is_joined(a, b, depth) for a, b in pairwise(chain))

    def _is_joined(self, first: Span, second: Span, depth: int) -> bool:
        made = self._made_of(first, second[0])
        own = [operands(n) for n in self.body[first[1] : second[0]] if len(module_path(n)) == depth]
        return any(any(o in made for o in read) and any(self._is_older(o, first) for o in read) for read in own)

    def _is_older(self, node: fx.Node, span: Span) -> bool:
        return node not in self.ahead and self.place.get(node, span[0]) < span[0]


def _touching(spans: list[Span], whole: Span, modules: Modules, live: np.ndarray) -> list[Span]:
    """``spans`` and what lies between them, cut where the fewest values cross; so at both ends, short of a product."""
    values, products = modules.values, modules.products

    def cost(at: int) -> tuple[float, float, int, int]:
        return float(values[at]), float(live[at]), shared_depth(modules.body, at), at

    cuts = [min(range(a[1], b[0] + 1), key=cost) for a, b in pairwise(spans)]
    cuts = [at for at in cuts if values[at] < len(modules.body)]
    first, last = spans[0][0], spans[-1][1]
    before = [at for at in range(whole[0], first) if products[at] == products[first] and values[at]]
    after = [at for at in range(last + 1, whole[1]) if products[at] == products[last]]
    start = min([first, *before], key=lambda at: (values[at], -at))
    end = min([last, *after], key=lambda at: (values[at], at))
    return list(pairwise([start, *cuts, end]))


def _name(body: Sequence[fx.Node], block: Span, parts: list[Span]) -> str:
    """The deepest module that holds those of ``parts`` that lie in a block; "" where only the outermost does."""
    inside = [n for a, b in parts if block[0] <= a and b <= block[1] for n in body[a:b]]
    return (shared_path([module_path(n) for n in inside]) or ("",))[-1]


def _merged(spans: list[Span], products: np.ndarray) -> list[Span]:
    """MOST of them: the two neighbours that hold the fewest products become one."""
    while len(spans) > MOST:
        at = min(range(len(spans) - 1), key=lambda n: (products[spans[n + 1][1]] - products[spans[n][0]], n))
        spans = [*spans[:at], (spans[at][0], spans[at + 1][1]), *spans[at + 2 :]]
    return spans


def _values(body: Sequence[fx.Node], ahead: set[fx.Node]) -> np.ndarray:
    """How many values cross before each op; one that is no tensor, which no stage can send, as if it were all."""
    place = {n: i for i, n in enumerate(body)}
    change = np.zeros(len(body) + 2)
    for node, i in place.items():
        last = max((place.get(u, len(body)) for u in node.users), default=i)
        many = 1 if isinstance(node.meta["val"], torch.Tensor) else len(body)
        change[i + 1] += 0 if node in ahead else many
        change[last + 1] -= 0 if node in ahead else many
    return np.cumsum(change)[: len(body) + 1]


def is_weighty(node: fx.Node) -> bool:
    """Whether a node is a product with a parameter."""
    rule = rule_of(str(node.target))
    return rule is not None and rule.computes and any(_is_parameter(o) for o in operands(node))


def _is_parameter(node: fx.Node) -> bool:
    """Whether ``node`` is a parameter, or a view or a cast of one."""
    rule = rule_of(str(node.target))
    if node.op == "call_function" and (node.target == torch.ops.aten.to.dtype or (rule is not None and rule.view)):
        return _is_parameter(operands(node)[0])
    return node.op == "placeholder" and node.meta["kind"] == "parameter"


def shared_depth(body: Sequence[fx.Node], cut: int) -> int:
    """How deep the module is that both sides of a cut share: a layer boundary is shallow."""
    return len(shared_path([module_path(body[cut - 1]), module_path(body[cut])]))


def shared_path(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The modules that all of ``paths`` lie in, outermost first."""
    return tuple(parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1)
