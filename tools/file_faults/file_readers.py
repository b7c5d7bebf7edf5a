"""What reads plans, clusters and reports, given one broken file: commands in this process, and what each made of it.

A file that a command is to write is there before, with bytes that stay where it fails.
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import tomllib
import xml.etree.ElementTree
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from partitioner import Plan
from partitioner.cluster import Cluster
from partitioner.hardware.parts import presets
from partitioner.schedule.tables import plainest
from runtime.report import Report
from tools.calibrate.from_report import cluster_toml
from tools.file_faults.file_mutations import HUGE, LONG, Mutant, as_json, as_toml, mutant
from tools.file_faults.heard import FIRST_SECONDS, Heard, hear, verdict

MODEL = f"{Path(__file__).parents[2] / 'examples' / 'gpt.py'}:model"
SMALL = ("--set", "vocab=16", "hidden=8", "heads=2", "seq=4", "layers=4")
PLANS: tuple[tuple[str, ...], ...] = (
    ("--pin", "tp=2", "--pin", "pp=2"), ("--pin", "dp=4", "--pin", "zero=3", "--pin", "zero_group=2"),
    ("--pin", "pp=2", "--pin", f"schedule={plainest(2)}", "--pin", "recompute=full", "--precision", "bf16"),
)  # fmt: skip
BEFORE = "what was there before\n"
HARMFUL = "import pathlib\npathlib.Path({!r}).touch()\ndef model(): pass\n"


@dataclass(frozen=True)
class Place:
    """Where originals lie, and a broken file and what is written of it; ``mark`` is there once something ran."""

    folder: Path

    @property
    def mark(self) -> Path:
        """Made by what is never to run."""
        return self.folder / "ran"

    @property
    def harm(self) -> str:
        """An entry point that makes it."""
        return f"{self.folder / 'harm.py'}:model"

    def target(self, name: str) -> Path:
        """A file that is there before."""
        path = self.folder / "targets" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(BEFORE)
        return path

    def originals(self, kind: str) -> list[Path]:
        """The whole files of a kind."""
        return sorted((self.folder / kind).iterdir())


def prepare(place: Place) -> None:
    """Three plans, a report of each, and the clusters that are known."""
    (place.folder / "harm.py").write_text(HARMFUL.format(str(place.mark)))
    for kind in ("plan", "cluster", "report"):
        (place.folder / kind).mkdir()
    for n, words in enumerate(PLANS):
        path = place.folder / "plan" / f"{n}.json"
        asked = ["--cluster", "local-cpu", "--global-batch", "8", *words, "-o", str(path)]
        made = hear(["plan", MODEL, *SMALL, *asked], FIRST_SECONDS)
        if made.status != 0:
            raise SystemExit(f"no plan to break: {made.err}{made.raised}")
        _report(Plan.load(path)).save(place.folder / "report" / f"{n}.json")
    for name in presets():
        text = cluster_toml(Cluster.load(name), "as it is known")
        (place.folder / "cluster" / f"{name}.toml").write_text(text)


def _report(plan: Plan) -> Report:
    cost = plan.cost
    measured = {"compute": 1.5 * cost.compute_seconds, "pipeline": cost.bubble_seconds, "optimizer": 1e-3}
    asked = plan.asked
    return Report(
        asked, plan.decisions, cost, plan.world, 3, (3.0, 2.5, 2.0), 2.25, 0.25, 2 * cost.peak_bytes, measured,
        (0.1, 0.2, 0.3), "cpu", "text", {"ran": 2},
    )  # fmt: skip


Verdicts = list[tuple[str, str, str]]  # of each reader: its command, the verdict, what shows it


def broken(place: Place, kind: str, draw: random.Random) -> tuple[Path, Mutant, Path]:
    """A broken file of a kind, what was done to it, and the one that it was."""
    source = draw.choice(place.originals(kind))
    text = source.read_text()
    tree = tomllib.loads(text) if kind == "cluster" else json.loads(text)
    made = mutant(tree, as_toml if kind == "cluster" else as_json, draw, place.harm)
    path = place.folder / f"broken{source.suffix}"
    path.write_bytes(made.content)
    return path, made, source


def read(place: Place, kind: str, path: Path, made: Mutant, source: Path, draw: random.Random) -> Verdicts:
    """What each reader of a kind makes of the broken file."""
    names = {str(path), *_keys(source), *(str(part) for part in made.place)}
    run = _Running(place, names)
    _READ[kind](run, path, made, source, draw)
    return run.verdicts


def _keys(path: Path) -> set[str]:
    """The words that name its fields."""
    return set(re.findall(r"\w{4,}", " ".join(re.findall(r'"?(\w+)"?\s*[:=]|^\[.*\]', path.read_text()))))


class _Running:
    """Commands one after the other, and the verdicts of them."""

    def __init__(self, place: Place, names: set[str]) -> None:
        self.place, self.names, self.verdicts = place, names, list[tuple[str, str, str]]()

    def __call__(self, *words: object, targets: Iterable[Path] = (), imports: bool = False) -> Heard:
        """Also whether what it was to write is as it was where it failed, and legal where not; whether anything ran."""
        texts = [str(word) for word in words]
        found = hear(texts)
        found = replace(found, out="") if "--program" in texts else found  # code, in which None is a word
        name = " ".join(word for word in texts if "/" not in word)
        word, why = verdict(found, self.names)
        for path in targets:
            if found.status != 0 and path.read_text() != BEFORE:
                word, why = "overwritten", f"{path.name} although {found.lines[:1] or found.raised}"
            elif found.status == 0 and (wrong := _illegal(path)):
                word, why = "nonsense", f"{path.name}: {wrong}"
        if self.place.mark.exists():
            self.place.mark.unlink()
            word, why = ("executed", "a mark was made") if not imports else (word, why)
        self.verdicts.append((name, word, why))
        return found


def _illegal(path: Path) -> str:
    """What is wrong with a file that was written."""
    text = path.read_text()
    if path.suffix == ".svg":
        try:
            xml.etree.ElementTree.fromstring(text)
        except xml.etree.ElementTree.ParseError as error:
            return str(error)
    if path.suffix == ".json":
        return _no_timeline(json.loads(text, parse_constant=lambda name: name))
    if path.suffix == ".toml":
        Cluster.load(path)
    return "" if text != BEFORE else "it was not written"


def _no_timeline(found: Any) -> str:
    rows = found["traceEvents"] if isinstance(found, dict) and "traceEvents" in found else found
    for row in rows if isinstance(rows, list) else ():
        for key in ("ts", "dur"):
            if not isinstance(value := row.get(key, 0), int | float) or not 0 <= value < math.inf:
                return f"{key} {value} of {row.get('name')}"
    return ""


def _plan(run: _Running, path: Path, made: Mutant, source: Path, draw: random.Random) -> None:
    place = run.place
    shown = run("show", path)
    run("show", path, "--json")
    run("diff", path, source)
    run("compare", path, source)
    files = [place.target(f"shown.{ending}") for ending in ("svg", "json", "html")]
    run("show", path, "--svg", files[0], "--trace", files[1], "--html", files[2], targets=files)
    if shown.status == 0:
        run("show", path, "--block", "blocks.0")
    if draw.random() < 0.25:
        page = place.target("compared.html")
        run("compare", path, source, "--html", page, targets=[page])
    if not _asks_for_the_unheard(made):
        page, kind = place.target("edited.json"), draw.choice(("edit", "lower", "verify"))
        if kind == "edit":
            run("plan", "--edit", path, "-o", page, targets=[page], imports=True)
        elif kind == "lower":
            run("show", path, "--program", imports=True)
        else:
            run("verify", path, "--dry-run", imports=True)


def _asks_for_the_unheard(made: Mutant) -> bool:
    """Settings are the model's own, and so is what it makes of a million layers."""
    return made.place[:3] == ("asked", "model", "settings") and (made.value in HUGE or len(str(made.value)) >= LONG)


def _cluster(run: _Running, path: Path, made: Mutant, source: Path, draw: random.Random) -> None:
    target = run.place.target("planned.json")
    asked = ("--devices", "2", "--global-batch", "4", "-o", target)
    run("plan", MODEL, *SMALL, "--cluster", path, *asked, targets=[target])


def _ran(run: _Running, path: Path, made: Mutant, source: Path, draw: random.Random) -> None:
    plan, page, target = source.parents[1] / "plan" / source.name, run.place.target("compared.html"), "corrected.toml"
    run("compare", plan, path)
    run("compare", path)
    if draw.random() < 0.25:
        run("compare", plan, path, "--html", page, targets=[page])
    corrected = run.place.target(target)
    run("calibrate", "--from", path, "-o", corrected, targets=[corrected])


_READ: dict[str, Callable[[_Running, Path, Mutant, Path, random.Random], None]] = {
    "plan": _plan, "cluster": _cluster, "report": _ran,
}  # fmt: skip


def tidy(place: Place) -> None:
    """Nothing of the last file is there for the next."""
    shutil.rmtree(place.folder / "targets", ignore_errors=True)


