"""What Megatron-Core is told, under the names that its flags have; Megatron-LM and Megatron-Bridge spell them alike."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from partitioner.errors import InputError
from partitioner.plan.recompute_ways import FULL_RECOMPUTE, MLP, NO_RECOMPUTE, SELECTIVE, WAYS, of_modules
from partitioner.precision import SINGLE
from partitioner.schedule.tables import PLAIN, plainest
from tools.dialects.configuration import Configuration
from tools.dialects.dialect import Row, Told, Values, cutting, number, one_of, switch, whole, yes

LAYOUT = "pipeline-model-parallel-layout"
FP8_RECIPES = {"delayed": "fp8", "tensorwise": "fp8", "blockwise": "fp8_block", "mxfp8": "mxfp8"}
_RECIPE_OF = {"fp8": "tensorwise", "fp8_block": "blockwise", "mxfp8": "mxfp8"}


def degree_rows() -> tuple[Row, ...]:
    """How ranks are divided, and stages cut."""
    return (
        number("tensor-model-parallel-size", "tensor"),
        number("pipeline-model-parallel-size", "pipeline"),
        number("context-parallel-size", "context"),
        number("expert-model-parallel-size", "expert"),
        Row(("num-virtual-stages-per-pipeline-rank",), ("virtual",), _read_virtual, _write_virtual),
        Row((LAYOUT,), ("stages",), _read_layout, _write_layout),
        cutting("num-layers-per-virtual-pipeline-stage"),
        cutting("decoder-first-pipeline-num-layers", "decoder-last-pipeline-num-layers"),
        *(Row((key,), ("stages",), _counted(key)) for key in _COUNTED),
        switch("sequence-parallel", "sequence_parallel"),
    )


_COUNTED = ("account-for-embedding-in-pipeline-split", "account-for-loss-in-pipeline-split")


def _counted(key: str) -> Callable[[Values], Values]:
    return lambda values: {"cut": {key: int(yes(key, values[key]))}}


def _read_virtual(values: Values) -> Values:
    return {"virtual": whole("num-virtual-stages-per-pipeline-rank", *values.values())}


def _write_virtual(asked: Configuration) -> Values:
    several = (asked.virtual or 1) > 1 and asked.stages is None
    return {"num-virtual-stages-per-pipeline-rank": asked.virtual if several else None}


def _read_layout(values: Values) -> Values:
    """``Et*3|(tt|)*2L``: E and L are embedding and loss, t a layer, | ends a stage, *n repeats."""
    text = str(values[LAYOUT])
    plain = re.sub(r"[\s,'\"]", "", text)
    plain = re.sub(r"\(([EtmL|]+)\)\*(\d{1,5})", lambda m: m[1] * int(m[2]), plain)
    plain = re.sub(r"([EtmL|])\*(\d{1,5})", lambda m: m[1] * int(m[2]), plain)
    if not re.fullmatch(r"E[t|]+L", plain):
        raise InputError(f"{LAYOUT}={text[:60]} is more than stages of layers: write it as Ett|tt|ttL")
    return {"stages": tuple(stage.count("t") for stage in plain.split("|"))}


def _write_layout(asked: Configuration) -> Values:
    if asked.stages is None:
        return {}
    *before, last = asked.stages
    runs = [(layers, len([*run])) for layers, run in itertools.groupby(before)]
    rows = (f"({'t' * n}|)*{many}" if many > 2 else f"{_layers(n)}|" * many for n, many in runs)
    return {LAYOUT: f"E{''.join(rows)}{_layers(last)}L"}


def _layers(many: int) -> str:
    return "t" * many if many < 4 else f"t*{many}"


_MODULES = {"core_attn": SELECTIVE, "mlp": MLP}
_NO_EFFECT = "layernorm"  # where a norm is one with the product that reads it, as in Transformer Engine


def recompute_row() -> Row:
    """Granularity, method and number of layers together."""
    keys = ("recompute-granularity", "recompute-method", "recompute-num-layers", "recompute-modules",
            "recompute-activations")  # fmt: skip
    return Row(keys, ("recompute", "recomputed"), _read_recompute, _write_recompute)


def _read_recompute(values: Values) -> Values:
    given = {**values}
    if given.pop("recompute-activations", False):
        given.setdefault("recompute-granularity", "selective")
    ways = {"full": FULL_RECOMPUTE, "selective": SELECTIVE, "none": NO_RECOMPUTE}
    way = one_of("recompute-granularity", given.get("recompute-granularity", "none"), ways)
    if way == SELECTIVE:
        way = of_modules(*_modules(given.get("recompute-modules", "core_attn")))
    if way != FULL_RECOMPUTE:
        return {"recompute": way}
    method = one_of("recompute-method", given.get("recompute-method", ""), {"uniform": "uniform", "block": "block"})
    layers = whole("recompute-num-layers", given.get("recompute-num-layers", 1))
    if method == "block":
        return {"recompute": way, "recomputed": layers}
    if layers > 1:
        raise InputError(f"recompute-num-layers={layers}: a plan recomputes each layer by itself: set it to 1")
    return {"recompute": way}


def _modules(given: object) -> set[str]:
    """Those that are named, in one word, several, or a list."""
    names = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"recompute-modules names no modules: give some of {', '.join(_MODULES)}")
    if _NO_EFFECT in names:
        raise InputError(
            f"recompute-modules={_NO_EFFECT} does nothing where Transformer Engine has a block's norms in the products "
            "behind them: leave it out"
        )
    return {one_of("recompute-modules", name, _MODULES) for name in names}


def _write_recompute(asked: Configuration) -> Values:
    modules = WAYS[asked.recompute].modules if asked.recompute in WAYS else ()
    if modules:
        found: Values = {"recompute-granularity": "selective"}
        if modules != (SELECTIVE,):
            found["recompute-modules"] = [name for name, module in _MODULES.items() if module in modules]
        return found
    if asked.recompute != FULL_RECOMPUTE:
        return {}
    block = asked.recomputed is not None
    return {
        "recompute-granularity": "full", "recompute-method": "block" if block else "uniform",
        "recompute-num-layers": asked.recomputed or 1,
    }  # fmt: skip


_FP4 = {"e2m1": True, "none": False, "false": False}
_FP8 = {"e4m3": True, "hybrid": True, "none": False, "false": False}


def read_products(values: Values, fp8: str, recipe: str, fp4: str) -> str:
    """The preset of products in few bits, "" for none."""
    given = {key: one_of(key, values[key], known) for key, known in ((fp4, _FP4), (fp8, _FP8)) if key in values}
    if given.get(fp4):
        return "nvfp4"
    if not given.get(fp8):
        return ""
    return one_of(recipe, values.get(recipe, "delayed"), FP8_RECIPES)


def write_products(precision: str) -> dict[str, Any]:
    """Flags of products in few bits, by the name of a preset."""
    if precision == "nvfp4":
        return {"fp4-format": "e2m1"}
    return {"fp8-format": "hybrid", "fp8-recipe": _RECIPE_OF[precision]} if precision in _RECIPE_OF else {}


def size_rows() -> tuple[Row, ...]:
    """The model's sizes."""
    return (
        number("num-layers", "layers"),
        number("hidden-size", "hidden"),
        number("ffn-hidden-size", "ffn"),
        number("num-attention-heads", "heads"),
        number("num-query-groups", "kv_heads"),
        number("kv-channels", "head_width"),
        number("seq-length", "seq"),
        number("vocab-size", "vocab"),
    )


MODEL_TOLD = (
    Told("multi-latent-attention", "the plain decoder has no latent attention: give --model", of_model=True),
    Told("squared-relu", "the plain decoder has GELU or gated SiLU: give --model", refuse=False),
    Told("*mtp-num-layers", "the plain decoder predicts one token: give --model", of_model=True),
    Told("*qk-layernorm", "the plain decoder has no norm of queries and keys: give --model", refuse=False),
    Told("*window-size", "the plain decoder attends to all before: give --model", of_model=True),
    Told("attention-dropout", "the plain decoder has no dropout", (0, 0.0, "0.0", "0"), refuse=False),
    Told("hidden-dropout", "the plain decoder has no dropout", (0, 0.0, "0.0", "0"), refuse=False),
)


def settled(found: Configuration, blocks: int | None) -> Configuration:
    """What Megatron does where nobody says."""
    pipeline, cut = found.pipeline or 1, found.cut
    stages, virtual = found.stages, found.virtual
    per_stage = cut.get("num-layers-per-virtual-pipeline-stage")
    if stages is not None:
        if len(stages) % pipeline:
            raise InputError(f"{LAYOUT} has {len(stages)} stages, which {pipeline} ranks do not divide")
        virtual = len(stages) // pipeline
    elif per_stage and blocks:
        if blocks % (pipeline * per_stage):
            words = f"{blocks} layers are no stages of {per_stage} on {pipeline} ranks"
            raise InputError(f"num-layers-per-virtual-pipeline-stage={per_stage}: {words}: take a divisor")
        virtual = blocks // (pipeline * per_stage)
    elif not per_stage:
        virtual = virtual or 1
    if blocks and stages is None:
        stages = _cut(found, blocks, pipeline * (virtual or 1))
    return replace(
        found, pipeline=pipeline, tensor=found.tensor or 1, context=found.context or 1, expert=found.expert or 1,
        virtual=virtual, stages=stages, recompute=found.recompute or NO_RECOMPUTE, zero=found.zero or 0,
        schedule=None if virtual is None else PLAIN if pipeline == 1 else plainest(virtual),
        sequence_parallel=bool(found.sequence_parallel), micro_batch=found.micro_batch,
        precision=found.precision or "fp32", gradients=SINGLE if found.gradients is None else found.gradients,
    )  # fmt: skip


def _cut(found: Configuration, blocks: int, stages: int) -> tuple[int, ...] | None:
    """Blocks of each stage where flags give the ends others than the rest; None where all are alike."""
    cut = found.cut
    first, last = (cut.get(f"decoder-{end}-pipeline-num-layers") for end in ("first", "last"))
    before, after = (cut.get(key, 0) for key in _COUNTED)
    if first is None and last is None and not before and not after:
        return None
    if stages > blocks + before + after:
        raise InputError(f"{blocks} layers are too few for {stages:,} stages: lower pipeline-model-parallel-size")
    if before or after:
        each, left = divmod(blocks + before + after, stages)
        rows = [each] * stages
        rows[0], rows[-1] = rows[0] - before, rows[-1] - after
    else:
        given = [n for n in (first, last) if n is not None]
        inner = stages - len(given)
        each, left = divmod(blocks - sum(given), inner) if inner else (0, blocks - sum(given))
        rows = [*([first] if first else []), *([each] * inner), *([last] if last else [])]
    if left or min(rows) < 0 or 0 in rows[bool(before) : stages - bool(after)]:
        words = f"{blocks} layers can't be cut into {stages} stages as the file says"
        raise InputError(f"{words}: change the first or the last")
    return tuple(rows)
