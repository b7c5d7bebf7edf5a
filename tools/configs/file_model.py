"""The model that a file is planned for: that of ``--model``, or a plain decoder of the file's sizes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace

from partitioner import Cluster, Graph
from partitioner.errors import InputError
from partitioner.precision import PRESETS, Precision
from tools.dialects.configuration import SIZES, Configuration, Reading
from tools.models import precision_option
from tools.models.entry_point import parse_settings
from tools.models.load import Source, load
from tools.models.traced import traced, with_values

PLAIN_MODEL = "plain:decoder"


class NotToldError(InputError):
    """Of a file that is not wrong: what a plan needs and it leaves out, or says and a plan can't hold."""


def with_options(found: Configuration, options: argparse.Namespace) -> Configuration:
    """A file's Configuration with what the options say instead."""
    return replace(found, global_batch=options.global_batch or found.global_batch, seq=options.seq or found.seq)


def settings_of(options: argparse.Namespace) -> dict[str, object]:
    """What ``--set`` gives; raises InputError."""
    return parse_settings(word for words in options.set for word in words)


def model_of(
    options: argparse.Namespace, reading: Reading, found: Configuration, cluster: Cluster, say: Callable[[str], None]
) -> tuple[Source, Graph]:
    """Loaded and traced; raises InputError, NotToldError for what no plan can be told."""
    refused = [*reading.refused, *([] if options.model else reading.unmodelled)]
    if refused:
        more = f" (and {len(refused) - 1} more: partitioner lint lists them)" if len(refused) > 1 else ""
        raise NotToldError(f"{refused[0]}{more}")
    settings = settings_of(options)
    spec, settings = (options.model, settings) if options.model else (PLAIN_MODEL, decoder_settings(found, settings))
    source = with_values(load(spec, settings, seq=found.seq, meta=True))
    return source, traced(source, say, precision=precision_of(found, cluster))


def decoder_settings(found: Configuration, given: Mapping[str, object]) -> dict[str, object]:
    """The plain decoder of a file's sizes, and those ``given`` beside; raises NotToldError where it has no such."""
    if (found.experts or 1) > 1:
        raise NotToldError(f"the file's model has {found.experts} experts, and the plain decoder none: give --model")
    sizes = {key: value for key, value in found.said.items() if key in SIZES and key not in ("experts", "head_width")}
    made = sizes | dict(given)
    if not {"layers", "hidden", "heads"} <= set(made):
        raise NotToldError("the file does not hold the sizes of the model: give --model")
    if found.hidden and found.heads and found.head_width not in (None, found.hidden // found.heads):
        words = f"heads of {found.head_width} are not those of {found.hidden} over {found.heads}"
        raise NotToldError(f"{words}, which the plain decoder has: give --model")
    if "vocab" not in made:
        raise NotToldError("the file does not say how large the vocabulary is: give --set vocab=N, or --model")
    return made


def precision_of(found: Configuration, cluster: Cluster) -> Precision:
    """That of the file, or what is usual on the cluster."""
    if found.precision is None:
        return precision_option.usual(cluster).of_framework(cluster.software.gradients)
    preset = PRESETS[found.precision]
    return preset.of_framework(cluster.software.gradients if found.gradients is None else found.gradients)
