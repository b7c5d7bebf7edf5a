"""What people ask of a plan in one number each."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from partitioner import Cluster, Plan
from partitioner.plan.derived_rows import StageCost
from partitioner.plan.parallelism import Parallelism
from partitioner.plan.plan import Decisions
from partitioner.precision import SINGLE, TF32, Precision
from partitioner.sharding.mesh_axes import AXES, CP, PP, TP
from partitioner.software import Software

# kinds, in the order in which they stack
MEMORY: tuple[str, ...] = ("weights", "gradients", "optimizer", "activations", "transient")


_HIDDEN = {
    "overlap_tensor": f"{TP} collectives", "overlap_context": "keys and values", "overlap_parameters": "parameters",
    "overlap_gradients": "gradients", "overlap_sends": "sends",
}  # fmt: skip


def mesh_words(parallelism: Parallelism, between: str = " x ") -> str:
    """``pp 2 x dp 1 x tp 2``; of an axis that is refined, how: ``tp 8 (2 x 4)``."""
    words = list[str]()
    for axis in parallelism.order:
        parts = [str(parallelism.refined[part]) for part in AXES[axis].parts if part in parallelism.refined]
        words.append(f"{axis} {parallelism.mesh[axis]}" + (f" ({' x '.join(parts)})" if parts else ""))
    return between.join(words)


def recompute_words(decisions: Decisions) -> str:
    """``recompute off``, or of how many blocks in each stage."""
    counts = decisions.recomputed
    if not any(counts):
        return "recompute off"
    many = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    return f"recompute {decisions.parallelism.recompute} of {many} blocks a stage"


def schedule_words(parallelism: Parallelism) -> str:
    """``1f1b``, ``interleaved with 4 virtual stages``."""
    return parallelism.schedule + (f" with {parallelism.virtual} virtual stages" if parallelism.virtual > 1 else "")


def schedule_label(parallelism: Parallelism) -> str:
    """``1f1b``, ``interleaved x4``."""
    return parallelism.schedule + (f" x{parallelism.virtual}" if parallelism.virtual > 1 else "")


def recompute_label(parallelism: Parallelism) -> str:
    """``full``, ``none, ZeRO 3``."""
    return parallelism.recompute + zero_label(parallelism)


def zero_label(parallelism: Parallelism) -> str:
    """What follows other words where state is sharded: ``, ZeRO 3``, ``, ZeRO 1 over 8`` of more replicas."""
    inside = f" over {parallelism.shards}" if parallelism.shards < parallelism.replicas else ""
    return f", ZeRO {parallelism.zero}{inside}" if parallelism.zero else ""


def precision_words(model: dict[str, Any], precision: Precision, cluster: dict[str, Any]) -> str:
    """``bfloat16``, ``bfloat16 products of float32 parameters``, and what of a step is otherwise; of float32 on devices
    that have TF32, that it is not used."""
    held, multiplied = model["dtype"], model["product_dtype"]
    words = held if held == multiplied or precision.products else f"{multiplied} products of {held} parameters"
    if multiplied == SINGLE and TF32 in cluster["device"]["flops_per_second"]:
        words += ", no TF32"
    if precision.state == precision.gradients != "":
        words += f", gradients, masters and moments {precision.state}"
    else:
        words += f", gradients {precision.gradients}" if precision.gradients else ""
        words += f", masters and moments {precision.state}" if precision.state else ""
    words += f", products of blocks in {precision.products}" if precision.products else ""
    kept = "".join(f", {pattern} in float32" for pattern in precision.float32)
    return words + kept + (", the loss scaled" if precision.loss_scale else "")


def precision_label(model: dict[str, Any], precision: Precision, cluster: dict[str, Any]) -> str:
    """``bf16``, or the model's own data types."""
    return str(precision) if precision.compute else precision_words(model, precision, cluster)


def software_words(software: Software) -> str:
    """Whose step it is that was priced, and what of it hides or is fused; of this project's runtime whether that was
    measured on the devices."""
    plans = software.plans
    axes, zero = (plans.axes, max(plans.zero)) if plans else (AXES, 3)
    of_axes = {"overlap_tensor": TP in axes, "overlap_context": CP in axes, "overlap_sends": PP in axes}
    has = {**of_axes, "overlap_parameters": zero > 0}
    hidden = [word for trait, word in _HIDDEN.items() if getattr(software, trait) and has.get(trait, True)]
    traits = [f"hides {' and '.join(filter(None, (', '.join(hidden[:-1]), hidden[-1])))}"] if hidden else []
    traits += ["fuses pointwise ops"] if software.fused else []
    measured = "as measured here" if software.measured else "not measured on these devices"
    whose = measured if software.is_executed else "which runs it"
    return f"priced as {software.title}, {whose}: {', '.join(traits)}"


def sample_words(model: dict[str, Any]) -> str:
    """``2,048 tokens a sample``; nothing where a sample is no text."""
    return f"{model['tokens']:,} tokens a sample" if model["tokens"] else ""


def unit(model: dict[str, Any]) -> str:
    """What a rate counts: ``tokens`` of text, else ``samples``."""
    return "tokens" if model["tokens"] else "samples"


def mfu(plan: Plan) -> float:
    """Model FLOPs over peak FLOPs of all devices in the step's time."""
    return mfu_of(plan.model, plan.cluster, plan.world, plan.cost.flops, plan.cost.step_seconds)


def mfu_of(model: dict[str, Any], cluster: dict[str, Any], devices: int, flops: float, seconds: float) -> float:
    """``flops`` of a step over what so many devices could do in ``seconds``, in the data type of most of them."""
    peak = Cluster.from_dict(cluster).device.peak(model["product_dtype"])
    return flops / (seconds * devices * peak)


def rate(plan: Plan) -> float:
    """Tokens, or samples, a second."""
    return rate_of(plan.model, plan.global_batch, plan.cost.step_seconds)


def rate_of(model: dict[str, Any], global_batch: int, step_seconds: float) -> float:
    """What ``unit`` counts, a second."""
    return global_batch * (model["tokens"] or 1) / step_seconds


def dollars(plan: Plan) -> float | None:
    """The price of a billion units; None where the cluster has none."""
    return dollars_of(plan.cluster, plan.world, rate(plan))


def dollars_of(cluster: dict[str, Any], devices: int, rate: float) -> float | None:
    """The price of a billion units at ``rate`` of them a second."""
    price = cluster["device"]["dollars_per_hour"]
    return None if price is None else price * devices * 1e9 / rate / 3600


def kilowatt_hours(plan: Plan) -> float | None:
    """The devices' energy for a billion units at their full power; None where the cluster does not give it."""
    return kilowatt_hours_of(plan.cluster, plan.world, rate(plan))


def kilowatt_hours_of(cluster: dict[str, Any], devices: int, rate: float) -> float | None:
    """The devices' energy for a billion units at ``rate`` of them a second."""
    power = cluster["device"]["watts"]
    return None if power is None else power * devices * 1e9 / rate / 3.6e6


def exposed(plan: Plan) -> float:
    """Seconds of communication that no compute hides, gradient sync included."""
    return plan.cost.communication_seconds + plan.cost.sync_seconds


def parts(plan: Plan) -> dict[str, float]:
    """Where the step's seconds go; they add up to it."""
    cost = plan.cost
    axes = {f"{axis} communication": s for axis, s in cost.exposed_seconds.items() if s}
    return {"compute": cost.compute_seconds, **axes, "bubble": cost.bubble_seconds, "optimizer": cost.optimizer_seconds}


def memory(stage: StageCost) -> dict[str, float]:
    """Bytes by kind at its rank's fullest moment."""
    return {kind: getattr(stage, _FIELDS[kind]) for kind in MEMORY}


_FIELDS = {kind: f.name for kind in MEMORY for f in fields(StageCost) if f.name == f"{kind.removesuffix('s')}_bytes"}


def worst_rank(plan: Plan) -> int:
    """The pipeline rank that holds most."""
    rows = rank_memory(plan)
    return max(range(len(rows)), key=lambda p: sum(rows[p].values()))


def rank_memory(plan: Plan) -> list[dict[str, float]]:
    """Of each pipeline rank, bytes by kind at its fullest moment, its stages added up."""
    return [
        {kind: sum(memory(plan.cost.stages[n])[kind] for n in own) for kind in MEMORY}
        for own in plan.parallelism.rank_stages
    ]
