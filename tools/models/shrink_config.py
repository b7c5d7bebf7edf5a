"""A transformers configuration made small: the same architecture, few layers, narrow widths, the same kv-head ratio.

Fields are told apart by what their names say in all configurations (``num_hidden_layers``, ``n_layer`` and
``decoder_layers`` are depths), never by model. A width scales with the hidden size, a per-head width with the head's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

HEADS, HEAD_WIDTH, LAYERS, VOCABULARY, EXPERTS, PERIOD = 8, 8, 4, 256, 4, 6


@dataclass(frozen=True)
class Target:
    """What the small model is measured by: its depth, heads, widths as shares of the full ones, and text length."""

    layers: int
    heads: int
    width: Fraction
    head_width: Fraction
    head_share: Fraction
    seq: int


Rule = Callable[[int, Target, Mapping[str, Any]], int]

WIDTHS = (
    r"(.*_)?(hidden|intermediate|embedding|embed|ffn|proj|output|inner)_(size|dim)"
    r"|d_model|d_ff|dim|n_embd|n_inner|.*_rank"
)
POSITIONS = r"(max_|n_|original_max_)+(.*_)?(positions?|position_embeddings|seq_len|ctx)"

# The first pattern that matches a whole field name decides; a field that matches none keeps its value.
RULES: tuple[tuple[str, Rule], ...] = (
    (r"type_vocab_size", lambda value, to, config: value),
    (r"(.*_)?vocab_size", lambda value, to, config: min(value, VOCABULARY)),
    (r"((n|num|encoder|decoder)_)+(hidden_)?layers?", lambda value, to, config: to.layers),
    (r"(.*_)?(key_value|kv)_heads", lambda value, to, config: _divisor(to.heads, value * to.head_share)),
    (r"(.*_)?heads?", lambda value, to, config: to.heads),
    (r"(.*_)?(head_dim|rotary_dim)|d_kv", lambda value, to, config: _multiple(value * to.head_width, 2)),
    (WIDTHS, lambda value, to, config: _multiple(value * to.width, 8)),
    (r"(.*_)?experts_per_tok", lambda value, to, config: min(value, EXPERTS // 2)),
    (r"(.*_)?experts", lambda value, to, config: min(value, EXPERTS)),
    (r"(n|topk)_group", lambda value, to, config: 1),
    (r"max_source_positions", lambda value, to, config: min(value, to.seq)),
    (POSITIONS, lambda value, to, config: min(value, 2 * to.seq)),
    (r"(.*_)?(window|window_size|local_attention)", lambda value, to, config: _window(value, to.seq)),
    (r"image_size", lambda value, to, config: min(value, 4 * config.get("patch_size", value))),
)


def shrink(config: Mapping[str, Any], names: Mapping[str, str], given: Mapping[str, Any], seq: int) -> dict[str, Any]:
    """The fields to change, and their small values; ``given`` fields keep theirs and the rest follows them.

    ``config`` is the full configuration, ``names`` maps the common field names to its own, and ``given`` uses its own.
    """
    to = _target(config, names, given, seq)
    changes = {key: new for key, new in _small(config, to) if key not in given and new != config[key]}
    drops = {key: 0.0 for key, value in config.items() if is_drop(key, value) and value and key not in given}
    return changes | drops


def is_drop(key: str, value: object) -> bool:
    """Whether a field is a dropout probability (``resid_pdrop``, ``layerdrop``, ``attention_dropout``, ...)."""
    return "drop" in key and isinstance(value, float)


def _small(config: Mapping[str, Any], to: Target) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            rule = next((rule for pattern, rule in RULES if re.fullmatch(pattern, key)), None)
            if rule is not None:
                yield key, rule(value, to, config)


def _target(config: Mapping[str, Any], names: Mapping[str, str], given: Mapping[str, Any], seq: int) -> Target:
    hidden_key, heads_key = (names.get(key, key) for key in ("hidden_size", "num_attention_heads"))
    full_hidden, full_heads = _number(config, hidden_key), _number(config, heads_key)
    heads = _number(given, heads_key, min(full_heads, HEADS))
    width = Fraction(_number(given, hidden_key, heads * HEAD_WIDTH), full_hidden)
    share = Fraction(heads, full_heads)
    return Target(_depth(config), heads, width, width / share, share, seq)


def _number(fields: Mapping[str, Any], key: str, otherwise: int = HEADS * HEAD_WIDTH) -> int:
    value = fields.get(key)
    return value if isinstance(value, int) and value > 0 else otherwise


def _depth(config: Mapping[str, Any]) -> int:
    """Two layers a stack in an encoder-decoder, else four, or one whole period of the layer pattern."""
    if config.get("is_encoder_decoder"):
        return LAYERS // 2
    pattern = config.get("layer_types") or [None]
    period = next(p for p in range(1, len(pattern) + 1) if pattern[p:] == pattern[:-p])
    return period if LAYERS < period <= PERIOD else LAYERS


def _window(window: int, seq: int) -> int:
    """Shorter than the text, so that it still hides something."""
    return window if window < seq else max(seq // 4, 2)


def _multiple(value: Fraction, of: int) -> int:
    return max(1, round(value / of)) * of


def _divisor(heads: int, wanted: Fraction) -> int:
    return max(d for d in range(1, heads + 1) if heads % d == 0 and d <= max(wanted, 1))
