"""What a campaign tries: runs of a small model that something happens to, held against one that nothing happens to."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from tools.faults.disturbed_run import ROOT, Outcome, undisturbed
from tools.main import main as partitioner

MODEL = f"{ROOT / 'examples' / 'gpt.py'}:model"
SMALL = ("--set", "vocab=256", "hidden=64", "heads=4", "seq=64", "layers=4", "dropout=0.1")
PLACE = ("--cluster", "local-cpu", "--devices", "4", "--global-batch", "8", "--pin", "pp=2", "--pin", "dp=2")
RANKS, STEPS, SAVE_EVERY, KEEP, PATIENCE = 4, 60, 5, 3, 0.1
Run = Callable[[Sequence[str]], Outcome]
Tensors = Mapping[str, torch.Tensor]


@dataclass
class Campaign:
    """What was tried and what missed, in ``folder``; all chances come from ``draw``. Runs have ``steps``."""

    folder: Path
    draw: random.Random
    plan: Path
    steps: int = STEPS
    save_every: int = SAVE_EVERY
    seconds: float = 0.0  # of a run that nothing happens to
    losses: tuple[float, ...] = ()
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    tried: Counter[str] = field(default_factory=Counter)
    misses: list[str] = field(default_factory=list)
    longest: dict[str, float] = field(default_factory=dict)

    def words(self, folder: Path, *more: str) -> list[str]:
        """The command line, but for its head."""
        saved = ["--checkpoint", str(folder), "--save-every", str(self.save_every), "--keep", str(KEEP)]
        asked = ["--steps", str(self.steps), "--lr", "0.003", "--patience", str(PATIENCE)]
        return [str(self.plan), *asked, *saved, *more]

    def begin(self) -> None:
        """The run that nothing happens to."""
        folder, report = self.folder / "whole", self.folder / "whole.json"
        began = time.monotonic()
        done = undisturbed(self.words(folder, "--report", str(report)))
        self.seconds = time.monotonic() - began
        if done.status:
            raise SystemExit(f"the run that nothing happens to failed: {done.said}")
        self.losses = tuple(json.loads(report.read_text())["losses"])
        self.weights = self.exported(folder)

    def exported(self, folder: Path) -> dict[str, torch.Tensor]:
        """The weights of its newest checkpoint."""
        out = self.folder / "weights"
        shutil.rmtree(out, ignore_errors=True)
        if partitioner(["export", str(self.plan), str(folder), str(out)]):
            return {}
        return load_file(out / "model.safetensors")

    def miss(self, what: str, why: str, outcome: Outcome) -> None:
        """Note it, and show the end of what was said."""
        self.misses.append(f"{what}: {why}")
        sys.stderr.write(f"{what}: {why}\n{outcome.said[-3000:]}\n")

    def expect(self, kind: str, what: str, outcome: Outcome, words: str, limit: float) -> None:
        """That an outcome says ``words``, in its limit."""
        if outcome.seconds is None:
            return  # it had ended
        self.longest[kind] = max(self.longest.get(kind, 0.0), outcome.seconds)
        if outcome.status != 0 and not re.search(words, outcome.said):
            self.miss(what, f"it said nothing of {words}", outcome)
        if outcome.seconds > limit:
            self.miss(what, f"it took {outcome.seconds:.1f} s to end, more than {limit:g}", outcome)

    def resume(
        self, what: str, folder: Path, *more: str, run: Run = undisturbed, seen: Path | None = None,
        rounding: float = 0.0,
    ) -> Outcome:  # fmt: skip
        """To the end, which is that of the run that nothing happened to, but for ``rounding``.

        ``folder`` is its checkpoints', which this process sees as ``seen``; ``run`` runs the command.
        """
        report = self.folder / "resumed.json"
        report.unlink(missing_ok=True)
        done = run(self.words(folder, "--report", str(report), *more))
        if done.status:
            self.miss(what, "it does not go on", done)
            return done
        if not _near(self.exported(seen or folder), self.weights, rounding):
            self.miss(what, "its weights are not those of the run that nothing happened to", done)
        if report.exists():
            found = torch.tensor(json.loads(report.read_text())["losses"], dtype=torch.float64)
            wanted = torch.tensor(self.losses[len(self.losses) - len(found) :], dtype=torch.float64)
            if not _near({"losses": found}, {"losses": wanted}, rounding):
                self.miss(what, "its losses are not those of the run that nothing happened to", done)
        return done

    def fresh(self, kind: str) -> tuple[str, Path]:
        """The name of the next of its kind, and an empty folder."""
        self.tried[kind] += 1
        what = f"{kind} {self.tried[kind]}"
        return what, self.folder / what.replace(" ", "-")


def _near(found: Tensors, wanted: Tensors, rounding: float) -> bool:
    """Bit for bit, or relative to the largest of each."""
    if found.keys() != wanted.keys() or any(found[n].shape != w.shape for n, w in wanted.items()):
        return False
    return all(torch.equal(found[n], w) or _apart(found[n], w) <= rounding for n, w in wanted.items())


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())
