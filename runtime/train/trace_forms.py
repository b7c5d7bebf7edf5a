"""A model traced again for batches of other forms, into Programs under which its state lies as the plan has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from partitioner import Plan, lower, trace
from partitioner.lowering.program import Program
from partitioner.searching.same_state import with_state_of
from partitioner.user_code.batches import flat
from runtime.train.forms import Form, Lengths


@dataclass(frozen=True)
class TraceForms:
    """Programs of a model for batches of other forms than the example's, its state as under ``plan``; ``stages`` read
    each parameter there."""

    model: nn.Module
    batch: Mapping[str, Any]
    plan: Plan
    stages: Mapping[str, Sequence[int]]

    def program(self, form: Form) -> Program:
        """Traced anew, in eval mode where nothing trains; the model is left in the mode in which it was."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.train(form.trains)
        try:
            graph = trace(self.model, self.example(form.lengths), precision=self.plan.decisions.precision)
        finally:
            for module, is_training in modes.items():
                module.training = is_training
        return lower(graph, with_state_of(self.plan, graph, self.stages, form.micro_batch, form.trains))

    def example(self, lengths: Lengths) -> dict[str, Any]:
        """The example of other lengths: cut off, or begun again where it ends."""
        given, rows = flat(self.batch), dict(lengths)
        tensors = dict(given.tensors)
        for name, row in rows.items():
            first = tensors[name].dim() - len(row)
            for dim, size in enumerate(row, start=first):
                at = torch.arange(size, device=tensors[name].device) % tensors[name].shape[dim]
                tensors[name] = tensors[name].index_select(dim, at)
        return given.together(tensors)
