"""One rank of ``tools.bench.generation``: the same prompts continued by each side in turn, the first rank's and all."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partitioner.graph.step_inputs import is_kept
from runtime.generate.answering import Answering, answering
from runtime.generate.generate import CHUNK, decoder_of, generate
from runtime.measure.step_timing import timed
from runtime.ranks.process_group import announced_rank, finish_ranks, is_first
from runtime.state.shard_pieces import part_of
from runtime.train.answer_programs import AnswerSizes
from tools.models.load import Source, load

OURS, ALONE, THEIRS = "ours", "one rank of ours", "transformers"
SPEC = "hf:llama"
Tokens = list[list[int]]
Side = Callable[[], Tokens]


@dataclass(frozen=True)
class Job:
    """``plan`` of all ranks, ``alone`` of one beside them, None where all are one; ``texts`` prompts of so many tokens
    as ``prompt`` says are continued by ``new``, ``warmup`` times and then ``rounds`` times that count."""

    settings: dict[str, object]
    plan: str
    alone: str | None
    texts: int
    prompt: int
    new: int
    warmup: int
    rounds: int
    output: str


@dataclass(frozen=True)
class Difference:
    """The first token of a text that is another one: of text ``text`` the ``token``-th new one; ``apart``: how far
    apart the two have their logits in the module that is given the whole text before it."""

    text: int
    token: int
    ours: int
    theirs: int
    apart: float


@dataclass(frozen=True)
class Timed:
    """``seconds`` of each side's calls; where a side of ours makes ``other`` tokens than transformers; ``share``: of
    all parameters what the first rank holds."""

    seconds: dict[str, list[float]]
    other: dict[str, Difference | None]
    share: float

    @staticmethod
    def load(path: Path) -> Timed:
        """What the first rank has written."""
        given = json.loads(path.read_text())
        other = {side: row and Difference(**row) for side, row in given["other"].items()}
        return Timed(**given | {"other": other})


def main(job: Job) -> None:
    """Continue the prompts, each side in turn, and write the result from rank 0."""
    torch.set_num_threads(1)
    source = load(SPEC, job.settings, seq=job.prompt)
    module: Any = source.module.eval()
    module.generation_config.eos_token_id = None
    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(module.config.vocab_size, (job.texts, job.prompt), generator=draw)
    sizes = AnswerSizes(job.prompt + job.new, job.texts, min(CHUNK, job.prompt + job.new))
    models = _models(job, source, sizes)
    sides: dict[str, Side] = {side: partial(ours, model, prompts, job.new) for side, model in models.items()}
    if is_first():
        sides[THEIRS] = partial(theirs, module, prompts, job.new)
    seconds, made = _in_turn(sides, [OURS, THEIRS, *([ALONE] if job.alone else [])], job.warmup + job.rounds)
    if is_first():
        other = {side: difference(module, prompts, made[side], made[THEIRS]) for side in models}
        kept = {side: row[job.warmup :] for side, row in seconds.items()}
        Path(job.output).write_text(json.dumps(asdict(Timed(kept, other, held_share(models[OURS], sizes)))))
    finish_ranks()


def _models(job: Job, source: Source, sizes: AnswerSizes) -> dict[str, Answering]:
    """Of all ranks; on the first also the one of one rank, made before it meets the others."""
    found = dict[str, Answering]()
    if job.alone is not None and announced_rank() == 0:
        with _as_the_only_rank():
            found[ALONE] = answering(source.module, source.batch, job.alone, sizes=sizes)
    return found | {OURS: answering(source.module, source.batch, job.plan, sizes=sizes)}


def _in_turn(
    sides: Mapping[str, Side], order: list[str], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Tokens]]:
    """Seconds of each side's calls, and what the last one made; a rank without a side waits for the others."""
    seconds: dict[str, list[float]] = {side: [] for side in order}
    made = dict[str, Tokens]()

    def run(side: str) -> None:
        if side in sides:
            made[side] = sides[side]()

    for n in range(rounds):
        for side in order if n % 2 else order[::-1]:
            seconds[side] += timed(lambda _, side=side: run(side), 1)
    return seconds, made


def ours(model: Answering, prompts: torch.Tensor, new: int) -> Tokens:
    """The likeliest tokens, all texts at once."""
    return [list(answer.tokens) for answer in generate(model, prompts.tolist(), most=new, rows=len(prompts))]


@torch.no_grad()
def theirs(module: Any, prompts: torch.Tensor, new: int) -> Tokens:
    """The same of transformers."""
    made = module.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, do_sample=False,
        cache_implementation="static",
    )  # fmt: skip
    return made[:, prompts.shape[1] :].tolist()


@torch.no_grad()
def difference(
    module: nn.Module, prompts: torch.Tensor, ours: Sequence[list[int]], theirs: Sequence[list[int]]
) -> Difference | None:
    """Where the first text that differs does so first."""
    for text, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        for n, (a, b) in enumerate(zip(own, other, strict=True)):
            if a != b:
                before = torch.cat([prompts[text], torch.tensor(own[:n], dtype=torch.int64)])[None]
                logits = module(input_ids=before).logits[0, -1]
                return Difference(text, n, a, b, float((logits[a] - logits[b]).abs()))
    return None


def held_share(model: Answering, sizes: AnswerSizes) -> float:
    """Of all parameters what this rank holds, as the Program that answers divides them."""
    program = decoder_of(model, sizes).programs.one
    rows = [p for name, p in program.parameters.items() if not is_kept(name)]
    held = sum(math.prod(part_of(program, p, model.groups.coordinates).shape) for p in rows)
    return held / sum(math.prod(p.shape) for p in rows)


@contextmanager
def _as_the_only_rank() -> Generator[None]:
    """What is started inside meets no other."""
    world = os.environ.pop("WORLD_SIZE")
    try:
        yield
    finally:
        os.environ["WORLD_SIZE"] = world


if __name__ == "__main__":
    main(Job(**json.loads(Path(sys.argv[1]).read_text())))
