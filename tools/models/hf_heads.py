"""Heads of transformers models, found in transformers' own tables, and the example batch that each takes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from partitioner.errors import InputError

POSITIONS = "position_ids"  # a setting of ours, and the argument that it adds


def _tokens(config: Any, batch: int, length: int) -> Tensor:
    """Random tokens that are no special ones."""
    size = config.get_text_config().vocab_size
    special = [v for k, v in config.to_dict().items() if k.endswith("token_id") and v is not None]
    taken = {t for v in special for t in (v if isinstance(v, list) else [v])}
    free = torch.tensor([t for t in range(min(size, 65536)) if t not in taken] or [0])
    return free[torch.randint(0, len(free), (batch, length))]


def _labels(tokens: Tensor) -> Tensor:
    """The tokens, of which sample i does not ask its first i + 1: ignored positions, not the same number in each."""
    asked = torch.arange(tokens.shape[1])[None] > torch.arange(tokens.shape[0])[:, None] % max(tokens.shape[1] // 2, 1)
    return tokens.where(asked, -100)


def _text(config: Any, batch: int, length: int) -> dict[str, Tensor]:
    tokens = _tokens(config, batch, length)
    return {"input_ids": tokens, "labels": _labels(tokens)}


def _sequences(config: Any, batch: int, length: int) -> dict[str, Tensor]:
    return {"input_ids": _tokens(config, batch, length), "labels": _labels(_tokens(config, batch, length))}


def _image(config: Any, batch: int, length: int) -> dict[str, Tensor]:
    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    pixels = torch.randn(batch, config.num_channels, height, width)
    return {"pixel_values": pixels, "labels": torch.randint(0, config.num_labels, (batch,))}


def _speech(config: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Whisper's convention: log-mel frames, of which a stride of two makes the source positions."""
    frames = torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions)
    return {"input_features": frames, "labels": _labels(_tokens(config, batch, length))}


@dataclass(frozen=True)
class Head:
    """A task: transformers' own table of its classes, the batch that such a class takes, and whether it is text, whose
    length is for the user to choose."""

    table: str
    example: Callable[[Any, int, int], dict[str, Tensor]]
    is_text: bool = True

    def model(self, kind: type[Any]) -> type[nn.Module] | None:
        """The class of a configuration class, the first where there are several."""
        found = getattr(importlib.import_module("transformers.models.auto.modeling_auto"), self.table).get(kind, None)
        return found[0] if isinstance(found, tuple) else found

    def batch(self, config: Any, batch: int, length: int) -> dict[str, Tensor]:
        """An example batch; raises InputError when the configuration does not tell its input's shape."""
        try:
            return self.example(config, batch, length)
        except AttributeError as error:
            kind = type(config).__name__
            raise InputError(f"{kind} does not tell its input's shape ({error}); use file.py:function") from error


# A model with several heads gets the first of these.
HEADS = (
    Head("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING", _speech),
    Head("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", _sequences),
    Head("MODEL_FOR_MASKED_LM_MAPPING", _text),
    Head("MODEL_FOR_CAUSAL_LM_MAPPING", _text),
    Head("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", _image, is_text=False),
)


def find_head(spec: str, config: Any) -> tuple[Head, type[nn.Module]]:
    """The head that the configuration's ``architectures`` name, else the first that the model has, and its class."""
    found = [(head, model) for head in HEADS if (model := head.model(type(config))) is not None]
    if not found:
        raise InputError(f"{spec} has no causal, masked, seq2seq, speech or image head; use file.py:function")
    wanted = getattr(config, "architectures", None) or []
    return next(((head, model) for head, model in found if model.__name__ in wanted), found[0])


def packed(spec: str, model: type[nn.Module], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with positions that restart in the middle of every sample, elsewhere in each, as where documents are
    packed: of these transformers' masks make documents. Raises InputError where the model takes none."""
    if POSITIONS not in inspect.signature(model.forward).parameters or "input_ids" not in batch:
        raise InputError(f"--set {POSITIONS}: {model.__name__} of {spec} takes no such argument")
    samples, length = batch["input_ids"].shape
    first = (length // 3 + torch.arange(samples)[:, None]) % max(length, 1)
    places = torch.arange(length).expand(samples, length)
    return batch | {POSITIONS: places.where(places < first, places - first)}
