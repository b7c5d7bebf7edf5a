"""The loss in what a model returns: a scalar by itself, or the one scalar among its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from partitioner.errors import InputError


def loss_of(output: Any, model: str = "the model") -> torch.Tensor:
    """The loss: the output itself, its ``loss``, or the only floating-point scalar in nested outputs.

    Among several scalars the outermost one named ``loss`` wins. Raises InputError naming what was returned otherwise.
    """
    if not isinstance(output, torch.Tensor):
        scalars = {name: t for name, t in _tensors(output) if t.dim() == 0 and t.is_floating_point()}
        named = [name for name in scalars if name.rpartition(".")[2] == "loss"]
        named = [name for name in named if name.count(".") == min(n.count(".") for n in named)]
        chosen = named if len(named) == 1 else list(scalars)
        if len(chosen) > 1:
            raise InputError(
                f"{model} returns {len(chosen)} scalars ({', '.join(chosen)}): name the loss `loss`, or return it alone"
            )
        output = scalars[chosen[0]] if chosen else output
    if not isinstance(output, torch.Tensor) or output.dim() or not output.is_floating_point():
        raise InputError(
            f"{model} must return a scalar loss, or an output with a scalar .loss: pass the labels in the batch, "
            f"or wrap the model; it returned {_words(output)}"
        )
    return output


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested tuples, lists, mappings, dataclasses and whatever has a ``loss``, by dotted name."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    for key, item in _items(value):
        yield from _tensors(item, f"{name}.{key}" if name else key)


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(k), v) for k, v in value.items()]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        return [(str(k), v) for k, v in zip(names, value, strict=True)]
    if isinstance(value, type):
        return []
    if dataclasses.is_dataclass(value):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return [("loss", value.loss)] if hasattr(value, "loss") else []


def _words(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return f"a tensor of shape {tuple(output.shape)} and {str(output.dtype).removeprefix('torch.')}"
    return type(output).__name__
