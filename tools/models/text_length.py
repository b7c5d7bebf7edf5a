"""How many tokens a sample of a transformers model has: as asked, or as its configuration and its embeddings allow."""

from __future__ import annotations

from typing import Any

from torch import nn

from partitioner.errors import InputError

LONGEST = 8192  # tokens that are taken unasked
FIELDS = (  # in which configurations say how long a text may be, the first that one has
    "max_position_embeddings", "n_positions", "max_target_positions", "max_decoder_position_embeddings", "max_seq_len",
    "max_sequence_length", "model_max_length", "seq_length",
)  # fmt: skip


def text_length(spec: str, config: Any, module: nn.Module, asked: int | None) -> int:
    """``asked`` tokens, else all that the model allows; raises InputError for more than it allows, and where what it
    allows is not known or is more than LONGEST."""
    most = _allowed(config, module)
    if asked is None:
        if most is None:
            raise InputError(f"say --seq: the configuration of {spec} does not tell how many tokens a sample has")
        if most > LONGEST:
            raise InputError(f"say --seq: the configuration of {spec} allows {most} tokens a sample")
        return most
    if most is not None and asked > most:
        wanted = asked + (_positions(config) or most) - most
        raise InputError(f"--seq {asked}: {spec} has {most} positions; give --set max_position_embeddings={wanted}")
    return asked


def _positions(config: Any) -> int | None:
    found = (getattr(part, field, None) for part in (config, config.get_text_config()) for field in FIELDS)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _allowed(config: Any, module: nn.Module) -> int | None:
    """A table of positions that has a padding row counts from behind it."""
    most = _positions(config)
    embeddings = getattr(module, "get_input_embeddings", None)
    tokens = embeddings() if embeddings is not None else None
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding) and m is not tokens]
    tables = [m for m in tables if m.num_embeddings == most]
    padded = [m.padding_idx + 1 for m in tables if m.padding_idx is not None]
    return most - max(padded) if most is not None and padded else most
