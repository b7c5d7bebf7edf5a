"""A handful of planted faults, each of which the comparison of ``verify`` must see; the plan as it is must pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.planted_faults.mutate import MODELS, Model, Result, is_caught, is_fault, run

GPT = MODELS[0]
NAMES = ("gpt sp2", "gpt pp2", "gpt sp2, linear's rule")


def test_every_fault_of_a_small_sample_is_caught() -> None:
    small = Model(GPT.spec, GPT.settings | {"layers": 2}, tuple(p for p in GPT.plans if p[0] in NAMES))
    seen(run([small], most=6), 30)


def test_every_fault_of_casts_is_caught() -> None:
    """Against a plain loop in its own types, which takes the same samples one by one."""
    (casts,) = (m for m in MODELS if m.real and m.float32)
    seen(run([replace(casts, plans=tuple(p for p in casts.plans if p[0].endswith(("dp2", "ZeRO 1"))))]), 18)


@pytest.mark.parity
@pytest.mark.timeout(1800)
def test_every_fault_is_caught() -> None:
    seen(run(), 300)


def seen(rows: list[Result], least: int) -> None:
    faults = [row for row in rows if is_fault(row)]
    assert len(faults) >= least
    assert [f"{row.plan}: {row.mutant}" for row in faults if not is_caught(row)] == []
    assert [row for row in rows if not is_fault(row) and is_caught(row)] == []
