"""``partitioner diff``: which decisions two plans of one model differ in, by module name."""

from __future__ import annotations

import argparse

from partitioner import Plan
from partitioner.plan.json_document import plain
from partitioner.sharding.layout import layout_word, parse_layout
from tools.figures import figures
from tools.screen import output


def diff_command(options: argparse.Namespace) -> int:
    """One line a difference; exit status 1 when there is any."""
    before, after = Plan.load(options.before), Plan.load(options.after)
    lines = differences(before, after)
    for line in lines:
        output().print(line, markup=False)
    if not lines:
        output().print("the plans decide the same")
    return 1 if lines else 0


def differences(before: Plan, after: Plan) -> list[str]:
    """``what: before -> after``, decisions first, then layouts of parameters."""
    sizes = before.global_batch, after.global_batch
    lines = [f"global batch: {sizes[0]} -> {sizes[1]}"] if sizes[0] != sizes[1] else []
    for name, words in (("priced as", _software), ("precision", _precision), ("a sample", _sample)):
        a, b = words(before), words(after)
        lines += [f"{name}: {a} -> {b}"] if a != b else []
    old, new = plain(before.decisions), plain(after.decisions)
    for key in _DECIDED:
        if old[key] != new[key]:
            lines.append(f"{key}: {_words(old[key])} -> {_words(new[key])}")
    if old["stages"] != new["stages"]:
        lines.append(f"stages: {[len(s) for s in old['stages']]} -> {[len(s) for s in new['stages']]} units")
    for key in ("parameters", "boundaries"):
        for name in sorted(set(old[key]) | set(new[key])):
            a, b = old[key].get(name), new[key].get(name)
            if a != b:
                lines.append(f"{key.removesuffix('s')} {name}: {_layout(a)} -> {_layout(b)}")
    return lines


def _software(plan: Plan) -> str:
    return figures.software_words(plan.machine.software).removeprefix("priced as ")


def _precision(plan: Plan) -> str:
    return figures.precision_words(plan.model, plan.decisions.precision, plan.cluster)


def _sample(plan: Plan) -> str:
    return figures.sample_words(plan.model).removesuffix(" a sample") or "no text"


_DECIDED = (
    "mesh", "order", "refined", "micro_batch", "micro_batches", "schedule", "virtual", "recompute", "recomputed",
    "zero", "zero_group", "seed",
)  # fmt: skip


def _words(value: object) -> str:
    return " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _layout(words: object) -> str:
    """Of a layout, or of each that enters a block."""
    if words is None:
        return "absent"
    try:
        return layout_word(parse_layout(words))
    except ValueError:
        return ", ".join(map(_layout, words)) if isinstance(words, list | tuple) else str(words)
