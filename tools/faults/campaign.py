"""Runs of a small model that are killed, stopped and damaged, and go on: ``python -m tools.faults.campaign --help``.

Every run ends where one that nothing happened to ends, bit for bit; every cause is named; nothing waits beyond its
limit. A table counts, each miss is a line, and the exit status is 1 where there is one.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from runtime.checkpoint import step_folders
from tools.faults.disturbed_run import ROOT, Outcome, Running, asked_to_leave, disturbed, undisturbed
from tools.main import main as partitioner
from tools.screen import output, table

MODEL = f"{ROOT / 'examples' / 'gpt.py'}:model"
SMALL = ("--set", "vocab=256", "hidden=64", "heads=4", "seq=64", "layers=4", "dropout=0.1")
PLACE = ("--cluster", "local-cpu", "--devices", "4", "--global-batch", "8", "--pin", "pp=2", "--pin", "dp=2")
RANKS, STEPS, SAVE_EVERY, KEEP, PATIENCE = 4, 60, 5, 3, 0.1
KILLED_SECONDS = 15.0  # of settling, stopping the others, and Python's end
HUNG_SECONDS = 30.0 + 8.0 + KILLED_SECONDS  # the longest limit at this patience, the answers, the same again
LEFT_SECONDS = 60.0


@dataclass
class Campaign:
    """What was tried and what missed, in ``folder``; all chances come from ``draw``."""

    folder: Path
    draw: random.Random
    plan: Path
    seconds: float = 0.0  # of a run that nothing happens to
    losses: tuple[float, ...] = ()
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    tried: Counter[str] = field(default_factory=Counter)
    misses: list[str] = field(default_factory=list)
    longest: dict[str, float] = field(default_factory=dict)

    def words(self, folder: Path, report: Path | None = None) -> list[str]:
        """The command line, but for its head."""
        saved = ["--checkpoint", str(folder), "--save-every", str(SAVE_EVERY), "--keep", str(KEEP)]
        asked = ["--steps", str(STEPS), "--lr", "0.003", "--patience", str(PATIENCE)]
        return [str(self.plan), *asked, *saved, *(["--report", str(report)] if report else [])]

    def begin(self) -> None:
        """The run that nothing happens to."""
        folder, report = self.folder / "whole", self.folder / "whole.json"
        began = time.monotonic()
        done = undisturbed(self.words(folder, report))
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

    def resume(self, what: str, folder: Path) -> Outcome:
        """To the end, which is that of the run that nothing happened to."""
        report = self.folder / "resumed.json"
        report.unlink(missing_ok=True)
        done = undisturbed(self.words(folder, report))
        if done.status:
            self.miss(what, "it does not go on", done)
            return done
        found = self.exported(folder)
        if found.keys() != self.weights.keys() or any(not torch.equal(found[n], w) for n, w in self.weights.items()):
            self.miss(what, "its weights are not those of the run that nothing happened to", done)
        if report.exists():
            losses = tuple(json.loads(report.read_text())["losses"])
            if losses != self.losses[len(self.losses) - len(losses) :]:
                self.miss(what, "its losses are not those of the run that nothing happened to", done)
        return done

    def fresh(self, kind: str) -> tuple[str, Path]:
        """The name of the next of its kind, and an empty folder."""
        self.tried[kind] += 1
        what = f"{kind} {self.tried[kind]}"
        return what, self.folder / what.replace(" ", "-")


def kill(campaign: Campaign) -> None:
    """SIGKILL of any rank at any moment."""
    _signalled(campaign, signal.SIGKILL, "killed by SIGKILL", KILLED_SECONDS)


def stop(campaign: Campaign) -> None:
    """SIGSTOP of any rank at any moment."""
    _signalled(campaign, signal.SIGSTOP, "hung: .*: it does not answer, stopped by a signal", HUNG_SECONDS)


def _signalled(campaign: Campaign, number: signal.Signals, words: str, limit: float) -> None:
    """A rank drawn gets it at a moment drawn; the run says ``words`` of that rank, and goes on afterwards."""
    what, folder = campaign.fresh(number.name)
    rank, after = campaign.draw.randrange(RANKS), campaign.draw.uniform(0.0, campaign.seconds)
    outcome = disturbed(campaign.words(folder), after, rank, number)
    said = f"rank {rank} failed: {words}"
    campaign.expect(number.name, f"{what} of rank {rank} after {after:.1f} s", outcome, said, limit)
    campaign.resume(what, folder)


def leave(campaign: Campaign) -> None:
    """SIGTERM of the command at any moment."""
    what, folder = campaign.fresh("SIGTERM")
    after = campaign.draw.uniform(0.0, campaign.seconds)
    outcome = asked_to_leave(campaign.words(folder), after)
    if outcome.status != -signal.SIGTERM:  # else it had not begun: Python itself was starting
        campaign.expect("SIGTERM", f"{what} after {after:.1f} s", outcome, "stopped by SIGTERM as asked", LEFT_SECONDS)
    campaign.resume(what, folder)


def damage(campaign: Campaign) -> None:
    """A file of the newest checkpoint torn or with one bit turned, after a kill."""
    what, folder = campaign.fresh("damaged checkpoint")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(campaign.folder / "half", folder)
    newest = step_folders.found(folder)[0]
    path = campaign.draw.choice(sorted(newest.iterdir()))
    content = bytearray(path.read_bytes())
    if campaign.draw.random() < 0.5:
        del content[campaign.draw.randrange(len(content)) :]
    else:
        content[campaign.draw.randrange(len(content))] ^= 1 << campaign.draw.randrange(8)
    path.write_bytes(content)
    done = campaign.resume(what, folder)
    said = re.sub(r"\s+", " ", done.said)
    if f"{newest.name} is not a whole checkpoint ({path.name}" not in said:
        campaign.miss(what, f"nothing was said of {path.name}", done)


def half(campaign: Campaign) -> None:
    """A run that was killed after half its steps, once, for what is done to checkpoints."""
    folder = campaign.folder / "half"
    run = Running(campaign.words(folder))
    reached = step_folders.named(folder, STEPS // 2)
    run.wait_until(lambda _: reached.is_dir())
    for pid in run.ranks().values():
        subprocess.run(["kill", "-9", str(pid)], check=False)
    run.end()


KINDS: dict[str, tuple[Callable[[Campaign], None], int, str]] = {
    "kills": (kill, 40, "SIGKILL of a rank"),
    "stops": (stop, 10, "SIGSTOP of a rank"),
    "leaves": (leave, 5, "SIGTERM of the command"),
    "damages": (damage, 20, "torn or flipped checkpoints"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run them all and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.faults.campaign", description=__doc__)
    for name, (_, many, words) in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=many, metavar="N", help=f"{words}; default: {many}")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        campaign = Campaign(Path(place), random.Random(options.seed), Path(place) / "plan.json")
        if partitioner(["plan", MODEL, *SMALL, *PLACE, "-o", str(campaign.plan)]):
            return 1
        campaign.begin()
        if options.damages:
            half(campaign)
        for name, (act, _, _) in KINDS.items():
            for _ in range(getattr(options, name)):
                act(campaign)
    missed = Counter(kind for kind in campaign.tried for text in campaign.misses if text.startswith(kind))
    rows = [
        [kind, str(many), str(missed[kind]), f"{campaign.longest[kind]:.1f} s" if kind in campaign.longest else ""]
        for kind, many in campaign.tried.items()
    ]
    title = f"runs of {STEPS} steps on {RANKS} ranks, {campaign.seconds:.0f} s undisturbed"
    output().print(table(title, ("", "tried", "missed", "longest to its end"), rows))
    for text in campaign.misses:
        output().print(text, markup=False, highlight=False)
    return 1 if campaign.misses else 0


if __name__ == "__main__":
    sys.exit(main())
