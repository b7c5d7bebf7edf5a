"""The runtime: executes what a Program says on torch.distributed; decides nothing."""

from runtime.parallelize import parallelize
from runtime.train.engine import Engine

__all__ = ["Engine", "parallelize"]
