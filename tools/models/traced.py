"""A model loaded and traced for a command; a transformers type whose default can't even run plainly is told as such."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from partitioner import Cluster, Graph, trace
from partitioner.comparing.capture_check import MOST_PARAMETERS
from partitioner.errors import InputError
from partitioner.precision import OWN, Precision
from tools.models import precision_option
from tools.models.entry_point import one_line, parse, parse_settings
from tools.models.load import Source, load, refused


def asked_graph(
    options: argparse.Namespace, cluster: Cluster, say: Callable[[str], None] = lambda text: None
) -> tuple[Graph, dict[str, object]]:
    """MODEL as the options ask for it, traced for plans on ``cluster``; and how it is loaded again, for a plan file."""
    settings = parse_settings(word for words in options.set for word in words)
    source = with_values(load(options.model, settings, seq=options.seq, meta=True))
    precision = precision_option.asked(options, precision_option.usual(cluster))
    precision = precision.of_framework(cluster.software.gradients)
    graph = traced(source, say, global_batch=options.global_batch, precision=precision)
    return graph, {"entry": options.model, "settings": source.settings, "seq": source.seq}


def with_values(source: Source) -> Source:
    """A model on meta loaded again with values, where it is so small that ``trace`` compares it with its graph."""
    if sum(p.numel() for p in source.module.parameters()) > MOST_PARAMETERS:
        return source
    return load(source.spec, source.settings, seq=source.seq, batch=source.batch_size)


def traced(
    source: Source, say: Callable[[str], None] = lambda text: None, compare: bool = True,
    global_batch: int | None = None, precision: Precision = OWN,
) -> Graph:  # fmt: skip
    """The graph of the model, as ``trace`` makes it; raises InputError."""
    try:
        return trace(source.module, source.batch, say, compare, global_batch, precision)
    except InputError as error:
        entry = parse(source.spec)
        own = _own_error(source.spec) if entry.kind == "hf" and entry.path is None else None
        if own is not None and one_line(own) in str(error):
            raise InputError(refused(source.spec, own)) from own
        raise


def _own_error(spec: str) -> Exception | None:
    """What a small model of the type's default raises when it is run plainly."""
    try:
        small = load(spec, shrink=True, batch=1)
        small.module(**small.batch)
    except InputError:
        return None
    except Exception as error:  # whatever transformers' code raises
        return error
    return None
