"""The Device noun: one accelerator's peaks, and how near to them its kernels come, by shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from partitioner.errors import InputError

# what kernels of the common libraries offer: rows and columns of the result that one multiprocessor makes at a time
TILES = ((256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64))


@dataclass(frozen=True)
class Products:
    """How products of some types run; partitioner/kernel_seconds/product.py has the formula.

    ``share``: of the peak, what the best tile reaches. ``memory_share``: of the memory's speed, what products do that
    are bound by it. ``tile_loss`` and ``tile_power``: a tile of i products for each element read has a rate of
    1 / (1 + (loss / i) ** power). ``tile_depth``: steps of the inner dimension in which filling and draining a tile
    would do. ``last_wave``: of a wave, what a last one costs that has next to no tiles. ``fixed_seconds``: of any
    product. ``droop``: how much longer the largest products take, for clocks fall under them; ``droop_at``,
    ``droop_span``: the logarithm (base 2) of the GFLOPs at which half of it is seen, and over how many it comes.
    ``norm``: of the p-norm that joins compute and memory. ``split_seconds``: what cutting the inner dimension costs at
    least, beside ``split_passes`` over the parts' results.
    ``quantize_seconds``, ``quantize_bytes_each``: of a product in few bits as it was measured, what its first operand
    took to be made of 16 bits, at all and for each element; a program does that its own way, and is priced so.
    ``copies``: of an operand that products read in either order, 2, or 1 where one serves both.
    """

    types: tuple[str, ...]
    share: float
    memory_share: float = 0.9
    tile_loss: float = 10.0
    tile_power: float = 3.0
    tile_depth: float = 160.0
    last_wave: float = 0.5
    fixed_seconds: float = 3e-6
    droop: float = 0.0
    droop_at: float = 9.0
    droop_span: float = 1.5
    norm: float = 16.0
    split_seconds: float = 1e-6
    split_passes: float = 2.0
    quantize_seconds: float = 0.0
    quantize_bytes_each: float = 0.0
    copies: int = 2


def one_row(types: Iterable[str], share: float, memory_share: float = 1.0, launch: float = 0.0) -> tuple[Products]:
    """Products of all types alike, as far as so little is known of them."""
    return (Products(tuple(types), share, memory_share, fixed_seconds=launch),)


@dataclass(frozen=True)
class Attention:
    """How fused attention runs; partitioner/kernel_seconds/attention.py has the formula.

    ``share``: of the peak, what its products reach. ``score_flops_each``: what a score's softmax costs, in FLOPs at the
    peak. ``row_overheads``: what a row of queries costs at all, in scores. ``fixed_seconds``: of any.
    ``tail``: of the longest block of rows, how much of it other multiprocessors wait for. ``key_bytes_each``: bytes
    streamed for a key and value of a token and head. ``backward``: its seconds over forward's.
    ``generation_shares``: of that speed, what kernels of earlier generations reach, by name.
    """

    share: float
    score_flops_each: float = 0.0
    row_overheads: float = 0.0
    fixed_seconds: float = 0.0
    tail: float = 0.0
    key_bytes_each: float = 0.0
    backward: float = 2.5
    generation_shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Device:
    """One accelerator. ``flops_per_second`` are dense peaks by type.

    ``multiprocessors`` work on ``tiles`` of a product in waves; a device of one is a CPU's core, whose products run at
    one rate whatever their shape. ``sustained``: of the speed that short bursts of products
    reach, what is left in a run of hours at the clocks that its power allows. ``memory_efficiency``: of the memory's
    speed, what pointwise kernels reach; ``launch_seconds``: of any such kernel. ``spread`` is the standard deviation of
    the devices' speed, all of which wait for the slowest. ``allocator_share``: of what a caching allocator has
    reserved, what tensors fill at their most. ``dollars_per_hour`` and ``watts`` are None where the file does not give
    them. ``products``: by types; one that no row names is priced by the first.
    """

    name: str
    memory_bytes: float
    memory_bytes_per_second: float
    launch_seconds: float
    memory_efficiency: float
    multiprocessors: int
    spread: float
    flops_per_second: Mapping[str, float]
    products: tuple[Products, ...]
    attention: Attention
    tiles: tuple[tuple[int, int], ...] = TILES
    sustained: float = 1.0
    allocator_share: float = 1.0
    dollars_per_hour: float | None = None
    watts: float | None = None

    def peak(self, dtype: str) -> float:
        """FLOPs a second in ``dtype``; raises InputError where the device has none."""
        if dtype not in self.flops_per_second:
            known = ", ".join(self.flops_per_second)
            raise InputError(f"{self.name} has no peak for products in {dtype}: give the model one of {known}")
        return self.flops_per_second[dtype]

    def products_of(self, dtype: str) -> Products:
        """The row that names the type, or the first."""
        return next((row for row in self.products if dtype in row.types), self.products[0])

    @property
    def streaming(self) -> float:
        """Bytes a second that a kernel reaches which only reads and writes."""
        return self.memory_bytes_per_second * self.memory_efficiency

    @property
    def room(self) -> float:
        """Bytes that tensors can fill."""
        return self.memory_bytes * self.allocator_share
