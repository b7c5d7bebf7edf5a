"""What is asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from runtime.generate.sampling import Sampling

Stops = Callable[[Sequence[int]], bool]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A text to be continued: ``prompt`` tokens, at least one, by at the most ``most`` more. ``ends``: tokens that end
    it; ``stops``: told the new tokens, whether a text that ends it is among them. ``number``: of its draws.
    ``source``: what the model is given beside tokens, of one sample."""

    prompt: tuple[int, ...]
    most: int
    sampling: Sampling = Sampling()
    ends: frozenset[int] = frozenset()
    stops: Stops | None = None
    number: int = 0
    source: Mapping[str, torch.Tensor] | None = None


@dataclass(eq=False)
class Continued:
    """The new ``tokens`` of a request, and why they ended: "stop" (a token or text that ends it) or "length"; "" while
    they have not."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    finish: str = ""

    def add(self, token: int) -> None:
        """The next one; the token that ends a text stands in it."""
        self.tokens.append(token)
        own = self.request
        if token in own.ends or (own.stops is not None and own.stops(self.tokens)):
            self.finish = "stop"
        elif len(self.tokens) >= own.most:
            self.finish = "length"
