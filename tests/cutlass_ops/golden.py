"""Writes the golden files: ``python tests/cutlass_ops/golden.py``. Read what changed before it is committed."""

from __future__ import annotations

from pathlib import Path

from specs import KERNELS, specs

from cutlass_ops.building.build import PRINTERS
from cutlass_ops.printers.reference import reference

DIRECTORY = Path(__file__).parent / "golden"


def texts() -> dict[str, str]:
    """File name -> what is printed for it."""
    printed = {f"{name}.txt": PRINTERS[k.printer].source(k) for name, k in KERNELS.items()}
    return printed | {f"{name}.torch.txt": reference(gemm).code.strip() + "\n" for name, gemm in specs().items()}


def main() -> None:
    for path in DIRECTORY.glob("*.txt"):
        path.unlink()
    for name, text in texts().items():
        (DIRECTORY / name).write_text(text)


if __name__ == "__main__":
    main()
