"""``partitioner generate``: reads prompts, starts the ranks, prints each answer as it comes."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from partitioner import Cluster, Plan
from partitioner.errors import InputError
from partitioner.searching.plan_answers import Asked
from runtime.generate.sampling import Sampling
from runtime.ranks import launch
from runtime.ranks.limits import START_SECONDS
from tools.generate.pieces import Pieces, before_stop
from tools.generate.rank import Job, Model
from tools.generate.text_coder import TextCoder, text_coder
from tools.plan.answers_plan import model_plan
from tools.screen import output
from tools.watch.telling import event_of

EACH_STEP = 60.0  # seconds that a step may take at the most, for the ranks to end when they are stopped


def generate_command(options: argparse.Namespace) -> int:
    """Continue the prompts; 1 where the ranks failed."""
    coder, sampling = text_coder(options.tokenizer), _sampling(options)
    texts = _prompts(options)
    prompts = [_tokens(options, coder, text) for text in texts]
    length = max(map(len, prompts)) + options.max_tokens
    with planned(options, length, options.max_tokens) as (plan, path):
        model = Model(
            plan=path, weights=whole(options.weights), checkpoint=whole(options.checkpoint),
            tokenizer=whole(options.tokenizer), rows=min(options.rows, len(prompts)), chunk=options.chunk,
            length=length, patience=options.patience,
        )  # fmt: skip
        job = Job(model, prompts, options.max_tokens, sampling, sorted(coder.ends), options.stop, not options.no_cache)
        tell_values(options, plan)
        screen = _Screen(coder, options.stop, streams=len(prompts) == 1 and not options.json)
        found = _run(job, plan.world, screen)
    if found is None:
        return 2 if screen.was_refused else 1
    rows = [
        {"prompt": text, "text": before_stop(coder.decode(answer["tokens"]), options.stop), **answer}
        for text, answer in zip(texts, found, strict=True)
    ]
    if options.json:
        options.document(json.dumps({"answers": rows}, indent=1) + "\n")
    elif not screen.streams:
        _print(rows)
    return 0


class _Screen:
    """What rank 0 writes: new tokens, shown as they come where there is one text."""

    def __init__(self, coder: TextCoder, stops: Sequence[str], streams: bool) -> None:
        self.pieces, self.ends = Pieces(coder.decode, stops), coder.ends
        self.streams, self.was_refused = streams, False
        self.answers: list[dict[str, Any]] | None = None

    def read(self, line: str) -> None:
        """A line of rank 0: an event, or what the user's code printed."""
        event = event_of(line, sys.stderr)
        if event is None:
            return
        if "answers" in event:
            self.answers = event["answers"]
            self._show(("" if self.pieces.stopped else self.pieces.rest()) + "\n")
        elif self.streams and event["token"] not in self.ends and not self.pieces.stopped:
            self._show(self.pieces.add(event["token"]))

    def _show(self, text: str) -> None:
        if self.streams:
            sys.stdout.write(text)
            sys.stdout.flush()


def tell_values(options: argparse.Namespace, plan: Plan) -> None:
    """Say what code is imported, and where no trained values are given."""
    sys.stderr.write(f"importing {plan.model['entry']}\n")
    if options.weights is None and options.checkpoint is None:
        sys.stderr.write("no --weights and no --checkpoint: the model answers as it is made\n")


def _run(job: Job, ranks: int, screen: _Screen) -> list[dict[str, Any]] | None:
    """The answers; None where a rank failed, which is said."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(asdict(job)))
        result = launch.local_module("tools.generate.rank", [str(path)], ranks, math.inf, screen.read, EACH_STEP,
                                     START_SECONDS * job.model.patience)  # fmt: skip
    if result.failure is not None:
        screen.was_refused = result.statuses[result.failure.rank or 0] == 2
        return None
    return screen.answers


@contextmanager
def planned(options: argparse.Namespace, length: int, new: int) -> Generator[tuple[Plan, str]]:
    """The plan file that is named, or one of a MODEL for texts of ``length`` tokens of which so many are new, written
    for the ranks to read."""
    if Path(options.target).suffix == ".json" and not options.target.startswith("hf:"):
        strange = {"--ranks": options.ranks, "--cluster": options.cluster, "--pin": options.pin, "--set": options.set}
        if given := next((name for name, value in strange.items() if value), None):
            raise InputError(f"{given} is of a MODEL: {options.target} is a plan, which says it")
        plan = Plan.load(options.target)
        if not plan.model.get("entry"):
            raise InputError("the plan names no model to load: make it with partitioner plan MODEL")
        yield plan, str(Path(options.target).resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        plan, path = _plan(options, length, new), str(Path(folder) / "plan.json")
        plan.save(path)
        yield plan, path


def _plan(options: argparse.Namespace, length: int, new: int) -> Plan:
    ranks = options.ranks or 1
    cluster = Cluster.load(options.cluster or "local-cpu").of_ranks(ranks)
    asked = Asked(options.rows * ranks, max(length - new, 1), new, options.chunk)
    return model_plan(options, cluster, asked, options.target)


def _sampling(options: argparse.Namespace) -> Sampling:
    for name in ("max_tokens", "rows", "chunk"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive, not {getattr(options, name)}")
    if not 0 < options.patience < math.inf:
        raise InputError(f"--patience must be positive, not {options.patience}")
    return Sampling(
        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        repetition_penalty=options.repetition_penalty, seed=options.seed,
    )  # fmt: skip


def _prompts(options: argparse.Namespace) -> list[str]:
    found = list(options.prompt)
    if options.prompts:
        path = Path(options.prompts)
        try:
            lines = [line for line in path.read_text().splitlines() if line.strip()]
            found += [json.loads(line)["prompt"] for line in lines] if path.suffix == ".jsonl" else lines
        except OSError as error:
            raise InputError(f"--prompts {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            words = 'each line must be an object like {"prompt": "..."}'
            raise InputError(f"--prompts {path}: {words}: {error}") from error
    if not found:
        raise InputError("nothing to continue: give --prompt TEXT, or --prompts FILE")
    return found


def _tokens(options: argparse.Namespace, coder: TextCoder, text: str) -> list[int]:
    if not options.chat:
        if options.system:
            raise InputError("--system is said before a dialogue: add --chat")
        return coder.prompt(text)
    before = [{"role": "system", "content": options.system}] if options.system else []
    return coder.chat([*before, {"role": "user", "content": text}])


def whole(path: str | None) -> str | None:
    """Wherever ranks are."""
    return None if path is None else str(Path(path).resolve())


def _print(rows: list[dict[str, Any]]) -> None:
    console = output()
    for row in rows:
        console.print(f"[bold]{row['prompt']!r}[/bold]" if console.is_terminal else repr(row["prompt"]))
        console.print(row["text"], markup=False)
        console.print(f"({len(row['tokens'])} tokens, {row['finish']})\n", style="dim")
