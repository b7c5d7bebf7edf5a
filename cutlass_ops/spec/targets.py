"""What kernels are printed for, and by what."""

from __future__ import annotations

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")
PRINTERS = ("cute", "cpp")
