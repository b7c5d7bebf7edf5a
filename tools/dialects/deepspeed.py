"""DeepSpeed: the JSON of its engine (0.19)."""

from __future__ import annotations

from dataclasses import replace

from partitioner.errors import InputError
from partitioner.precision import BRAIN, HALF, SINGLE
from partitioner.schedule.tables import PLAIN
from tools.dialects.configuration import Configuration
from tools.dialects.dialect import Dialect, Row, Told, Values, number, one_of, yes
from tools.dialects.documents import JSON

_Z = "zero_optimization."
_ON = {"bf16": "bf16.enabled", "fp16": "fp16.enabled"}
_SUMS = "data_types.grad_accum_dtype"
_STAGE, _STAGES = f"{_Z}stage", {str(n): n for n in range(4)}
_TYPES = {"fp32": SINGLE, "bf16": BRAIN, "fp16": HALF}


def _read_precision(values: Values) -> Values:
    on = [name for name, key in _ON.items() if yes(key, values.get(key, False))]
    if len(on) > 1:
        raise InputError(f"{' and '.join(_ON.values())} are both on: drop one")
    made = {"precision": on[0] if on else "fp32"}
    if _SUMS not in values:
        return made
    return made | {"gradients": SINGLE if one_of(_SUMS, values[_SUMS], _TYPES) == SINGLE else ""}


def _write_precision(asked: Configuration) -> Values:
    if asked.cast not in _ON:
        return {}
    return {_ON[asked.cast]: True, _SUMS: "fp32" if asked.gradients == SINGLE else asked.cast}


def _settle(found: Configuration, blocks: int | None) -> Configuration:
    return replace(
        found, pipeline=1, context=1, tensor=found.tensor or 1, schedule=PLAIN, virtual=1, zero=found.zero or 0,
        precision=found.precision or "fp32", sequence_parallel=False,
    )  # fmt: skip


_OFFLOAD = "a plan keeps all on the device: leave it out"

DEEPSPEED = Dialect(
    name="deepspeed", software="deepspeed", form=JSON, settle=_settle,
    rows=(
        number("train_batch_size", "global_batch"),
        number("train_micro_batch_size_per_gpu", "micro_batch"),
        number("gradient_accumulation_steps", "micro_batches"),
        Row((_STAGE,), ("zero",), lambda values: {"zero": one_of(_STAGE, values[_STAGE], _STAGES)},
            lambda asked: {_STAGE: asked.zero}),
        Row((*_ON.values(), _SUMS), ("precision", "gradients"), _read_precision, _write_precision),
        number("tensor_parallel.autotp_size", "tensor"),
    ),
    elsewhere={
        "seq": "the batches that the training script makes",
        "recompute": "the model: torch.utils.checkpoint around its blocks",
    },
    told=(
        Told(f"{_Z}offload_optimizer.device", _OFFLOAD),
        Told(f"{_Z}offload_param.device", _OFFLOAD),
        Told(f"{_Z}cpu_offload*", _OFFLOAD),
        Told(f"{_Z}mics_*", "DeepSpeed has taken MiCS out, ZeRO divides over all ranks: leave it out", (-1, False)),
        Told("sequence_parallel_size", "plans for DeepSpeed are of data parallelism alone: set it to 1"),
        Told(f"{_Z}zero_hpz_partition_size", "a plan holds parameters once in its ZeRO group: set it to 1"),
        Told(f"{_Z}zero_quantized_*", "priced as if bytes were those of the model's types", refuse=False),
        Told("amp.enabled", "it is of older releases: give bf16 or fp16"),
        Told("torch_autocast.enabled", "priced as without it", refuse=False),
        Told("expert_parallel.*", "plans have no expert parallelism yet: leave it out"),
        Told("pipeline.*", "stages are cut by the model's code: plans for DeepSpeed have one", (), refuse=False),
        Told("optimizer.type", "memory is that of Adam", ("Adam", "AdamW", "FusedAdam"), refuse=False),
        Told("sparse_attention.*", "the model says what attention does", (), refuse=False),
        Told("compression_training.*", "a plan trains what the model is", (), refuse=False),
    ),
    unread=(
        "optimizer.*", "scheduler.*", "gradient_clipping", "steps_per_print", "wall_clock_breakdown",
        "prescale_gradients",
        "gradient_predivide_factor", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "fp16.*", "bf16.*",
        "communication_data_type", "disable_allgather", "dump_state", "flops_profiler.*", "comms_logger.*",
        "tensorboard.*", "wandb.*", "csv_monitor.*", "comet.*", "monitor_config.*", "checkpoint.*", "data_types.*",
        "elasticity.*", "autotuning.*", "aio.*", "activation_checkpointing.*", "dataloader_drop_last",
        "memory_breakdown",
        "data_efficiency.*", "curriculum_learning.*", "compile.*", "sparse_gradients", "tensor_parallel.*", "seed",
        f"{_Z}*bucket*", f"{_Z}*overlap*", f"{_Z}contiguous_gradients", f"{_Z}reduce_*", f"{_Z}stage3_*",
        f"{_Z}allgather_*", f"{_Z}sub_group_size", f"{_Z}round_robin_gradients", f"{_Z}offload_*", f"{_Z}*checkpoint*",
        f"{_Z}ignore_unused_parameters", f"{_Z}memory_efficient_linear", f"{_Z}load_from_fp32_weights",
        f"{_Z}param_persistence_threshold", f"{_Z}prefetch_bucket_size", "train_data_*", "hybrid_engine.*",
        "use_data_before_expert_parallelism", "nebula.*",
    ),
)  # fmt: skip
