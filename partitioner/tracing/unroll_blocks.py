"""Skipped blocks written out in a normalized graph: copies of the second block for those between it and the last.

    captured    a0 b0 c0    a1 b1 c1                                        a9 b9 c9
    unrolled    a0 b0 c0    a1 b1 c1    a2 b2 c2    a3 b3 c3     ...        a9 b9 c9

What stands ahead of the blocks (masks that each layer makes) lies in groups of its own, each unrolled alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from torch import fx

from partitioner.graph.dependence import module_path
from partitioner.graph.graph import placeholders
from partitioner.graph.nodes import evaluate_like, operands
from partitioner.tracing.find_blocks import words
from partitioner.tracing.repeated_modules import Run

Block = tuple[str, ...]
Group = tuple[list[fx.Node], list[fx.Node], list[fx.Node]]  # nodes of the first, the copied and the last block
Reader = Callable[[fx.Node], fx.Node]
_META = ("source", "kind", "trains", "modules", "stack_trace", "grown", "slopes", "samples", "site", "val")


class UnlikeError(ValueError):
    """The kept blocks of a run are not captured alike: the run can't be unrolled."""


def unroll(graph: fx.Graph, runs: Sequence[Run]) -> fx.Graph:
    """``graph`` with the blocks that ``runs`` skip, its ops named anew in order.

    Raises UnlikeError when the blocks that a run keeps are not one program, chained by one value.
    """
    kept = [_KeptBlocks(graph, run) for run in runs]
    due = {last[0]: (one, copied) for one in kept for _, copied, last in one.groups}
    due |= {last[0]: (one, copied) for one in kept for copied, last in one.unread_parameters()}
    lasts = {node: one for one in kept for _, _, last in one.groups for node in last}
    new, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node in due:
            one, copied = due[node]
            one.write(new, copied, made)
        made[node] = _copy(new, node, lasts[node].before_last(made) if node in lasts else made.__getitem__)
    return new


class _KeptBlocks:
    """What a graph holds of a run. ``image``: nodes of the first block to the copied one's, of that to the last one's.

    ``hidden`` is the value of the first block that the copied one reads.
    """

    def __init__(self, graph: fx.Graph, run: Run) -> None:
        self.run = run
        self.parameters = placeholders(graph, "parameter")
        self.place: dict[fx.Node, int] = {}
        for node in graph.nodes:
            self._find(node)
        self.groups = list(self._grouped(graph))
        self.image: dict[fx.Node, fx.Node] = {}
        self.hidden: tuple[fx.Node, fx.Node] | None = None
        for step in (0, 1):
            for group in self.groups:
                if len(group[step]) != len(group[step + 1]):
                    raise UnlikeError(f"{run.kept[step]} and {run.kept[step + 1]} have not as many ops")
                for a, b in zip(group[step], group[step + 1], strict=True):
                    self._match(a, b, step)
        self._check_readers()
        self.copies: list[dict[fx.Node, fx.Node]] = [{} for _ in run.skipped]

    def _find(self, node: fx.Node) -> None:
        buffer = node.op == "placeholder" and node.meta["kind"] == "buffer"
        names = [node.meta["source"]] if buffer else module_path(node) if node.op == "call_function" else []
        for place, block in enumerate(self.run.kept):
            if any(_inside(name, path) for name in names for path in block):
                self.place[node] = place

    def _grouped(self, graph: fx.Graph) -> Iterator[Group]:
        chunks = [(place, list(nodes)) for place, nodes in groupby(list(graph.nodes), self.place.get)]
        at = 0
        while at < len(chunks):
            if chunks[at][0] is None:
                at += 1
                continue
            three = chunks[at : at + 3]
            if [place for place, _ in three] != [0, 1, 2]:
                raise UnlikeError(f"the ops of {self.run.kept} stand apart")
            yield three[0][1], three[1][1], three[2][1]
            at += 3

    def _match(self, a: fx.Node, b: fx.Node, step: int) -> None:
        """Node ``b`` does in one block what ``a`` does in the block before; only the hidden state may differ."""
        blocks = self.run.kept[step], self.run.kept[step + 1]
        if self._signature(a, *blocks) != self._signature(b, *blocks[1:], *blocks[1:]):
            raise UnlikeError(f"{a.name} of {blocks[0]} is not {b.name} of {blocks[1]}")
        for read, wanted in zip(operands(a), operands(b), strict=True):
            found = self.image.get(read) or self._parameter(read, *blocks)
            if found is wanted:
                continue
            self.hidden = self.hidden or (read, wanted)
            if step or self.hidden != (read, wanted) or self.place.get(wanted) != 0:
                raise UnlikeError(f"{a.name} of {blocks[0]} reads other values than {b.name} of {blocks[1]}")
        self.image[a] = b

    def _signature(self, node: fx.Node, source: Block, target: Block) -> Hashable:
        what = _rename(node.meta["source"], source, target) if node.op == "placeholder" else str(node.target)
        path = tuple(_rename(name, source, target) for name in module_path(node))
        return node.op, what, path, words((node.args, node.kwargs), lambda n: None), str(node.meta["val"])

    def _parameter(self, node: fx.Node, source: Block, target: Block) -> fx.Node:
        """The parameter of block ``target`` that stands where ``node`` does in ``source``; any other node itself."""
        if node.op != "placeholder" or node.meta["kind"] != "parameter":
            return node
        name = _rename(node.meta["source"], source, target)
        if name not in self.parameters:
            raise UnlikeError(f"{name} is tied to another parameter")
        return self.parameters[name]

    def unread_parameters(self) -> Iterator[tuple[list[fx.Node], list[fx.Node]]]:
        """Of the copied and of the last block, where the graph has none of the skipped ones."""
        _, copied, last = (
            [node for name, node in self.parameters.items() if any(_inside(name, path) for path in block)]
            for block in self.run.kept
        )
        if self.run.is_unread and last:
            yield copied, last

    def _check_readers(self) -> None:
        """What a kept block makes is read in it alone, but for its hidden state, which the next one reads."""
        if self.hidden is None or self.hidden[1] not in self.image:
            raise UnlikeError(f"{self.run.kept[1]} does not read {self.run.kept[0]}")
        handed = {(self.hidden[1], 1), (self.image[self.hidden[1]], 2)}
        for node, place in self.place.items():
            for user in node.users if place < 2 else ():
                if self.place.get(user) != place and (node, self.place.get(user)) not in handed:
                    raise UnlikeError(f"{user.name} reads {node.name} from outside its block")

    def write(self, new: fx.Graph, copied: list[fx.Node], made: dict[fx.Node, fx.Node]) -> None:
        """One group of every skipped block."""
        for number, block in enumerate(self.run.skipped):
            for node in copied:
                renamed = self.run.kept[1], block
                self.copies[number][node] = _copy(new, node, self._reader(number, block, made), renamed)

    def _reader(self, number: int, block: Block, made: dict[fx.Node, fx.Node]) -> Reader:
        """What skipped block ``number`` reads where the copied one reads a node."""
        assert self.hidden is not None
        own, (_, hidden) = self.copies[number], self.hidden
        before, left = self.copies[number - 1] if number else made, self.image[hidden]

        def read(node: fx.Node) -> fx.Node:
            if node in own:
                return own[node]
            return before[left] if node is hidden else made[self._parameter(node, self.run.kept[1], block)]

        return read

    def before_last(self, made: dict[fx.Node, fx.Node]) -> Reader:
        """What the last block reads: in place of what the copied one hands on, what the last copy does."""
        assert self.hidden is not None
        left, copies = self.image[self.hidden[1]], self.copies[-1]
        return lambda node: copies[left] if node is left else made[node]


def _copy(new: fx.Graph, node: fx.Node, read: Reader, renamed: tuple[Block, Block] | None = None) -> fx.Node:
    """``node`` in ``new``, operands by ``read``; in another block if ``renamed`` from one to another."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), read)
    if node.op == "placeholder":
        name = _identifier(node, *renamed) if renamed else node.name
        copy = new.create_node("placeholder", name, name=name)
        copy.target = copy.name  # no two are called alike
    else:
        copy = new.create_node(node.op, node.target, args, kwargs)
    copy.meta = {key: node.meta[key] for key in _META if key in node.meta}
    if renamed:
        copy.meta["modules"] = tuple(_rename(path, *renamed) for path in module_path(node))
        if "site" in node.meta:
            site = node.meta["site"]
            copy.meta["site"] = replace(site, module=_rename(site.module, *renamed))
        evaluate_like(copy, node)
        if "source" in node.meta:
            copy.meta["source"] = _rename(node.meta["source"], *renamed)
    return copy


def _identifier(node: fx.Node, source: Block, target: Block) -> str:
    """The name of a placeholder of ``source`` in ``target``: it ends in what it stands for, as export spells that."""
    own = node.meta["source"]
    return node.name.removesuffix(_spelled(own)) + _spelled(_rename(own, source, target))


def _spelled(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]", "_", name).lower()


def _inside(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _rename(name: str, source: Block, target: Block) -> str:
    """``name`` of something in block ``source`` as the same thing in ``target`` is called."""
    for a, b in zip(source, target, strict=True):
        if _inside(name, a):
            return b + name[len(a) :]
    return name
