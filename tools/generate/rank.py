"""One rank of ``partitioner generate``: loads the model that answers, and tells each new token, on rank 0."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from partitioner import Plan
from partitioner.errors import InputError
from runtime.generate.answering import Answering, answering
from runtime.generate.generate import generate
from runtime.generate.requests import Continued
from runtime.generate.sampling import Sampling
from runtime.ranks.process_group import finish_ranks, is_first
from runtime.ranks.watchdog import answer_stack_signal
from runtime.train.answer_programs import AnswerSizes
from tools.generate.text_coder import text_coder
from tools.models.load import load
from tools.screen import error_line
from tools.watch.telling import MARK


@dataclass(frozen=True)
class Model:
    """``plan``: its file. ``weights`` or ``checkpoint``: where the values are, None: the module's own. ``rows`` texts
    at once of a data rank, of up to ``length`` positions, prompts read ``chunk`` tokens a call."""

    plan: str
    weights: str | None
    checkpoint: str | None
    tokenizer: str | None
    rows: int
    chunk: int
    length: int
    patience: float


@dataclass(frozen=True)
class Job:
    """``prompts`` as tokens, each continued by ``most``; ``stops``: texts that end an answer, as tokens of ``ends``
    do."""

    model: Model
    prompts: list[list[int]]
    most: int
    sampling: Sampling
    ends: list[int]
    stops: list[str]
    cache: bool = True


def loaded(model: Model, cache: bool = True) -> Answering:
    """The model as it answers on this rank. Raises InputError."""
    plan = Plan.load(model.plan)
    has_values = model.weights is not None or model.checkpoint is not None
    source = load(plan.model["entry"], plan.model["settings"], seq=plan.model.get("seq"), meta=has_values)
    sizes = AnswerSizes(model.length, model.rows, min(model.chunk, model.length))
    return answering(
        source.module, source.batch, plan, weights=model.weights, checkpoint=model.checkpoint, sizes=sizes,
        cache=cache, patience=model.patience,
    )  # fmt: skip


def main(job: Job) -> None:
    """Continue all prompts; rank 0 tells of each token, and in the end of all answers."""
    answer_stack_signal()
    model = loaded(job.model, job.cache)
    given: dict[str, Any] = {"prompts": job.prompts}
    names = model.answers.sources(job.model.length) if job.cache else ()
    if len(names) > 1:
        raise InputError(f"a prompt is one source, the model is given {', '.join(names)}")
    for name in names:
        given = {"sources": [{name: torch.tensor(prompt)} for prompt in job.prompts]}
    stops = text_coder(job.model.tokenizer).stops(job.stops)
    found = generate(
        model, **given, most=job.most, sampling=job.sampling, ends=job.ends, stops=stops, rows=job.model.rows,
        chunk=job.model.chunk, cache=job.cache, tell=_tell if is_first() else None,
    )  # fmt: skip
    if is_first():
        _write({"answers": [asdict(answer) for answer in found]})
    finish_ranks()


def _tell(text: Continued) -> None:
    _write({"text": text.request.number, "token": text.tokens[-1]})


def _write(event: dict[str, Any]) -> None:
    """To the process that started this one."""
    sys.stdout.write(MARK + json.dumps(event) + "\n")
    sys.stdout.flush()


def job_of(text: str) -> Job:
    """As the command writes it."""
    given = json.loads(text)
    return Job(**given | {"model": Model(**given["model"]), "sampling": Sampling(**given["sampling"])})


if __name__ == "__main__":
    try:
        main(job_of(Path(sys.argv[1]).read_text()))
    except InputError as error:
        error_line(str(error))
        sys.exit(2)
