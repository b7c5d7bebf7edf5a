"""What a fused GEMM computes: a product, and the elementwise work on its accumulator in SSA form.

    Gemm(kind="linear", dtype="bfloat16", a="m k", b="n k",
         loads=(Load("bias", "n", "bfloat16"),),
         ops=(Op("v0", "add", ("acc", "bias")), Op("v1", "gelu_tanh", ("v0",))),
         stores=(Store("v1", "bfloat16"), Store("v0", "bfloat16")))

A kind says what ``a``, ``b`` and a load over "m n", "n", "m" or "" (one number) look like:

    kind      a           b           "m n"       "n"      "m"
    -------   ---------   ---------   ---------   ------   ------
    mm        m k         k n         m n         n        m
    linear    *m k        n k         *m n        n        *m
    batched   l m k       l k n       l m n       l n      l m
    grouped   m k         l k n       m n         l n      m

``a`` and ``b`` name the order of the operand's last two dimensions in memory ("k m": stored transposed). The rows of a
grouped GEMM are divided among its l products by ``offsets`` (l + 1, int32). Products are summed and epilogues computed
in float32 (float64 for float64 operands), and each store is cast once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

from cutlass_ops.spec.elementwise import OPS

KINDS = ("mm", "linear", "batched", "grouped")
DTYPES = ("bfloat16", "float16", "float8_e4m3fn", "float32", "float64")
ACCUMULATOR = "acc"
RESERVED = ("a", "b", "c", "offsets", "activation")  # what the printed programs call their own


@dataclass(frozen=True)
class Load:
    """An operand of the epilogue besides the accumulator."""

    name: str
    over: str  # "m n", "n", "m" or "": the factors that it has, broadcast over the others
    dtype: str


@dataclass(frozen=True)
class Op:
    """``value = op(*args)``; an argument is a value's name, a load's, "acc", or a number."""

    value: str
    op: str
    args: tuple[str | float, ...]


@dataclass(frozen=True)
class Store:
    """A value that the GEMM writes, over "m n"."""

    value: str
    dtype: str


@dataclass(frozen=True)
class Gemm:
    kind: str
    dtype: str
    a: str = "m k"
    b: str = "n k"
    loads: tuple[Load, ...] = ()
    ops: tuple[Op, ...] = ()
    stores: tuple[Store, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that name this computation, the same in every process and version."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()


def to_json(gemm: Gemm) -> str:
    """One line, keys sorted: equal specs print equal text."""
    return json.dumps(dataclasses.asdict(gemm), sort_keys=True)


def from_json(text: str) -> Gemm:
    """The spec that ``to_json`` printed. ValueError where the text is none."""
    try:
        fields: dict[str, Any] = json.loads(text)
        loads = tuple(Load(**row) for row in fields.pop("loads"))
        ops = tuple(Op(row["value"], row["op"], tuple(row["args"])) for row in fields.pop("ops"))
        stores = tuple(Store(**row) for row in fields.pop("stores"))
        return Gemm(**fields, loads=loads, ops=ops, stores=stores)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a GEMM's JSON: {error}") from error


def _check(gemm: Gemm) -> None:
    """ValueError for the first thing that no printer could mean."""
    _one_of("kind", gemm.kind, KINDS)
    _one_of("a", gemm.a, ("m k", "k m"))
    _one_of("b", gemm.b, ("n k", "k n"))
    for dtype in (gemm.dtype, *(row.dtype for row in (*gemm.loads, *gemm.stores))):
        _one_of("dtype", dtype, DTYPES)
    known = [ACCUMULATOR]
    for load in gemm.loads:
        _one_of(f"load {load.name}: over", load.over, ("m n", "n", "m", ""))
        _define(load.name, known)
    for op in gemm.ops:
        _check_op(op, known)
        _define(op.value, known)
    if not gemm.stores:
        raise ValueError("a GEMM stores at least one value")
    read = {arg for op in gemm.ops for arg in op.args} | {store.value for store in gemm.stores}
    for name in known:
        if name not in read:
            raise ValueError(f"{name} is read by no op and stored by none")
    for store in gemm.stores:
        _one_of("store", store.value, tuple(known))


def _check_op(op: Op, known: list[str]) -> None:
    _one_of(f"{op.value}: op", op.op, tuple(OPS))
    if len(op.args) != OPS[op.op].arity:
        raise ValueError(f"{op.value}: {op.op} takes {OPS[op.op].arity} arguments, got {len(op.args)}")
    names = [arg for arg in op.args if isinstance(arg, str)]
    if not all(isinstance(arg, str) or math.isfinite(arg) for arg in op.args):
        raise ValueError(f"{op.value}: {op.op} of a number that is not finite")
    if not names:
        raise ValueError(f"{op.value}: {op.op} of numbers alone")
    for name in names:
        _one_of(f"{op.value}: argument", name, tuple(known))


def _define(name: str, known: list[str]) -> None:
    if not name.isidentifier() or iskeyword(name) or name in (*known, *RESERVED):
        raise ValueError(f"{name!r} is no free identifier")
    known.append(name)


def _one_of(what: str, word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        raise ValueError(f"{what} {word!r} is none of: {', '.join(repr(w) for w in words)}")
