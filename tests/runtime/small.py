"""A small model twice: in plain torch, and as hand-made Programs on any mesh, with and without sequence parallelism."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn import functional as F

import partitioner.ops.collectives  # registers the ops that the graphs hold
from cutlass_ops.linear import gemm
from partitioner.graph.counts import Count
from partitioner.lowering.program import Call, Parameter, Program, Recompute, Stage, Value
from partitioner.ops.own_ops import dropout_mask, mix64
from partitioner.schedule.tables import rank_of, schedule
from partitioner.sharding.layout import REPLICATE, WHOLE, Layout, Placement, Segment, Shard, shard_whole

VOCAB, HIDDEN, INNER, SEQ, BLOCKS, MICRO = 11, 6, 8, 4, 4, 2
IGNORED, SMOOTHING, DROP, SEED = -100, 0.1, 0.25, 7
SHAPES = {
    "norm": (HIDDEN,), "shift": (HIDDEN,), "up": (INNER, HIDDEN), "up_bias": (INNER,), "down": (HIDDEN, INNER),
    "down_bias": (HIDDEN,),
}  # fmt: skip
aten, own = torch.ops.aten, torch.ops.partitioner


def weights() -> dict[str, torch.Tensor]:
    """Every full parameter: an embedding that is also the head, and four blocks."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"embed": (VOCAB, HIDDEN)} | {f"{b}.{n}": s for b in range(BLOCKS) for n, s in SHAPES.items()}
    return {name: torch.randn(s, generator=generator, dtype=torch.float64) * 0.5 for name, s in shapes.items()}


def batch(samples: int) -> dict[str, torch.Tensor]:
    """A global batch; some targets are ignored, unequally many in its samples."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(VOCAB, (samples, SEQ), generator=generator)
    labels = torch.randint(VOCAB, (samples, SEQ), generator=generator)
    labels[torch.rand(samples, SEQ, generator=generator) < 0.3] = IGNORED
    return {"tokens": tokens, "labels": labels}


def reference(
    parameters: dict[str, torch.Tensor], data: dict[str, torch.Tensor], step: int, drop: float
) -> torch.Tensor:
    """The plain model's loss on the global batch, its dropout masks drawn sample by sample."""
    x = first = F.embedding(data["tokens"], parameters["embed"])
    for b in range(BLOCKS):
        w = {name: parameters[f"{b}.{name}"] for name in SHAPES}
        if b == BLOCKS - 1:
            x = x + first
        h = F.layer_norm(x, (HIDDEN,), w["norm"], w["shift"])
        y = F.gelu(F.linear(h, w["up"], w["up_bias"]))
        y = F.linear(y, w["down"], w["down_bias"])
        if drop:
            keys = [mix64(mix64(SEED, step, g), b) for g in range(len(x))]
            masks = [dropout_mask((SEQ, HIDDEN), drop, key, 0, x.device) for key in keys]
            y = y * torch.stack(masks).to(y.dtype) / (1 - drop)
        x = x + y
    logits = F.linear(x, parameters["embed"]).flatten(0, 1)
    targets = data["labels"].flatten()
    total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=SMOOTHING)
    return total / (targets != IGNORED).sum()


def flat(shard: Shard) -> list[int]:
    """Segments as op schemas carry them."""
    return partitioner.ops.collectives.flat(shard.segments)


class Draft:
    """A graph being written; ``values`` have the rank that binding asks for."""

    def __init__(self, *names: str, ranks: dict[str, int] | None = None) -> None:
        self.graph = fx.Graph()
        self.inputs = []
        for name in names:
            node = self.graph.placeholder(name)
            node.meta["val"] = torch.empty((1,) * (ranks or {}).get(name, 3), device="meta")
            self.inputs.append(node)

    def add(self, target: object, *args: object) -> fx.Node:
        return self.graph.call_function(target, args)  # type: ignore[arg-type]

    def done(self, *results: fx.Node) -> fx.GraphModule:
        self.graph.output(results)
        return fx.GraphModule(nn.Module(), self.graph)


def embed_module(tp: int, sequence: bool) -> fx.GraphModule:
    d = Draft("weight", "tokens", ranks={"weight": 2, "tokens": 2})
    weight, tokens = d.inputs
    if tp == 1:
        return d.done(d.add(aten.embedding.default, weight, tokens))
    x = d.add(own.vocab_parallel_embedding.default, weight, tokens, -1, "tp", flat(shard_whole(0, VOCAB, tp)))
    segments = flat(shard_whole(1, SEQ, tp))
    whole = ("tp", 1, segments) if sequence else ("tp", False)
    return d.done(d.add(own.reduce_scatter.default if sequence else own.all_reduce.default, x, *whole))


def block_module(tp: int, sequence: bool, first: bool, drop: float) -> fx.GraphModule:
    """``first``: the block also adds the embedding."""
    ranks = {name: len(shape) for name, shape in SHAPES.items()}
    d = Draft("x", *(["first"] if first else []), *SHAPES, *(["keys"] if drop else []), ranks=ranks)
    nodes = {n.name: n for n in d.inputs}
    x = d.add(aten.add.Tensor, nodes["x"], nodes["first"]) if first else nodes["x"]
    h = d.add(aten.layer_norm.default, x, [HIDDEN], nodes["norm"], nodes["shift"])
    segments = flat(shard_whole(1, SEQ, tp))
    if tp > 1:
        h = d.add(own.all_gather.default, h, "tp", 1, segments, True) if sequence else d.add(own.copy.default, h, "tp")
    h = d.add(gemm.ops.linear.default, h, nodes["up"], nodes["up_bias"], False)
    y = d.add(gemm.ops.linear.default, d.add(aten.gelu.default, h), nodes["down"], None, False)
    if tp > 1:
        reduce = (own.reduce_scatter.default, "tp", 1, segments) if sequence else (own.all_reduce.default, "tp", False)
        y = d.add(reduce[0], y, *reduce[1:])
    y = d.add(aten.add.Tensor, y, nodes["down_bias"])
    if drop:
        divided = ("tp", 1, segments) if tp > 1 and sequence else ()
        y = d.add(own.dropout.default, y, drop, nodes["keys"], 0, *divided)
    return d.done(d.add(aten.add.Tensor, x, y))


def head_module(tp: int, sequence: bool) -> fx.GraphModule:
    d = Draft("x", "weight", "labels", "count", ranks={"weight": 2, "labels": 2, "count": 0})
    x, weight, labels, count = d.inputs
    if tp > 1:
        rows = ("tp", 1, flat(shard_whole(1, SEQ, tp)), True)
        x = d.add(own.all_gather.default, x, *rows) if sequence else d.add(own.copy.default, x, "tp")
    logits = d.add(gemm.ops.linear.default, x, weight, None, False)
    logits = d.add(aten.reshape.default, logits, [MICRO * SEQ, -1])
    labels = d.add(aten.reshape.default, labels, [-1])
    if tp > 1:
        rest = (IGNORED, SMOOTHING, "tp", flat(shard_whole(0, VOCAB, tp)))
        loss = d.add(own.vocab_parallel_cross_entropy.default, logits, labels, *rest)
    else:
        loss = d.add(own.cross_entropy.default, logits, labels, IGNORED, SMOOTHING)
    return d.done(d.add(aten.div.Tensor, d.add(aten.sum.default, loss), count))


def labels_counted() -> Count:
    d = Draft("labels")
    counted = d.add(aten.sum.default, d.add(aten.ne.Scalar, d.inputs[0], IGNORED))
    counted.meta["val"] = torch.empty((), dtype=torch.int64, device="meta")
    d.graph.output(counted)
    return Count("count_0", fx.GraphModule(nn.Module(), d.graph), ("labels",), level=0, divides=True)


def keys_module(blocks: list[int]) -> fx.GraphModule:
    d = Draft("keys")
    return d.done(*(d.add(own.site_keys.default, d.inputs[0], b) for b in blocks))


def placement(name: str, tp: int, sequence: bool) -> Placement:
    kind = name.split(".")[-1]
    if kind in ("embed", "up", "up_bias"):
        return shard_whole(0, (VOCAB if kind == "embed" else INNER), tp)
    if kind == "down":
        return shard_whole(1, INNER, tp)
    return REPLICATE if sequence else WHOLE


def program(
    pp: int = 1, dp: int = 1, tp: int = 1, kind: str = "1f1b", virtual: int = 1, micro_batches: int = 2,
    sequence: bool = False, recompute: bool = False, drop: float = DROP,
) -> Program:  # fmt: skip
    """Blocks spread evenly over pp * virtual stages; the embedding is read again by the last block and as the head."""
    stages, per = pp * virtual, BLOCKS // (pp * virtual)
    local = (MICRO, SEQ // tp if sequence else SEQ, HIDDEN)
    modules = [block_module(tp, sequence, last, drop) for last in (False, True)]
    rows: list[Stage] = []
    for s in range(stages):
        blocks = list(range(s * per, (s + 1) * per))
        calls = [Call("embed", embed_module(tp, sequence), ("embed", "tokens"), ("x0",))] if s == 0 else []
        for b in blocks:
            last = b == BLOCKS - 1
            read = [f"x{b}", *(["x0"] if last else []), *(f"{b}.{n}" for n in SHAPES), *([f"k{b}"] if drop else [])]
            arguments = tuple(read)
            again = Recompute() if recompute else None
            calls.append(Call(f"block {b}", modules[last], arguments, (f"x{b + 1}",), again))
        end = s == stages - 1
        if end:
            names = (f"x{BLOCKS}", "embed", "labels", "count_0")
            calls.append(Call("head", head_module(tp, sequence), names, ("loss",)))
        prelude = Call("keys", keys_module(blocks), ("sample_keys",), tuple(f"k{b}" for b in blocks)) if drop else None
        names = [dict.fromkeys(("x0", f"x{cut * per}")) for cut in (s, s + 1)]
        crossing = [tuple(Value(n, local, torch.float64, True) for n in row) for row in names]
        received, sent = crossing[0] if s else (), () if end else crossing[1]
        held = tuple(dict.fromkeys(n for c in calls for n in c.arguments if n.split(".")[-1] in ("embed", *SHAPES)))
        end, rank = "loss" if end else None, rank_of(s, pp, kind)
        rows.append(Stage(s, rank, None, prelude, tuple(calls), received, sent, held, end))
    return Program(
        tuple(rows), _parameters(tp, sequence, stages, per), ("tokens", "labels"), ("tokens", "labels"),
        (labels_counted(),),
        {"pp": pp, "dp": dp, "tp": tp}, ("pp", "dp", "tp"), (("tp", tp),), MICRO, micro_batches,
        schedule(kind, pp, virtual, micro_batches), SEED, {},
    )  # fmt: skip


def _parameters(tp: int, sequence: bool, stages: int, per: int) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for name, weight in weights().items():
        layout: Layout = (placement(name, tp, sequence),)
        where = tuple(sorted({0, stages - 1})) if name == "embed" else (int(name.split(".")[0]) // per,)
        names = (name, "head") if name == "embed" else (name,)
        found[name] = Parameter(names, tuple(weight.shape), torch.float64, True, layout, where, torch.float64)
    return found


__all__ = ["Segment", "batch", "program", "reference", "replace", "weights"]
