"""The Precision noun: in which data types a step computes, adds up gradients, and updates; a decision of the plan.

    bf16    parameter float32 --cast--> bfloat16 copy --ops--> gradient bfloat16 --added up--> float32 --> the optimizer

As FSDP2 has it (torch.distributed.fsdp.MixedPrecisionPolicy): parameters are cast, and the model's own casts stay.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from partitioner.errors import InputError

BRAIN, HALF, SINGLE, DOUBLE, TF32 = "bfloat16", "float16", "float32", "float64", "tf32"
REAL = (BRAIN, HALF, SINGLE, DOUBLE)  # in which parameters can be trained, by torch's names


@dataclass(frozen=True)
class Recipe:
    """How products run in fewer bits: ``dtype``, whose peak they have, and the bytes of a number, scales counted.

    ``scans``: whether a scale is of all of an operand, which is read before for its largest number; ``delays``: whether
    that of an earlier step may stand for it.
    """

    dtype: str
    bytes: float
    scans: bool = False
    delays: bool = False

    def is_scanned(self, delayed: bool) -> bool:
        """Whether an operand is read before; ``delayed``: the program takes an earlier step's scale where it may."""
        return self.scans and not (self.delays and delayed)


RECIPES = {
    "fp8": Recipe("float8_e4m3fn", 1.0, scans=True, delays=True),  # a scale for each tensor
    "fp8_block": Recipe("float8_e4m3fn", 1.0 + 4 / 128),  # for 1 x 128 of an activation, 128 x 128 of a weight
    "mxfp8": Recipe("float8_e4m3fn", 1.0 + 1 / 32),  # Open Compute Project, Microscaling Formats, 2023
    "nvfp4": Recipe("float4_e2m1fn_x2", 0.5 + 1 / 16, scans=True),  # for 16 numbers one of 8 bits, one for all
}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """``compute``: the data type in which ops read parameters; "" leaves each parameter its own, and nothing is cast.

    Of parameters of that type: ``gradients``: in which those of micro-batches are added up and summed over ranks;
    ``state``: of the copy that the optimizer updates, and so of its moments; "" for the parameter's own and no copy.
    ``float32``: patterns of modules that compute in float32 all the same. ``loss_scale``: whether the loss is scaled so
    that gradients of float16 neither vanish nor overflow (Micikevicius et al., 2018). ``tf32``: whether products of
    float32 run in TF32. ``products``: by which of RECIPES products by weights run in the model's blocks, whose operands
    are quantized for them, "" for none.
    """

    compute: str = ""
    gradients: str = ""
    state: str = ""
    float32: tuple[str, ...] = ()
    loss_scale: bool = False
    tf32: bool = False
    products: str = ""

    def gradient_of(self, dtype: str) -> str:
        """In which the gradients of a parameter are added up that computes in ``dtype``."""
        return self.gradients if self.gradients and dtype == self.compute else dtype

    def state_of(self, dtype: str) -> str | None:
        """In which the optimizer holds a copy of a parameter that computes in ``dtype``; None: it updates that."""
        return self.state if self.state and dtype == self.compute else None

    def of_framework(self, gradients: str) -> Precision:
        """Where it computes in 16 bits beside masters, with gradients added up as a framework does."""
        return replace(self, gradients=gradients) if self.state and self.compute in (BRAIN, HALF) else self

    def promoted(self) -> Precision:
        """The same decisions in float64, so that what is cast, copied and scaled can be compared exactly."""
        kinds = {key: DOUBLE for key in ("compute", "gradients", "state") if getattr(self, key)}
        return replace(self, **kinds, tf32=False, products="")

    def with_float32(self, patterns: Sequence[str]) -> Precision:
        """With patterns of modules that compute in float32; raises InputError where nothing is cast."""
        if patterns and self.compute in ("", SINGLE):
            raise InputError(f"precision {self} computes nothing in less than float32: leave out {', '.join(patterns)}")
        return replace(self, float32=tuple(patterns))

    def __str__(self) -> str:
        """The name of a preset, or what is other in it."""
        known = next((name for name, row in PRESETS.items() if replace(self, float32=()) == row), None)
        parts = ("compute", "gradients", "state")
        words = known or ", ".join(f"{key} in {getattr(self, key)}" for key in parts if getattr(self, key))
        words += f", products in {self.products}" if self.products and not known else ""
        return words + "".join(f", {pattern} in float32" for pattern in self.float32)


OWN = Precision()
PRESETS = {
    "own": OWN,
    "fp32": Precision(compute=SINGLE),
    "tf32": Precision(compute=SINGLE, tf32=True),
    "bf16": Precision(compute=BRAIN, gradients=SINGLE, state=SINGLE),
    "fp16": Precision(compute=HALF, gradients=SINGLE, state=SINGLE, loss_scale=True),
    "bf16-pure": Precision(compute=BRAIN),
    **{name: Precision(compute=BRAIN, gradients=SINGLE, state=SINGLE, products=name) for name in RECIPES},
}


def preset(name: str, float32: Sequence[str] = ()) -> Precision:
    """By name, with patterns of modules that compute in float32; raises InputError for an unknown name, and for
    patterns where nothing is cast."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1, 0.0)[0]
        raise InputError(f"there is no precision {name}: the nearest is {near}; known are {', '.join(PRESETS)}")
    return PRESETS[name].with_float32(float32)
