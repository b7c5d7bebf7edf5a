"""The runtime: executes what a Program says on torch.distributed; decides nothing."""

from runtime.engine import Engine
from runtime.parallelize import parallelize

__all__ = ["Engine", "parallelize"]
