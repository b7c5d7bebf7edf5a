"""Megatron-Bridge and NeMo: YAML of nested keys over Megatron-Core's names (Megatron-Bridge of August 2026)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from partitioner.errors import InputError
from partitioner.precision import SINGLE
from tools.dialects.configuration import Configuration
from tools.dialects.core_keys import (
    MODEL_TOLD,
    degree_rows,
    read_products,
    recompute_row,
    settled,
    size_rows,
)
from tools.dialects.dialect import Dialect, Row, Told, Values, number, one_of, switch, whole, yes
from tools.dialects.documents import YAML

_OTHERS = {  # names that the nested keys have otherwise than the flags
    "num-virtual-stages-per-pipeline-rank": "virtual_pipeline_model_parallel_size",
    "decoder-first-pipeline-num-layers": "num_layers_in_first_pipeline_stage",
    "decoder-last-pipeline-num-layers": "num_layers_in_last_pipeline_stage",
}


def _nested(key: str) -> str:
    return f"model.{_OTHERS.get(key, key.replace('-', '_'))}"


def _renamed(row: Row) -> Row:
    """A row of flags as one of nested keys."""
    flags = {_nested(key): key for key in row.keys}

    def read(values: Values) -> Values:
        try:
            return row.read({flags[key]: value for key, value in values.items()})
        except InputError as error:
            words = str(error)
            for nested, flag in sorted(flags.items(), key=lambda pair: -len(pair[1])):
                words = words.replace(flag, nested)
            raise InputError(words) from error

    def write(asked: Configuration) -> Values:
        return {_nested(key): value for key, value in row.write(asked).items()}

    return Row(tuple(flags), row.fields, read, write)


_RECIPES = {  # of mixed_precision, where it is a word: the preset, and whether gradients are summed in float32
    "bf16_mixed": "bf16", "fp16_mixed": "fp16", "bf16_with_fp8_delayed_scaling_mixed": "fp8",
    "bf16_with_fp8_current_scaling_mixed": "fp8", "bf16_with_fp8_subchannel_scaling_mixed": "fp8_block",
    "bf16_with_mxfp8_mixed": "mxfp8", "bf16_with_nvfp4_mixed": "nvfp4", "32": "fp32", "bf16-mixed": "bf16",
    "16-mixed": "fp16", "bf16": "bf16", "32-true": "fp32",
}  # fmt: skip
_WORD = "mixed_precision"
_SINGLE = f"{_WORD}.fp32"
_PARTS = tuple(f"{_WORD}.{part}" for part in ("bf16", "fp16", "fp8", "fp8_recipe", "fp4"))
_REDUCE = ("ddp.grad_reduce_in_fp32", f"{_WORD}.grad_reduce_in_fp32", "optimizer.grad_reduce_in_fp32")
_OLD = ("trainer.precision", "trainer.plugins.precision", "model.fp8", "model.fp8_recipe")


def _read_precision(values: Values) -> Values:
    word = values.get(_WORD, values.get("trainer.precision", values.get("trainer.plugins.precision")))
    bf16, fp16, fp8, recipe, fp4 = _PARTS
    if word is not None:
        precision = one_of(_WORD, word, _RECIPES)
    else:
        on = [name for name, key in (("bf16", bf16), ("fp16", fp16)) if yes(key, values.get(key, False))]
        if len(on) > 1:
            raise InputError(f"{bf16} and {fp16} are both on: drop one")
        precision = on[0] if on else "fp32" if yes(_SINGLE, values.get(_SINGLE, False)) else "bf16"
    products = read_products(values, fp8, recipe, fp4) or read_products(values, "model.fp8", "model.fp8_recipe", fp4)
    said = [yes(key, values[key]) for key in _REDUCE if key in values]
    return {"precision": products or precision, "gradients": "" if said and not said[0] else SINGLE}


def _write_precision(asked: Configuration) -> Values:
    words = {preset: word for word, preset in reversed(_RECIPES.items()) if "_" in word}
    if asked.precision == "fp32":
        return {_SINGLE: True}
    if asked.precision not in words:
        return {}
    return {_WORD: words[asked.precision], "ddp.grad_reduce_in_fp32": asked.gradients == SINGLE}


def _write_zero(asked: Configuration) -> Values:
    return {"ddp.use_distributed_optimizer": True if asked.zero == 1 else None}


def _read_gated(values: Values) -> Values:
    key = "model.gated_linear_unit"
    return {"gated": str(values.get("model.activation", "")).endswith("swiglu") or yes(key, values.get(key, False))}


def _write_tied(asked: Configuration) -> Values:
    return {"model.share_embeddings_and_output_weights": asked.tied}


_INSIDE, _NODES = "trainer.devices", "trainer.num_nodes"


def _read_devices(values: Values) -> Values:
    if _INSIDE not in values:
        return {}
    inside = whole(_INSIDE, values[_INSIDE])
    return {"devices": inside * whole(_NODES, values.get(_NODES, 1)), "node_devices": inside}


def _write_devices(asked: Configuration) -> Values:
    if not asked.devices or not asked.node_devices:
        return {}
    return {_INSIDE: asked.node_devices, _NODES: -(-asked.devices // asked.node_devices)}


def _settle(found: Configuration, blocks: int | None) -> Configuration:
    silent = found.precision is None
    found = settled(found, blocks or found.layers)
    if silent:
        found = replace(found, precision="bf16")
    if found.layers and found.hidden:
        found = replace(found, ffn=found.ffn or 4 * found.hidden, gated=bool(found.gated),
                        kv_heads=found.kv_heads or found.heads, tied=found.tied is not False)  # fmt: skip
    return found


def _told(rows: tuple[Told, ...]) -> tuple[Told, ...]:
    spelled: Callable[[str], str] = lambda key: key.replace("-", "_") if "*" in key else _nested(key)  # noqa: E731
    return tuple(replace(row, key=spelled(row.key)) for row in rows)


BRIDGE = Dialect(
    name="bridge", software="megatron-bridge", form=YAML, settle=_settle,
    rows=(
        *(_renamed(row) for row in degree_rows()),
        number("train.micro_batch_size", "micro_batch", "model.micro_batch_size", "data.micro_batch_size"),
        number("train.global_batch_size", "global_batch", "model.global_batch_size", "data.global_batch_size"),
        Row(("ddp.use_distributed_optimizer", "optimizer.use_distributed_optimizer"), ("zero",),
            lambda values: {"zero": int(any(yes(key, value) for key, value in values.items()))}, _write_zero),
        switch("ddp.overlap_grad_reduce", "overlap_gradients"),
        switch("ddp.overlap_param_gather", "overlap_parameters"),
        switch("comm_overlap.tp_comm_overlap", "overlap_tensor"),
        number("ddp.num_distributed_optimizer_instances", "replicas"),
        _renamed(recompute_row()),
        Row((_WORD, _SINGLE, *_PARTS, *_REDUCE, *_OLD), ("precision", "gradients"), _read_precision, _write_precision),
        *(_renamed(row) for row in size_rows() if row.fields != ("seq",)),
        number("model.seq_length", "seq", "dataset.seq_length", "dataset.sequence_length", "model.encoder_seq_length",
               "data.seq_length"),
        Row(("model.gated_linear_unit", "model.activation"), ("gated",), _read_gated,
            lambda asked: {"model.gated_linear_unit": asked.gated}),
        Row(("model.share_embeddings_and_output_weights",), ("tied",),
            lambda values: {"tied": yes("model.share_embeddings_and_output_weights", *values.values())}, _write_tied),
        number("model.num_moe_experts", "experts"),
        switch("dist.use_torch_fsdp2", "zero", on=3, off=0),
        Row((_INSIDE, _NODES), ("devices", "node_devices"), _read_devices, _write_devices),
    ),
    aliases={
        "model.activations_checkpoint_granularity": "model.recompute_granularity",
        "model.activations_checkpoint_method": "model.recompute_method",
        "model.activations_checkpoint_num_layers": "model.recompute_num_layers",
        "mixed_precision.fp8_format": "mixed_precision.fp8",
    },
    told=(
        *_told(MODEL_TOLD),
        Told("model.expert_tensor_parallel_size", "plans have no expert parallelism yet: leave it out"),
        Told("dist.use_megatron_fsdp", "plans for Megatron-Bridge are of ZeRO 0 and 1: leave it out"),
        Told("ddp.use_megatron_fsdp", "plans for Megatron-Bridge are of ZeRO 0 and 1: leave it out"),
        Told("model.cpu_offloading", "a plan keeps all on the device: leave it out"),
        Told("optimizer.optimizer_cpu_offload", "a plan keeps all on the device: leave it out"),
        Told("train.rampup_batch_size", "a plan is of one batch, the last", (), refuse=False),
        Told("optimizer.optimizer", "memory is that of Adam", ("adam",), refuse=False),
        Told("mixed_precision.first_last_layers_bf16", "products of all blocks are taken to be so", refuse=False),
        Told("peft*", "what is trained is what --model says", (), refuse=False),
    ),
    unread=(
        "*_target_", "*_partial_", "*_call_*", "*_args_", "scheduler.*", "logger.*", "checkpoint.*", "rng.*",
        "tokenizer.*", "dataset.*", "dist.*", "profiling.*", "validation.*", "rerun_state_machine.*", "straggler.*",
        "nvrx_straggler.*", "comm_overlap.*", "optimizer.*", "ddp.*bucket*", "ddp.*nan*",
        "train.train_*", "train.eval*", "train.exit*", "train.manual_gc*", "train.empty*", "exp_manager.*",
        "mixed_precision.*", "model.*fusion*", "model.*init*", "model.*dropout*", "model.*norm*", "model.*rot*",
        "model.*rope*", "model.*dtype*", "model.*bias*", "model.*p2p*", "model.tp_comm*", "model.*attention*",
        "model.moe_*", "model.*_func", "model.make_vocab*", "model.optim.*", "model.data.*", "model.tokenizer.*",
        "model.position_embedding*", "model.fp16*", "model.bf16", "model.*cuda_graph*", "model.transformer_impl",
        "model.should_pad_vocab", "name", "trainer.*", "log.*", "resume.*", "run.*", "model.megatron_amp_O2",
        "model.max_position_embeddings", "*tokenizer*", "inprocess_restart*", "ft.*", "ddp.*", "train.*seed*",
        "model.gradient_accumulation_fusion",
        "model.cpu_offloading_*", "model.cross_entropy*", "model.deallocate*", "model.fp8_*", "model.cp_comm_type",
    ),
)  # fmt: skip
