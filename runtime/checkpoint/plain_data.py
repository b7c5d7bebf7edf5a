"""A user's own values in a checkpoint, as a loader's position: in JSON, so that reading them executes nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, cast

import torch

from partitioner.errors import InputError

_KIND = "kind of value"


def packed(value: Any, place: str = "data") -> Any:
    """As JSON holds it; raises InputError for what is no dict, list, tuple, tensor, bytes, number, string or None."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        rows = cast("Mapping[object, Any]", value)
        for key in rows:
            if not isinstance(key, str):
                raise InputError(f"{place} has a key {key!r} that is no string: a checkpoint can't hold it")
        return {str(key): packed(row, f"{place}.{key}") for key, row in rows.items()}
    if isinstance(value, list | tuple):
        found = [packed(row, f"{place}[{n}]") for n, row in enumerate(cast("list[Any]", value))]
        return found if isinstance(value, list) else {_KIND: "tuple", "of": found}
    if isinstance(value, bytes):
        return {_KIND: "bytes", "of": base64.b64encode(value).decode()}
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        kind = str(value.dtype).removeprefix("torch.")
        return {_KIND: "tensor", "dtype": kind, "shape": list(value.shape), "of": base64.b64encode(flat).decode()}
    raise InputError(f"{place} is a {type(value).__name__}: a checkpoint can't hold it")


def unpacked(value: Any) -> Any:
    """What was packed."""
    if isinstance(value, list):
        return [unpacked(row) for row in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    rows = cast("dict[str, Any]", value)
    kind = rows.get(_KIND)
    if kind == "tuple":
        return tuple(unpacked(row) for row in rows["of"])
    if kind == "bytes":
        return base64.b64decode(rows["of"])
    if kind == "tensor":
        flat = torch.frombuffer(bytearray(base64.b64decode(rows["of"])) or bytearray(1), dtype=torch.uint8)
        dtype, shape = getattr(torch, rows["dtype"]), rows["shape"]
        return flat.view(dtype).view(shape) if 0 not in shape else torch.empty(shape, dtype=dtype)
    return {key: unpacked(row) for key, row in rows.items()}
