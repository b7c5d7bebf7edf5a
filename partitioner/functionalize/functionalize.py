"""First passes over an exported graph: regions inlined, asserts dropped, in-place ops made functional.

Which tensors share storage is seen on the meta device, where each op of the graph runs once as it stands: a reshape is
a view there where it is one in eager. A tensor's value is made anew, from what it views, when its storage has changed:

    a = h[:, 2:]            a = slice(h)
    b = h.view(-1)          b = view(h)
    a.mul_(2)               a' = mul(a, 2); h' = slice_scatter(h, a')
    a + b                   b' = reshape(h'); add(a', b')
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from partitioner.errors import InputError
from partitioner.functionalize.autocast import write_casts
from partitioner.functionalize.inplace_ops import RESHAPING, check_form, check_state, left_by, where, written
from partitioner.functionalize.regions import region_of
from partitioner.functionalize.view_inverses import View, name_of, view_of
from partitioner.graph.nodes import arguments, emit, evaluate

aten = torch.ops.aten


def inline_regions(module: fx.GraphModule) -> None:
    """Write the casts of autocasts as ops; drop metadata asserts.

    Each node's ``meta["modules"]`` become the names, outermost first, of the source model's modules that made it;
    ``meta["no_grad"]`` is set on nodes that ran without autograd.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target == aten._assert_tensor_metadata.default:
            graph.erase_node(node)
    write_casts(graph)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        node.meta["no_grad"] = not region_of(node).gradient
        node.meta["modules"] = tuple(path.removeprefix("model").removeprefix(".") for path in stack[1:])


def functionalize(graph: fx.Graph) -> None:
    """Replace each in-place op by ops that write nowhere; whatever shares its storage reads the new value afterwards.

    Gradients are eager's: a tensor that is changed through ``detach``, or without autograd, keeps the gradient that it
    had, and what ran without autograd has none. Raises InputError, naming module and source line, where the change is
    of a parameter or buffer, or goes through a view that can't be inverted.
    """
    if any(written(node) or node.meta.get("no_grad") for node in graph.nodes):
        _Walk(graph).run()


@dataclass
class _Value:
    """A tensor of the model. ``node`` is what it holds as of change number ``version`` of its storage.

    ``base``: the tensor that it views, through ``view``; no gradient passes between the two where it is ``apart``.
    """

    made: fx.Node
    tensor: torch.Tensor
    node: fx.Node
    version: int
    base: _Value | None = None
    view: View | None = None
    apart: bool = False

    @property
    def root(self) -> _Value:
        return self if self.base is None else self.base.root


class _Walk:
    """Follows a graph in order as eager runs it. ``values``: the tensor that each node returned."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.values: dict[fx.Node, _Value] = {}
        self.by_tensor: dict[int, _Value] = {}
        self.operands: dict[fx.Node, list[_Value]] = {}
        self.versions: dict[int, int] = {}
        self.graded: set[fx.Node] = set()
        self.cut: dict[fx.Node, fx.Node] = {}
        self.at = next(iter(graph.nodes))

    def run(self) -> None:
        changes: list[fx.Node] = []
        for node in list(self.graph.nodes):
            self.at = node
            if node.op == "call_function":
                node.target = RESHAPING.get(node.target, node.target)
            with self.graph.inserting_before(node):
                if written(node):
                    changes.append(node)
                    self._change()
                else:
                    self._follow()
        for node in reversed(changes):
            self.graph.erase_node(node)

    def _follow(self) -> None:
        node = self.at
        self.operands[node] = [self.values[n] for n in node.all_input_nodes if n in self.values]
        if node.op == "call_function":
            node.meta["val"] = evaluate(node)
        if isinstance(node.meta.get("val"), torch.Tensor):
            self._hold()
        self._read_current()
        self._note_gradient(node)

    def _hold(self) -> None:
        node, tensor = self.at, self.at.meta["val"]
        known = self.by_tensor.get(id(tensor))
        self.values[node] = known or self._new(node, tensor)
        self.by_tensor[id(tensor)] = self.values[node]

    def _new(self, node: fx.Node, tensor: torch.Tensor) -> _Value:
        maker, place = (arguments(node)[0], int(arguments(node)[1])) if node.target is operator.getitem else (node, 0)
        assert isinstance(maker, fx.Node)
        version = self.versions.setdefault(_storage(tensor), 0)
        if version and name_of(maker) == "as_strided":
            raise InputError(f"{_call(maker)} reads a tensor as it lies, which has changed: slice it instead")
        base = next((v for v in self.operands[maker] if _storage(v.tensor) == _storage(tensor)), None)
        if base is None:
            return _Value(node, tensor, node, version)
        view = view_of(maker, base.tensor, tensor, place)
        apart = name_of(maker) == "detach" or bool(maker.meta.get("no_grad"))
        return _Value(node, tensor, node, version, base, view, apart)

    def _change(self) -> None:
        node = self.at
        for operand in written(node):
            check_state(node, self.values[operand].root.made)
        check_form(node)
        target = self.values[node.args[0]]
        self._check_overlap(target)
        old = self._current(target)
        self._read_current()
        new = left_by(self._emit, node, target.tensor)
        if "site" in node.meta:  # a dropout, cast to its operand's dtype where it has another
            drawn = new if new.target == aten.dropout.default else new.all_input_nodes[0]
            drawn.meta["site"] = node.meta["site"]
        self._write(target, self._replaced(old, new) if node.meta.get("no_grad") else new)
        self.values[node] = target
        node.meta["val"] = target.tensor

    def _write(self, value: _Value, new: fx.Node) -> None:
        changed = [(value, new)]
        while value.base is not None:
            if value.view is None or value.view.back is None:
                raise InputError(
                    f"{self.at.target} changes a tensor{where(self.at)} through a view, {_call(value.made)}, that "
                    "can't be inverted: change a copy, or the tensor that is viewed"
                )
            old = self._detached(self._current(value.base))
            new = value.view.back(self._emit, old, new)
            new = self._replaced(old, new) if value.apart else new
            value = value.base
            changed.append((value, new))
        self.versions[_storage(value.tensor)] += 1
        for value, new in changed:
            value.node, value.version = new, self.versions[_storage(value.tensor)]

    def _current(self, value: _Value) -> fx.Node:
        """The node that holds ``value`` now, a view of the changed base where the storage changed elsewhere."""
        version = self.versions[_storage(value.tensor)]
        if value.version != version:
            assert value.base is not None
            base = self._detached(self._current(value.base))
            if value.view is None:
                raise InputError(
                    f"{self.at.target} reads{where(self.at)} a view, {_call(value.made)}, of a tensor that has changed "
                    "since: take the view after the change"
                )
            new = value.view.again(self._emit, base)
            value.node, value.version = self._replaced(value.node, new) if value.apart else new, version
        return value.node

    def _read_current(self) -> None:
        """Let the node at hand read what its operands hold now."""
        self.at.args, self.at.kwargs = fx.map_arg((self.at.args, self.at.kwargs), self._read)

    def _read(self, operand: fx.Node) -> fx.Node:
        if operand not in self.values:
            return operand
        node = self._current(self.values[operand])
        return node if self.at.meta.get("no_grad") else self._detached(node)

    def _detached(self, node: fx.Node) -> fx.Node:
        """``node``, cut off from its operands if it ran without autograd."""
        if node not in self.graded or not node.meta.get("no_grad"):
            return node
        if node not in self.cut:
            self.cut[node] = self._emit(aten.detach.default, node)
        return self.cut[node]

    def _replaced(self, old: fx.Node, new: fx.Node) -> fx.Node:
        """The values of ``new`` with the gradient of ``old``, as autograd sees a change that is hidden from it."""
        if new in self.graded:
            new = self._emit(aten.detach.default, new)
        if old not in self.graded or old.meta.get("no_grad"):
            return new
        zero = self._emit(aten.sub.Tensor, old, self._emit(aten.detach.default, old))
        if not old.meta["val"].is_complex():
            zero = self._emit(aten.nan_to_num.default, zero)  # inf - inf
        return self._emit(aten.add.Tensor, new, zero)

    def _check_overlap(self, target: _Value) -> None:
        operands = [self.values[n] for n in self.at.all_input_nodes if n in self.values]
        if any(v is not target and _overlap(v.tensor, target.tensor) for v in operands):
            raise InputError(
                f"{self.at.target} reads and writes overlapping parts of one tensor{where(self.at)}, in an order that "
                "is not defined: read a clone"
            )

    def _emit(self, target: object, *args: object, **kwargs: object) -> fx.Node:
        node = emit(self.graph, self.at, target, *args, **kwargs)  # type: ignore[arg-type]
        self._note_gradient(node)
        return node

    def _note_gradient(self, node: fx.Node) -> None:
        """``graded``: what depends on a parameter that trains, were all run with autograd."""
        if node.op == "placeholder":
            has = node.meta["kind"] == "parameter" and node.meta["trains"]
        else:
            has = node.target != aten.detach.default and any(n in self.graded for n in node.all_input_nodes)
        value = node.meta.get("val")
        tensors = value if isinstance(value, tuple | list) else (value,)
        if has and any(isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex()) for t in tensors):
            self.graded.add(node)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors lie differently in one storage and have elements in common."""
    if _storage(a) != _storage(b) or _place(a) == _place(b):
        return False
    if a.dtype != b.dtype:
        return True
    marks = torch.zeros(a.untyped_storage().nbytes() // a.element_size(), dtype=torch.bool)
    marks.as_strided(*_place(a)).fill_(True)
    return bool(marks.as_strided(*_place(b)).any())


def _place(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _call(made: fx.Node) -> str:
    maker = made.args[0] if made.target is operator.getitem else made
    assert isinstance(maker, fx.Node)
    return f"{maker.target}{where(maker)}"
