"""Plans, clusters, reports and checkpoints broken by chance, each given to what reads it: is what is wrong told?

python -m tools.file_faults.mutated_files --files 2000 --seed 0      exit status 1 where one is handled wrongly
python -m tools.file_faults.mutated_files --seed 0 --only 17         that one alone, with what its readers said

Every file has a clear error, in one line and naming the file or the field, or is accepted and what is made of it is
legal. Nothing raises, hangs or runs, and what a failing command was to write is as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tools.file_faults.checkpoint_mutations import SPEC, Runs, tried
from tools.file_faults.file_readers import MODEL, Place, broken, prepare, read, tidy
from tools.file_faults.heard import SECONDS, hear
from tools.screen import output, table

KINDS = {"plan": 9, "cluster": 4, "report": 4, "checkpoint": 3}  # of twenty
RIGHT = ("clear", "accepted")
WRONG = (
    "traceback", "hang", "executed", "overwritten", "unclear", "nonsense", "not passed over", "untold", "crash",
)  # fmt: skip
MEMORY_BYTES = 12 * 2**30
SLACK_SECONDS = 15.0 + 8 * SECONDS  # of all readers of a file, and of starting


@dataclass(frozen=True)
class Result:
    """Of a file: its number, its kind, what was done to it, the verdict and what shows it."""

    number: int
    kind: str
    words: str
    verdict: str
    shown: str

    @property
    def is_right(self) -> bool:
        """Whether it was handled as it has to be."""
        return self.verdict in RIGHT


class Files:
    """The files of a seed, by number, made from originals that lie in ``folder``."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.place, self.seed = Place(folder), seed
        prepare(self.place)
        plan = folder / "checkpointed.json"
        sets = [f"{key}={value}" for key, value in SPEC]
        words = ["plan", MODEL, "--set", *sets, "--cluster", "local-cpu", "--devices", "1", "--global-batch", "2"]
        if hear([*words, "-o", str(plan)]).status != 0:
            raise SystemExit("no plan for the checkpoints")
        self._runs = Runs.of(folder / "checkpoint", MODEL, plan)

    def tried(self, number: int) -> tuple[Result, list[tuple[str, str, str]]]:
        """The file of this number, and the verdict on each of its readers."""
        draw = random.Random(f"{self.seed}/{number}")
        (kind,) = draw.choices([*KINDS], [*KINDS.values()])
        if kind == "checkpoint":
            words, verdict, shown = tried(self._runs, self.place.folder / "broken", self.place.mark, draw)
            return Result(number, kind, words, verdict, shown), [("load", verdict, shown)]
        path, made, source = broken(self.place, kind, draw)
        words = f"{source.name}: {'.'.join(map(str, made.place))} {made.words}"
        verdicts = read(self.place, kind, path, made, source, draw)
        tidy(self.place)
        order = (*WRONG, *RIGHT)
        name, verdict, shown = min(verdicts, key=lambda row: order.index(row[1]))
        return Result(number, kind, words, verdict, f"{name}: {shown}"), verdicts


def results(seed: int, numbers: Iterable[int]) -> Iterator[Result]:
    """In this process."""
    with tempfile.TemporaryDirectory() as name:
        files = Files(Path(name), seed)
        for number in numbers:
            yield files.tried(number)[0]


def watched(seed: int, numbers: Sequence[int]) -> Iterator[Result]:
    """In a process of its own, and in another where that one ends or no longer answers."""
    left = list(numbers)
    while left:
        words = [sys.executable, "-m", "tools.file_faults.mutated_files", "--seed", str(seed), "--worker"]
        worker = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(left))
        worker.stdin.close()
        if not worker.stdout.readline():
            raise SystemExit("the originals could not be made")
        while left:
            ready, _, _ = select.select([worker.stdout], [], [], SLACK_SECONDS)
            line = worker.stdout.readline() if ready else ""
            if not line:
                yield Result(left.pop(0), "?", "", "crash" if ready else "hang", f"the process: {worker.poll()}")
                break
            left.pop(0)
            yield Result(**json.loads(line))
        worker.kill()
        worker.wait()


def _work(seed: int) -> None:
    """A result a line, as it is found; no more memory than a machine has."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    numbers, mine = json.load(sys.stdin), os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryDirectory() as name:
        files = Files(Path(name), seed)
        mine.write("ready\n")
        for number in numbers:
            mine.flush()
            mine.write(json.dumps(asdict(files.tried(number)[0])) + "\n")
            mine.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Count by kind and verdict, and print what was handled wrongly."""
    parser = argparse.ArgumentParser(prog="python -m tools.file_faults.mutated_files", description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="the file of this number alone, and all that was said")
    parser.add_argument("--list", metavar="VERDICT", help="also print the files of this verdict")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        _work(options.seed)
        return 0
    if options.only is not None:
        return _one(options.seed, options.only)
    found = list[Result]()
    for row in watched(options.seed, range(options.files)):
        found.append(row)
        if not row.is_right or row.verdict == options.list:
            sys.stdout.write(f"--seed {options.seed} --only {row.number}: {row.kind}, {row.words}: "
                             f"{row.verdict}, {row.shown}\n")  # fmt: skip
            sys.stdout.flush()
    output().print(counted(found))
    return 0 if all(row.is_right for row in found) else 1


def _one(seed: int, number: int) -> int:
    with tempfile.TemporaryDirectory() as name:
        result, verdicts = Files(Path(name), seed).tried(number)
    sys.stdout.write(f"{result.kind}, {result.words}\n" + "".join(f"  {a}: {b}, {c}\n" for a, b, c in verdicts))
    return 0 if result.is_right else 1


def counted(found: Sequence[Result]) -> object:
    """The table."""
    many = Counter((row.kind, row.verdict) for row in found)
    kinds = [kind for kind in (*KINDS, "?") if any(row.kind == kind for row in found)]
    columns = [*RIGHT, *(word for word in WRONG if any(row.verdict == word for row in found))]
    rows = [
        [kind, *(str(many[kind, word] or "") for word in columns), str(sum(row.kind == kind for row in found))]
        for kind in kinds
    ]
    wrong = sum(not row.is_right for row in found)
    title = f"{len(found)} files, {wrong} handled wrongly"
    return table(title, ("", *columns, "all"), rows)


if __name__ == "__main__":
    raise SystemExit(main())
