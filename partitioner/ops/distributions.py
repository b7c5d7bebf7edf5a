"""How each distribution is drawn from a seed: in float32, so that draws do not depend on the model's dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Parameters = Sequence[float]
Sampler = Callable[[torch.Tensor, Parameters, torch.Generator], torch.Tensor]


def sample(
    distribution: str, parameters: Parameters, shape: Sequence[int], seed: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Independent draws of ``shape``: a function of all arguments, but for rounding to ``dtype`` the same in each."""
    generator = torch.Generator(device).manual_seed(seed)
    space = torch.empty(tuple(shape), dtype=torch.float32, device=device)
    drawn = DISTRIBUTIONS[distribution](space, parameters, generator).to(dtype)
    return _below(drawn, *parameters) if distribution == "uniform" and dtype in _SHORT else drawn


_SHORT = (torch.float16, torch.bfloat16)


def _below(drawn: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """A uniform draw excludes its upper end, to which a short dtype may have rounded it."""
    ends = (torch.tensor(end, dtype=drawn.dtype, device=drawn.device) for end in (high, low))
    return torch.minimum(drawn, torch.nextafter(*ends))


DISTRIBUTIONS: dict[str, Sampler] = {
    "bernoulli": lambda space, p, generator: space.uniform_(generator=generator) < p[0],
    "cauchy": lambda space, p, generator: space.cauchy_(*p, generator=generator),
    "exponential": lambda space, p, generator: space.exponential_(*p, generator=generator),
    "geometric": lambda space, p, generator: space.geometric_(*p, generator=generator),
    "integers": lambda space, p, generator: torch.randint(
        int(p[0]), int(p[1]), space.shape, generator=generator, device=space.device
    ),
    "log_normal": lambda space, p, generator: space.log_normal_(*p, generator=generator),
    "normal": lambda space, p, generator: space.normal_(*p, generator=generator),
    "permutation": lambda space, _, generator: torch.randperm(len(space), generator=generator, device=space.device),
    "uniform": lambda space, p, generator: space.uniform_(*p, generator=generator),
}
