"""``partitioner plan MODEL --for latency | throughput``: a plan for answers instead of training."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from partitioner import Cluster, Graph, Plan, trace
from partitioner.errors import InputError
from partitioner.generating.lengths import answering, lengths, optional_inputs
from partitioner.searching.plan_answers import Asked, plan_answers
from tools.models import precision_option
from tools.models.entry_point import parse, parse_settings
from tools.models.load import load
from tools.plan.arguments import THROUGHPUT
from tools.plan.edits_as_pins import read_pins
from tools.screen import status

PROMPT, ANSWER, CHUNK = 512, 128, 256


def answers_plan(options: argparse.Namespace) -> Plan:
    """As the options of ``partitioner plan`` ask."""
    if options.framework == THROUGHPUT and options.global_batch is not None:
        raise InputError("--for throughput looks for the texts at once itself: leave out --global-batch")
    if options.plan_only:
        raise InputError("--plan-only is of plans for training: leave it out")
    cluster = Cluster.load(options.cluster, options.nodes or 1, options.devices)
    asked = Asked(
        options.global_batch, options.prompt or PROMPT, options.answer or ANSWER,
        min(options.chunk or CHUNK, options.prompt or PROMPT),
    )  # fmt: skip
    return model_plan(options, cluster, asked, options.model, options.seq)


def model_plan(
    options: argparse.Namespace, cluster: Cluster, asked: Asked, entry: str, seq: int | None = None
) -> Plan:
    """Of the model that ``entry`` and the options' settings load, on meta."""
    settings = parse_settings(word for words in options.set for word in words)
    with status(f"planning {entry}") as say:
        source = load(entry, settings, seq=seq or _length(entry, asked), meta=True)
        precision = precision_option.asked(options, precision_option.usual(cluster))

        def traced(batch: Mapping[str, Any]) -> Graph:
            return trace(source.module, batch, say, compare=False, precision=precision)

        with answering(source.module):
            found = lengths(source.batch, asked.length, traced, optional_inputs(source.module))
        model = {"entry": entry, "settings": source.settings, "seq": source.seq}
        return plan_answers(found, cluster, asked, read_pins(options.pin), model, say)


def _length(entry: str, asked: Asked) -> int | None:
    """Of the example, where a model's function does not make it."""
    return None if parse(entry).kind == "file" else asked.length
