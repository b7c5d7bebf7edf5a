"""An axis whose collectives run as one op each outside backward, which selective checkpoint contexts may keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from partitioner.sharding.layout import Shard
from runtime.mesh.axis import Axis
from runtime.mesh.communication_log import Phase
from runtime.mesh.kept_results import as_one


@dataclass(frozen=True)
class SeenAxis(Axis):
    """``lets_go``: what its collectives read outside backward is read by nothing else, and is let go of once they have
    run."""

    lets_go: bool = False

    def sum(self, x: torch.Tensor, phase: Phase, owned: bool = False) -> torch.Tensor:
        return self._seen(lambda x: Axis.sum(self, x, phase, owned), x, phase, self.lets_go and not owned)

    def gather(self, x: torch.Tensor, shard: Shard, phase: Phase) -> torch.Tensor:
        return self._seen(lambda x: Axis.gather(self, x, shard, phase), x, phase, self.lets_go)

    def scatter(self, x: torch.Tensor, shard: Shard, phase: Phase) -> torch.Tensor:
        return self._seen(lambda x: Axis.scatter(self, x, shard, phase), x, phase, self.lets_go)

    def exchange(self, x: torch.Tensor, source: Shard, target: Shard, phase: Phase) -> torch.Tensor:
        return self._seen(lambda x: Axis.exchange(self, x, source, target, phase), x, phase, self.lets_go)

    def _seen(
        self, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, phase: Phase, lets_go: bool
    ) -> torch.Tensor:
        if phase == "backward":
            return run(x)

        def once(x: torch.Tensor) -> list[torch.Tensor]:
            made = run(x)
            if lets_go:
                x.untyped_storage().resize_(0)
            return [made]

        (made,) = as_one(once, x)
        return made
