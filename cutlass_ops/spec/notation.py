"""An epilogue as one line, the form in which a program's op carries it.

    bias: n, residual: m n | v0 = add(acc, bias); v1 = gelu_tanh(v0); v2 = add(v1, residual) | v2, v0

Loads and the factors that they have, ops in order, stores. All loads and stores are of the product's dtype.
"""

from __future__ import annotations

import re
from functools import cache

from cutlass_ops.spec.spec import Gemm, Load, Op, Store

_OP = re.compile(r"(\w+) = (\w+)\((.+)\)")


def written(gemm: Gemm) -> str:
    """The line of a GEMM's epilogue. ValueError where it has another dtype than its product."""
    if any(row.dtype != gemm.dtype for row in (*gemm.loads, *gemm.stores)):
        raise ValueError(f"an epilogue in one line is all {gemm.dtype}")
    loads = ", ".join(f"{load.name}: {load.over}".rstrip() for load in gemm.loads)
    ops = "; ".join(f"{op.value} = {op.op}({', '.join(map(_word, op.args))})" for op in gemm.ops)
    return " | ".join((loads, ops, ", ".join(store.value for store in gemm.stores)))


@cache
def read(line: str, dtype: str, kind: str = "linear", a: str = "m k", b: str = "n k") -> Gemm:
    """The GEMM of such a line around a product of ``dtype``. ValueError where it is none."""
    parts = [part.strip() for part in line.split("|")]
    if len(parts) != 3:
        raise ValueError(f"an epilogue is 'loads | ops | stores', not {line!r}")
    loads = [text.partition(":") for text in _items(parts[0], ",")]
    ops: list[Op] = []
    for text in _items(parts[1], ";"):
        found = _OP.fullmatch(text)
        if found is None:
            raise ValueError(f"an op is 'value = op(arguments)', not {text!r}")
        ops.append(Op(found[1], found[2], tuple(map(_argument, found[3].split(",")))))
    return Gemm(
        kind=kind,
        dtype=dtype,
        a=a,
        b=b,
        loads=tuple(Load(name.strip(), over.strip(), dtype) for name, _, over in loads),
        ops=tuple(ops),
        stores=tuple(Store(value, dtype) for value in _items(parts[2], ",")),
    )


def _items(text: str, between: str) -> list[str]:
    return [item.strip() for item in text.split(between) if item.strip()]


def _word(arg: str | float) -> str:
    return arg if isinstance(arg, str) else repr(float(arg))


def _argument(text: str) -> str | float:
    text = text.strip()
    return text if text.isidentifier() else float(text)
