"""State that a model assigns anew in its forward (``self.mean = 0.9 * self.mean``), which export does not keep."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_buffer_registration_hook

from partitioner.errors import InputError
from partitioner.functionalize.inplace_ops import OUTLIVES


@contextmanager
def noted_assignments(model: nn.Module) -> Generator[set[str]]:
    """Names of buffers and of other tensor attributes that are replaced by another tensor inside."""
    paths = {id(module): f"{path}." if path else "" for path, module in model.named_modules()}
    names: set[str] = set()

    def note(module: nn.Module, name: str, value: object) -> None:
        known = vars(module).get("_buffers", {}).get(name, vars(module).get(name))
        if id(module) in paths and isinstance(known, torch.Tensor) and value is not known:
            names.add(paths[id(module)] + name)

    def assign(self: nn.Module, name: str, value: Any) -> None:
        note(self, name, value)
        plain(self, name, value)

    plain = nn.Module.__setattr__
    handle = register_module_buffer_registration_hook(note)
    nn.Module.__setattr__ = assign
    try:
        yield names
    finally:
        nn.Module.__setattr__ = plain
        handle.remove()


def check_assignments(exported: torch.export.ExportedProgram, names: set[str]) -> None:
    """Refuse a model that reads one of the states ``names`` of its submodule "model", which it assigns as well."""
    signature = exported.graph_signature
    states = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    for node in exported.graph.nodes:
        name = states.get(node.name, "").removeprefix("model.")
        if node.op == "placeholder" and node.users and name in names:
            raise InputError(f"the model changes {name} in its forward, where it assigns it: {OUTLIVES}")
