"""Whether this machine can hold what ``verify`` compares a plan with, the whole eager model in float64, and ranks."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from partitioner import Plan
from partitioner.errors import InputError
from tools.models.load_planned import load_plan
from tools.screen import size

WIDE_BYTES = 8
TRAINED = 4  # float64 values beside a trained parameter's own: its gradient, the first step's, AdamW's two moments
MEMINFO = Path("/proc/meminfo")
COUNTED = ("MemAvailable", "SwapFree")


def refuse_too_large(plan: Plan, free: float | None) -> None:
    """Raise InputError where what is held at once for certain is more than ``free`` bytes, None where that is not
    known. The model is loaded, on meta, where its number of parameters alone leaves a doubt."""
    most = WIDE_BYTES * (2 * plan.world + 2 + TRAINED) * int(plan.model.get("parameters", 0))
    if free is None or most <= free:
        return
    module = load_plan(plan, meta=True).module
    needed = needed_bytes(module, plan.world)
    if needed > free:
        many = sum(p.numel() for p in module.parameters())
        raise InputError(
            f"verify holds the whole eager model, in float64 too: {many:,} parameters on {plan.world:,} ranks need at "
            f"least {size(needed)} on this machine, which has {size(free)} free: verify a plan of fewer layers (plan "
            "with --set), or add --dry-run, which needs no values"
        )


def needed_bytes(module: nn.Module, ranks: int) -> float:
    """That are held at once at least: by this process and each rank the module; by each rank its values in float64; by
    the first rank a copy in float64 that takes steps. Activations come beside."""
    parameters = list(module.parameters())
    own = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return own * (ranks + 1) + WIDE_BYTES * ((ranks + 1) * sum(p.numel() for p in parameters) + TRAINED * trained)


def free_bytes(meminfo: Path = MEMINFO) -> float | None:
    """What the system can still give to processes, swap included; None where it does not tell."""
    if not meminfo.is_file():
        return None
    rows = (line.partition(":") for line in meminfo.read_text().splitlines())
    found = {name: float(value.split()[0]) * 1024 for name, _, value in rows if name in COUNTED}
    return sum(found.values()) if COUNTED[0] in found else None
