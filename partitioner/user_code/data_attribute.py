"""``tensor.data`` while tracing: read, it is ``tensor.detach()``, which a graph can hold; assigned, it is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from partitioner.errors import InputError
from partitioner.user_code.places import place_here

_READ, _ASSIGN = torch.Tensor.data.__get__, torch.Tensor.data.__set__  # type: ignore[attr-defined]


class DataAsDetach(TorchFunctionMode):
    """Model code that reads ``.data`` gets ``.detach()``: the same storage, no gradient.

    Raises InputError where ``.data`` is assigned.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _READ:
            return args[0].detach()
        if func == _ASSIGN:
            raise InputError(
                f"{type(self.model).__name__} can't be traced{place_here(self.model)}: it assigns to a tensor's .data, "
                "which autograd does not see: use copy_ instead"
            )
        return func(*args, **(kwargs or {}))
