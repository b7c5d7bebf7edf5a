"""Megatron-LM: command-line flags, in a script, a text, or as YAML (of megatron/training/arguments.py, August 2026)."""

from __future__ import annotations

from dataclasses import replace

from partitioner.errors import InputError
from partitioner.precision import SINGLE
from partitioner.sharding.mesh_axes import TP
from tools.dialects.configuration import Configuration
from tools.dialects.core_keys import (
    MODEL_TOLD,
    degree_rows,
    read_products,
    recompute_row,
    settled,
    size_rows,
    write_products,
)
from tools.dialects.dialect import Dialect, Row, Told, Values, number, one_of, switch, whole, yes
from tools.dialects.flags import FLAGS

_SIXTEEN = {"bf16": "bf16", "fp16": "fp16"}
_PRECISIONS = ("bf16", "fp16", "fp8-format", "fp8-recipe", "fp4-format", "grad-reduce-in-bf16",
               "accumulate-allreduce-grads-in-fp32")  # fmt: skip
_SHARDED = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}


def _read_precision(values: Values) -> Values:
    on = [name for name in _SIXTEEN if name in values and yes(name, values[name])]
    if len(on) > 1:
        raise InputError("bf16 and fp16 are both given: drop one")
    precision = on[0] if on else "fp32"
    products = read_products(values, "fp8-format", "fp8-recipe", "fp4-format")
    if products and precision != "bf16":
        raise InputError(f"products in {products} beside {precision}: a plan has them beside bf16: add --bf16")
    in_16_bits = precision == "bf16" and yes("grad-reduce-in-bf16", values.get("grad-reduce-in-bf16", False))
    key = "accumulate-allreduce-grads-in-fp32"
    in_16_bits |= precision == "fp16" and not yes(key, values.get(key, False))
    return {"precision": products or precision, "gradients": "" if in_16_bits else SINGLE}


def _write_precision(asked: Configuration) -> Values:
    products = write_products(asked.precision or "")
    name = "bf16" if products else asked.precision
    if name not in _SIXTEEN:
        return {}
    if name == "bf16":
        told = {"grad-reduce-in-bf16": True} if asked.gradients == "" else {}
    else:
        told = {"accumulate-allreduce-grads-in-fp32": True} if asked.gradients == SINGLE else {}
    return {_SIXTEEN[name]: True, **told, **products}


def _read_zero(values: Values) -> Values:
    if any(yes(key, values.get(key, False)) for key in ("use-megatron-fsdp", "use-custom-fsdp")):
        key = "data-parallel-sharding-strategy"
        return {"zero": one_of(key, values.get(key, "optim_grads_params"), _SHARDED)}
    if yes("use-torch-fsdp2", values.get("use-torch-fsdp2", False)):
        return {"zero": 2 if "torch-fsdp2-no-reshard-after-forward" in values else 3}
    return {"zero": int(yes("use-distributed-optimizer", values.get("use-distributed-optimizer", False)))}


def _write_zero(asked: Configuration) -> Values:
    return {"use-distributed-optimizer": True if asked.zero == 1 else None}


_TENSOR = f"{TP}-comm-overlap"


def _read_gather(values: Values) -> Values:
    return {"overlap_parameters": yes("overlap-param-gather", *values.values())}


def _write_gather(asked: Configuration) -> Values:
    """Megatron refuses it without its distributed optimizer."""
    return {"overlap-param-gather": True if asked.overlap_parameters and asked.zero == 1 else None}


def _read_tensor(values: Values) -> Values:
    return {"overlap_tensor": yes(_TENSOR, *values.values())}


def _write_tensor(asked: Configuration) -> Values:
    """Megatron refuses it without sequence parallelism."""
    return {_TENSOR: True if asked.overlap_tensor and asked.sequence_parallel else None}


def _read_devices(values: Values) -> Values:
    inside, nodes = (whole(key, values.get(key, 1)) for key in ("nproc_per_node", "nnodes"))
    return {"devices": inside * nodes, "node_devices": inside}


_GROUPS = "group-query-attention"


def _read_groups(values: Values) -> Values:
    grouped = yes(_GROUPS, values.get(_GROUPS, False))
    groups = whole("num-query-groups", values.get("num-query-groups", 1))
    return {"kv_heads": groups} if grouped else {}


def _write_groups(asked: Configuration) -> Values:
    return {_GROUPS: True, "num-query-groups": asked.kv_heads} if asked.kv_heads not in (None, asked.heads) else {}


def _read_gated(values: Values) -> Values:
    gates = ("swiglu", "gated-linear-unit")
    named = str(values.get("activation-func", "")) in ("swiglu", "silu")
    return {"gated": named or any(yes(key, values.get(key, False)) for key in gates)}


def _write_gated(asked: Configuration) -> Values:
    extra = {"normalization": "RMSNorm", "position-embedding-type": "rope", "disable-bias-linear": True}
    return {"swiglu": True, **extra} if asked.gated else {}


MULTIPLE = "make-vocab-size-divisible-by"  # and by ranks of tensor parallelism


def _write_vocab(asked: Configuration) -> Values:
    if asked.vocab is None or asked.vocab % (128 * (asked.tensor or 1)) == 0:
        return {"vocab-size": asked.vocab}
    return {"vocab-size": asked.vocab, MULTIPLE: 1}


def _read_vocab(values: Values) -> Values:
    made = {"vocab": whole("vocab-size", values["vocab-size"])} if "vocab-size" in values else {}
    return made | ({"cut": {MULTIPLE: whole(MULTIPLE, values[MULTIPLE])}} if MULTIPLE in values else {})


def _settle(found: Configuration, blocks: int | None) -> Configuration:
    found = settled(found, blocks or found.layers)
    found = replace(
        found, overlap_gradients=bool(found.overlap_gradients), overlap_parameters=bool(found.overlap_parameters),
        overlap_tensor=bool(found.overlap_tensor) and bool(found.sequence_parallel),
    )  # fmt: skip
    heads, hidden, multiple = found.heads, found.hidden, found.cut.get(MULTIPLE, 128) * (found.tensor or 1)
    if found.layers and hidden:
        usual = hidden * 8 // 3 // 64 * 64 if found.gated else 4 * hidden
        found = replace(found, ffn=found.ffn or usual, gated=bool(found.gated), kv_heads=found.kv_heads or heads,
                        tied=found.tied is not False)  # fmt: skip
    if found.vocab:
        found = replace(found, vocab=-(-found.vocab // multiple) * multiple)
    return found


MEGATRON = Dialect(
    name="megatron", software="megatron", form=FLAGS, settle=_settle, spelled=lambda key: f"--{key}",
    rows=(
        *degree_rows(),
        number("micro-batch-size", "micro_batch"),
        number("global-batch-size", "global_batch"),
        Row(("use-distributed-optimizer", "use-megatron-fsdp", "use-custom-fsdp", "data-parallel-sharding-strategy",
             "use-torch-fsdp2", "torch-fsdp2-no-reshard-after-forward"), ("zero",), _read_zero, _write_zero),
        number("num-distributed-optimizer-instances", "replicas"),
        recompute_row(),
        switch("overlap-grad-reduce", "overlap_gradients"),
        Row(("overlap-param-gather",), ("overlap_parameters",), _read_gather, _write_gather),
        Row((_TENSOR,), ("overlap_tensor",), _read_tensor, _write_tensor),
        Row(_PRECISIONS, ("precision", "gradients"), _read_precision, _write_precision),
        *(row for row in size_rows() if row.fields[0] not in ("kv_heads", "vocab")),
        Row((_GROUPS, "num-query-groups"), ("kv_heads",), _read_groups, _write_groups),
        Row(("swiglu", "gated-linear-unit", "activation-func"), ("gated",), _read_gated, _write_gated),
        switch("untie-embeddings-and-output-weights", "tied", on=False, off=True),
        Row(("vocab-size", MULTIPLE), ("vocab",), _read_vocab, _write_vocab),
        number("num-experts", "experts"),
        Row(("nproc_per_node", "nnodes"), ("devices", "node_devices"), _read_devices),
    ),
    aliases={
        "virtual-pipeline-model-parallel-size": "num-virtual-stages-per-pipeline-rank", "fp8": "fp8-format",
        "fp4": "fp4-format", "nproc-per-node": "nproc_per_node", "num-moe-experts": "num-experts",
        "num-layers-in-first-pipeline-stage": "decoder-first-pipeline-num-layers",
        "num-layers-in-last-pipeline-stage": "decoder-last-pipeline-num-layers",
    },
    told=(
        *MODEL_TOLD,
        Told("expert-tensor-parallel-size", "plans have no expert parallelism yet: leave it out"),
        Told("cpu-offloading", "a plan keeps all on the device: leave it out"),
        Told("optimizer-cpu-offload", "a plan keeps all on the device: leave it out"),
        Told("fine-grained-activation-offloading", "a plan keeps all on the device: leave it out"),
        Told("rampup-batch-size", "a plan is of one batch, the last", (), refuse=False),
        Told("step-batch-size-schedule", "a plan is of one batch, the last", (), refuse=False),
        Told("optimizer", "memory is that of Adam", ("adam",), refuse=False),
        Told("use-precision-aware-optimizer", "the optimizer's state is taken to be float32", refuse=False),
        Told("exp-avg*-dtype", "the optimizer's state is taken to be float32", ("fp32",), refuse=False),
        Told("main-*-dtype", "the optimizer's state is taken to be float32", ("fp32",), refuse=False),
        Told("use-cpu-initialization", "", (True, False), refuse=False),
        Told("first-last-layers-bf16", "products of all blocks are taken to be in few bits", refuse=False),
        Told("model-parallel-size", "it is the old name: give tensor-model-parallel-size", ()),
        Told("batch-size", "it is the old name: give micro-batch-size", ()),
        Told("checkpoint-activations", "it is the old name: give recompute-granularity", (False,)),
        Told("tensor-parallel-num-weight-shards", "plans shard as tensor-model-parallel-size says: leave it out"),
        Told("gtp-weight-remat-size", "plans shard as tensor-model-parallel-size says: leave it out"),
        Told("distribute-saved-activations", "a plan keeps what enters a block whole: leave it out"),
        Told("hierarchical-context-parallel-sizes", "a plan has one group of context parallelism", (), refuse=False),
        Told("normalization", "the plain decoder has RMSNorm beside a gate, else LayerNorm", ("RMSNorm", "LayerNorm"),
             refuse=False),
        Told("encoder-*", "the plain decoder has no encoder: give --model", (None,), refuse=False),
    ),
    unread=(
        "*lr*", "*adam*", "*decay*", "clip-grad", "train-*", "*eval*", "*log*", "*tensorboard*", "*wandb*", "*save*",
        "load*", "*ckpt*", "*checkpoint*", "data-*", "*-data*", "split", "*tokenizer*", "vocab-file", "merge-file",
        "*init*", "seed", "exit-*", "*profile*", "nsys*", "overlap-p2p*", "overlap-moe*",
        "overlap-param-gather-with*", "no-overlap-*", "*fusion", "*fused*", "*-comm-overlap-*", "*comm-bulk*",
        "*comm-split*", "*comm-atomic*", "*-comm-type", "*comm-backend",
        "attention-*", "*rotary*", "rope-*", "*rope*", "position-embedding-type", "max-position-embeddings",
        "*layernorm*", "norm-epsilon", "*bias*", "use-mcore-models", "use-legacy-models", "use-flash-attn", "spec",
        "transformer-impl",
        "*loss-scale*", "hysteresis", "manual-gc*", "master_*", "master-*", "node_rank", "node-rank", "rdzv*",
        "num-workers", "num-dataset*", "distributed-*", "dataloader-type", "mock-data", "no-*", "*loss*", "ddp-*",
        "empty-unused-memory-level", "reset-*", "eod-*", "*timing*", "*timers*", "*softmax*", "*nan*", "finetune",
        "delay-*", "*-func", "timers", "*tiktoken*", "fp8-margin", "fp8-interval", "fp8-amax*", "fp8-wgrad",
        "fp8-param*", "*p2p*", "deallocate*", "*autocast*", "params-dtype", "pipeline-dtype",
        "calculate-per-token-loss", "moe-*", "cuda-graph*", "enable-cuda-graph", "external-cuda-graph", "*-prob*",
        "bert-*", "use-nccl-ub", "*one-logger*", "adlr-*", "local-rank", "lazy-mpu-init", "sample-rate",
        "retriever-*", "skip-train", "override-*", "use-checkpoint*", "*comm-overlap*", "gradient-accumulation-fusion",
        "async-*", "clone-*", "barrier*", "variable-seq-lengths", "perform-*", "use-ring*", "deterministic-mode",
        "optimizer-*", "sgd-*", "openai-gelu", "onnx-safe", "*gelu*", "vocab-extra-ids", "scatter-gather*",
        "standalone-*", "nccl-*", "create-*", "mmap*", "lr", "min-lr", "te-*", "max-tokens*", "legacy-*",
        "use-rotary*", "add-position-embedding", "decoder-seq-length", "use-dist-ckpt", "fp32-residual-connection",
        "apply-*", "persist-*", "memory-efficient*", "test-*", "squared*", "clip*", "start-*", "end-*",
        "decoder-num-layers",
        "cpu-offloading-*", "*-cross-entropy", "align-*", "megatron-fsdp-version", "megatron-fsdp*", "fsdp-*",
        "high-priority*", "reuse-grad*",
    ),
)  # fmt: skip
