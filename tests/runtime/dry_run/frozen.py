"""A plain GPT of which a part does not train."""

from __future__ import annotations

from torch import Tensor, nn

from examples.gpt import model


def parts(**size: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """In each block its MLP, and the table."""
    module, batch = model(**size)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("mlp" not in name and "tokens" not in name)
    return module, batch
