"""Constant parameters (zero-initialized heads and gates, norms of ones) get noise, so that every gradient tells."""

from __future__ import annotations

import torch
from torch import nn

RELATIVE, ABSOLUTE = 0.05, 0.02  # standard deviation: of a constant's size, and of zeros


@torch.no_grad()
def perturb(module: nn.Module, seed: int = 0) -> tuple[str, ...]:
    """Add seeded noise to every floating-point parameter whose elements are all equal; the names of those changed.

    The same module and seed give the same noise on every rank. Parameters without storage are left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    changed: list[str] = []
    for name, parameter in module.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point() or not parameter.numel():
            continue
        if bool((parameter == parameter.flatten()[0]).all()):
            size = abs(float(parameter.flatten()[0]))
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += ((size * RELATIVE or ABSOLUTE) * noise).to(parameter.dtype).to(parameter.device)
            changed.append(name)
    return tuple(changed)
