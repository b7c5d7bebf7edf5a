"""Why a plan did not decide otherwise: the best plan with that pin beside it, or why there is none."""

from __future__ import annotations

from tools.figures.columns import Column
from tools.plan.edits_as_pins import read_pins
from tools.plan.replan import attempted, source_plan


def column(first: Column, pin: str) -> Column:
    """The first plan's model and cluster, and this pin beside or instead of its own pins; where those are in the way,
    without them."""
    plan, asked = source_plan(first), read_pins(pin.split(","))
    looked_at = bool(plan.decisions.plan_only)
    found = attempted(f"with {pin}", plan, {**plan.pins, **asked}, looked_at)
    left = [f"{name}={value}" for name, value in plan.pins.items() if name not in asked]
    if found.kind == "infeasible" and left:
        again = attempted(f"with {pin}, without {', '.join(left)}", plan, asked, looked_at)
        return again if again.plan else found
    return found
