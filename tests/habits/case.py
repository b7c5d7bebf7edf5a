"""A case: one habit of real code, and what must come of it under every plan."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from stack import Build

DIVIDED = 0.9  # share of FLOPs that tp must divide
FEW = 0.5  # share of gradients that may be exactly zero

Pins = dict[str, str | int]
SAMPLES, EXAMPLE = 8, 4  # of the global batch and of the example that is traced
PLANS: dict[int, dict[str, Pins]] = {
    2: {
        "dp": {"dp": 2, "micro_batch": 2},
        "tp": {"tp": 2, "micro_batch": 4, "boundary": "whole"},
        "tp sequence": {"tp": 2, "micro_batch": 4, "boundary": "sharded"},
        "pp": {"pp": 2, "micro_batch": 2},
    },
    4: {"tp x pp": {"tp": 2, "pp": 2, "micro_batch": 2}},
}
WHOLE: dict[int, dict[str, Pins]] = {
    2: {
        "tp": {"tp": 2, "micro_batch": SAMPLES, "boundary": "whole"},
        "tp sequence": {"tp": 2, "micro_batch": SAMPLES, "boundary": "sharded"},
        "pp": {"pp": 2, "micro_batch": SAMPLES},
    },
    4: {"tp x pp": {"tp": 2, "pp": 2, "micro_batch": SAMPLES}},
}
PARTS: dict[int, dict[str, Pins]] = {
    2: {"dp": {"dp": 2, "micro_batch": 2}, "micro-batches": {"tp": 2, "micro_batch": 2}},
    4: {"pp with micro-batches": {"tp": 2, "pp": 2, "micro_batch": 2}},
}


@dataclass(frozen=True)
class Outcome:
    """Of one plan: ``refused`` or ``crashed`` with words, else the largest error, its limit and what was divided."""

    refused: str = ""
    crashed: str = ""
    error: float = 0.0
    limit: float = 0.0
    worst: str = ""
    first: str = ""
    unforeseen: str = ""
    divided: float = 1.0
    empty: float = 0.0
    remark: str = ""

    @property
    def fault(self) -> str:
        """Why this is not equal, "" where it is."""
        if self.crashed or self.refused:
            return f"crashed: {self.crashed}" if self.crashed else f"refused: {self.refused}"
        if not self.error <= self.limit:
            return f"differs by {self.error:.1e}: {self.worst}; first: {self.first or 'not known'}; {self.remark}"
        if self.unforeseen:
            return f"sends what is not predicted: {self.unforeseen}"
        return f"{100 * self.empty:.0f} % of gradients are exactly 0" if self.empty > FEW else ""


Judge = Callable[[str, Outcome], str]


@dataclass(frozen=True)
class Case:
    """``plans`` by world size; ``judge`` says what is wrong with a plan's outcome, "" for nothing."""

    name: str
    build: Build
    plans: Mapping[int, Mapping[str, Pins]]
    judge: Judge

    @property
    def pins(self) -> dict[str, Pins]:
        """Of every plan."""
        return {name: pins for plans in self.plans.values() for name, pins in plans.items()}

    def faults(self, found: Mapping[str, Outcome]) -> list[str]:
        """What is wrong, by plan; each must have come to something."""
        assert found.keys() == self.pins.keys()
        return [f"{plan}: {fault}" for plan, outcome in found.items() if (fault := self.judge(plan, outcome))]


def equal(*builds: Build, divided: float = DIVIDED) -> Iterator[Case]:
    """Equal under every plan, and tp divides most of the FLOPs."""

    def judge(plan: str, outcome: Outcome) -> str:
        few = "tp" in plan and outcome.divided < divided
        return outcome.fault or (f"divides {100 * outcome.divided:.0f} % of FLOPs" if few else "")

    yield from (Case(b.__name__, b, PLANS, judge) for b in builds)


def equal_or_refused(words: str, *builds: Build) -> Iterator[Case]:
    """Equal, or refused by the thing's name."""

    def judge(plan: str, outcome: Outcome) -> str:
        return "" if outcome.refused and re.search(words, outcome.refused) else outcome.fault

    yield from (Case(b.__name__, b, PLANS, judge) for b in builds)


def refused(words: str, *builds: Build) -> Iterator[Case]:
    """Refused by the thing's name in one line."""

    def judge(plan: str, outcome: Outcome) -> str:
        return _unlike(words, outcome)

    yield from (Case(b.__name__, b, PLANS, judge) for b in builds)


def equal_unsplit(words: str, *builds: Build) -> Iterator[Case]:
    """Equal where one micro-batch holds the whole batch; refused by name under dp and micro-batches."""
    plans = {ranks: {**WHOLE[ranks], **PARTS[ranks]} for ranks in WHOLE}

    def judge(plan: str, outcome: Outcome) -> str:
        parts = any(plan in PARTS[ranks] for ranks in PARTS)
        return _unlike(words, outcome) if parts else outcome.fault

    yield from (Case(b.__name__, b, plans, judge) for b in builds)


def _unlike(words: str, outcome: Outcome) -> str:
    if not outcome.refused:
        return outcome.fault or "accepted, and should be refused"
    if "\n" in outcome.refused.strip():
        return f"refused in more than one line: {outcome.refused}"
    return "" if re.search(words, outcome.refused) else f"refused in other words than {words}: {outcome.refused}"


def named(rows: Iterator[Case], *others: Iterator[Case]) -> dict[str, Case]:
    """Cases by name, each once."""
    found: dict[str, Case] = {}
    for case in (c for group in (rows, *others) for c in group):
        assert case.name not in found, case.name
        found[case.name] = case
    return found
