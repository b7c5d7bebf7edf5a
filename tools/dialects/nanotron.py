"""nanotron: YAML (0.4, and what its repository had added by April 2026)."""

from __future__ import annotations

from dataclasses import replace

from partitioner.plan.recompute_ways import FULL_RECOMPUTE, NO_RECOMPUTE
from partitioner.precision import BRAIN, HALF, SINGLE
from partitioner.schedule.tables import PLAIN, SCHEDULES
from tools.dialects.configuration import Configuration
from tools.dialects.dialect import Dialect, Row, Told, Values, number, one_of, switch, whole, word, yes
from tools.dialects.documents import YAML

_ENGINES = {"afab": next(row.name for row in SCHEDULES.values() if row.forwards_first), PLAIN: PLAIN}
_MODES = {"ALL_REDUCE": False, "REDUCE_SCATTER": True}
_DTYPE, _SUMS = "model.dtype", "optimizer.accumulate_grad_in_fp32"
_MULTIPLE = "model.make_vocab_size_divisible_by"
_M = "model.model_config."


def _read_precision(values: Values) -> Values:
    names = {BRAIN: "bf16", HALF: "fp16", SINGLE: "fp32"}
    dtype = one_of(_DTYPE, values.get(_DTYPE, SINGLE), names)
    if dtype == "bf16" and not yes(_SUMS, values.get(_SUMS, True)):
        return {"precision": "bf16-pure", "gradients": ""}
    return {"precision": dtype, "gradients": SINGLE}


def _write_precision(asked: Configuration) -> Values:
    dtypes = {"bf16": BRAIN, "bf16-pure": BRAIN, "fp16": HALF, "fp32": SINGLE}
    if asked.cast not in dtypes:
        return {}
    return {_DTYPE: dtypes[asked.cast], _SUMS: asked.precision != "bf16-pure"}


def _settle(found: Configuration, blocks: int | None) -> Configuration:
    multiple = found.cut.get(_MULTIPLE, 1) * (found.tensor or 1)
    pipeline = found.pipeline or 1
    found = replace(
        found, pipeline=pipeline, tensor=found.tensor or 1, context=found.context or 1, virtual=1,
        schedule=PLAIN if pipeline == 1 else found.schedule or _ENGINES["afab"], zero=found.zero or 0,
        recompute=found.recompute or NO_RECOMPUTE, sequence_parallel=bool(found.sequence_parallel),
        precision=found.precision or "fp32", gradients=SINGLE if found.gradients is None else found.gradients,
        vocab=found.vocab and -(-found.vocab // multiple) * multiple,
    )  # fmt: skip
    if found.data:
        found = replace(found, devices=found.data * found.together)
    if found.layers and found.hidden:
        gated = found.gated is not False
        found = replace(found, gated=gated, kv_heads=found.kv_heads or found.heads, tied=bool(found.tied),
                        ffn=found.ffn or (None if gated else 4 * found.hidden))  # fmt: skip
    return found


def _written_otherwise(values: Values) -> Values:
    return {"gated": not yes(f"{_M}is_starcoder2_config", next(iter(values.values())))}


NANOTRON = Dialect(
    name="nanotron", software="nanotron", form=YAML, settle=_settle,
    rows=(
        number("parallelism.dp", "data"),
        number("parallelism.pp", "pipeline"),
        number("parallelism.tp", "tensor"),
        number("parallelism.context_parallel_size", "context"),
        number("parallelism.expert_parallel_size", "expert"),
        word("parallelism.pp_engine", "schedule", _ENGINES),
        word("parallelism.tp_mode", "sequence_parallel", _MODES),
        switch("parallelism.recompute_layer", "recompute", FULL_RECOMPUTE, NO_RECOMPUTE),
        number("tokens.micro_batch_size", "micro_batch"),
        number("tokens.batch_accumulation_per_replica", "micro_batches"),
        number("tokens.sequence_length", "seq"),
        number("optimizer.zero_stage", "zero", least=0),
        Row((_DTYPE, _SUMS), ("precision", "gradients"), _read_precision, _write_precision),
        number(f"{_M}num_hidden_layers", "layers"),
        number(f"{_M}hidden_size", "hidden"),
        number(f"{_M}intermediate_size", "ffn"),
        number(f"{_M}num_attention_heads", "heads"),
        number(f"{_M}num_key_value_heads", "kv_heads", f"{_M}num_kv_heads"),
        number(f"{_M}vocab_size", "vocab"),
        switch(f"{_M}tie_word_embeddings", "tied"),
        Row((f"{_M}is_starcoder2_config",), ("gated",), _written_otherwise),
        number(f"{_M}moe_config.num_experts", "experts", f"{_M}num_local_experts", f"{_M}moe_num_experts"),
        Row((_MULTIPLE,), (), lambda values: {"cut": {_MULTIPLE: whole(_MULTIPLE, values[_MULTIPLE])}}),
    ),
    told=(
        Told("parallelism.tp_recompute_allgather", "", (True, False), refuse=False),
        Told(f"{_M}sliding_window_size", "the plain decoder attends to all before: give --model", of_model=True),
        Told(f"{_M}hidden_act", "the plain decoder has GELU or gated SiLU: give --model", ("silu",), refuse=False),
    ),
    unread=(
        "checkpoints.*", "data_stages", "data.*", "general.*", "lighteval*", "logging.*", "profiler*", "tokenizer.*",
        "optimizer.*", "tokens.*", "model.init_method.*", "model.ddp_bucket_cap_mb", f"{_M}*", "s3_upload*",
        "parallelism.tp_linear_async_communication", "metrics_logging*", "doremi*", "parallelism.moe_layer_recompute",
        "parallelism.enabled_moe",
    ),
)  # fmt: skip
