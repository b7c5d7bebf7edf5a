"""The gradient of an epilogue as an epilogue: what the GEMM that makes dh does to it before it is stored.

    h = gelu(z) * up        -->     acc = dy w2'    v0 = gelu(z)          gradient of up   acc * v0
    y = h w2'                                       v1 = mul(acc, up)     gradient of z    gelu_backward(v1, z)
"""

from __future__ import annotations

from collections.abc import Sequence

from cutlass_ops.spec.spec import ACCUMULATOR, Gemm, Load, Op, Store

Arg = str | float
PRODUCT = "product"  # what the gradient calls the forward's accumulator, its own being another


def gradient(gemm: Gemm, value: str, leaves: Sequence[str], b: str = "k n") -> Gemm:
    """The GEMM whose product is the gradient of ``value`` and whose stores are those of ``leaves``, in their order.

    A leaf is a load over "m n" or a value that was stored, the accumulator too; what lies before it is not looked at,
    and the GEMM loads it by its own name (the accumulator as "product") in the dtype that it was stored in. ValueError
    where a leaf does not reach ``value``. ``b`` is how the next layer's weight lies, seen from its gradient's product.
    """
    tape = _Tape(gemm, {_loaded(leaf) for leaf in leaves})
    grads = tape.gradients(_loaded(value))
    for leaf in leaves:
        if _loaded(leaf) not in grads:
            raise ValueError(f"{value} does not depend on {leaf}")
    stored = [Load(_loaded(store.value), "m n", store.dtype) for store in gemm.stores if store.value in leaves]
    targets = [grads[_loaded(leaf)] for leaf in leaves]
    ops = _live(tape.ops, targets)
    read = {arg for op in ops for arg in op.args}
    loads = tuple({load.name: load for load in (*gemm.loads, *stored) if load.name in read}.values())
    for leaf in leaves:
        if _loaded(leaf) in read and _loaded(leaf) not in {load.name for load in loads}:
            raise ValueError(f"the gradient reads {leaf}, which is not stored")
    return Gemm(
        kind=gemm.kind,
        dtype=gemm.dtype,
        b=b,
        loads=loads,
        ops=tuple(ops),
        stores=tuple(Store(target, gemm.dtype) for target in targets),
    )


class _Tape:
    """The forward ops between the leaves and a value, and behind them the ops of the gradients."""

    def __init__(self, gemm: Gemm, leaves: set[str]) -> None:
        self.leaves = leaves
        ops = [op for op in gemm.ops if op.value not in leaves]
        self.forward = {op.value: Op(op.value, op.op, tuple(map(_argument, op.args))) for op in ops}
        self.ops: list[Op] = []
        self.taken = {ACCUMULATOR, *(load.name for load in gemm.loads), *(op.value for op in gemm.ops)}

    def emit(self, op: str, *args: Arg) -> str:
        """A new value; equal ops are one."""
        for known in self.ops:
            if (known.op, known.args) == (op, args):
                return known.value
        name = next(f"g{n}" for n in range(len(self.taken)) if f"g{n}" not in self.taken)
        self.taken.add(name)
        self.ops.append(Op(name, op, args))
        return name

    def gradients(self, value: str) -> dict[str, str]:
        """Leaf -> the value that holds its gradient, that of ``value`` being the accumulator."""
        needed = self._between(value)
        self.ops += [op for op in self.forward.values() if op.value in needed]
        grads: dict[str, str] = {value: ACCUMULATOR}
        for op in reversed([op for op in self.forward.values() if op.value in needed]):
            if op.value not in grads:
                continue
            for arg, grad in self._of(op, grads[op.value]):
                if isinstance(arg, str):
                    grads[arg] = self.emit("add", grads[arg], grad) if arg in grads else grad
        return {leaf: grads[leaf] for leaf in self.leaves if leaf in grads}

    def _between(self, value: str) -> set[str]:
        """The op values that ``value`` needs, back to the leaves."""
        found: set[str] = set()
        waiting = [value]
        while waiting:
            name = waiting.pop()
            if name in self.forward and name not in found:
                found.add(name)
                waiting += [arg for arg in self.forward[name].args if isinstance(arg, str)]
            elif name == PRODUCT and name not in self.leaves:
                raise ValueError(f"{value} needs the accumulator, which is no leaf: store a value behind it")
        return found

    def _of(self, op: Op, grad: str) -> list[tuple[Arg, str]]:
        """The gradients of an op's arguments."""
        x, y = op.args[0], op.args[-1]
        if op.op == "add":
            return [(x, grad), (y, grad)]
        if op.op == "sub":
            return [(x, grad), (y, self.emit("mul", grad, -1.0))]
        if op.op == "mul":
            return [(x, self.emit("mul", grad, y)), (y, self.emit("mul", grad, x))]
        if op.op == "sigmoid":
            return [(x, self.emit("mul", grad, self.emit("mul", op.value, self.emit("sub", 1.0, op.value))))]
        if op.op == "tanh":
            return [(x, self.emit("mul", grad, self.emit("sub", 1.0, self.emit("mul", op.value, op.value))))]
        if op.op in ("relu", "gelu", "gelu_tanh", "silu"):
            return [(x, self.emit(f"{op.op}_backward", grad, x))]
        raise ValueError(f"{op.op} has no gradient in an epilogue")


def _loaded(name: str) -> str:
    return PRODUCT if name == ACCUMULATOR else name


def _argument(arg: Arg) -> Arg:
    return _loaded(arg) if isinstance(arg, str) else arg


def _live(ops: list[Op], targets: list[str]) -> list[Op]:
    """Those of ``ops`` that the targets need, in order."""
    needed = set(targets)
    for op in reversed(ops):
        if op.value in needed:
            needed |= {arg for arg in op.args if isinstance(arg, str)}
    return [op for op in ops if op.value in needed]


def depends(gemm: Gemm, value: str) -> set[str]:
    """All that a value of the epilogue is computed from, itself too."""
    args = {op.value: op.args for op in gemm.ops}
    found: set[str] = set()
    waiting = [value]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [arg for arg in args.get(name, ()) if isinstance(arg, str)]
    return found
