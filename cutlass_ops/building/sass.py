"""What a built library really holds: its device code taken out, disassembled and counted.

cuobjdump finds only what nvcc embeds; a CuTe kernel is a device ELF in the library's data, found by its header. As a
program, ``python -m cutlass_ops.building.sass KERNEL.so`` prints the disassembly.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ELF = b"\x7fELF\x02\x01"
_EM_CUDA = 190
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]+)", re.MULTILINE)
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_SECONDS = 120


@dataclass(frozen=True)
class Code:
    """Of all kernels in a library: the most of each resource, and the counts summed."""

    registers: int  # a thread
    stack_bytes: int
    local_loads: int  # LDL and STL: what was spilled
    tensor_core: dict[str, int]  # HGMMA, QGMMA or HMMA instructions by shape, in the program's text
    instructions: int


def read(library: Path) -> Code:
    """Disassemble ``library``. ValueError where it holds no device code; FileNotFoundError without the CUDA tools."""
    texts = list(disassembled(library))
    used = [tuple(map(int, row)) for _, resources in texts for row in _RESOURCES.findall(resources)]
    names = Counter(name for text, _ in texts for name in _INSTRUCTION.findall(text))
    return Code(
        registers=max(row[0] for row in used),
        stack_bytes=max(row[1] for row in used),
        local_loads=sum(n for name, n in names.items() if name.split(".")[0] in ("LDL", "STL")),
        tensor_core={name: n for name, n in sorted(names.items()) if re.match("[HQ]G?MMA", name)},
        instructions=names.total(),
    )


def disassembled(library: Path) -> Iterator[tuple[str, str]]:
    """The SASS and the resources of each kernel in ``library``. Raises as ``read`` does."""
    cubins = device_elfs(library.read_bytes())
    if not cubins:
        raise ValueError(f"{library} holds no device code")
    with tempfile.TemporaryDirectory() as directory:
        for n, cubin in enumerate(cubins):
            yield _disassemble(cubin, Path(directory) / f"{n}.cubin")


def device_elfs(data: bytes) -> list[bytes]:
    """The device ELFs that lie, not compressed, anywhere in ``data``."""
    found: list[bytes] = []
    start = data.find(_ELF)
    while start >= 0:
        header = data[start : start + 64]
        if len(header) == 64 and struct.unpack_from("<H", header, 18)[0] == _EM_CUDA:
            sections, size, count = (*struct.unpack_from("<Q", header, 40), *struct.unpack_from("<HH", header, 58))
            programs, width, number = (*struct.unpack_from("<Q", header, 32), *struct.unpack_from("<HH", header, 54))
            found.append(data[start : start + max(sections + size * count, programs + width * number)])
        start = data.find(_ELF, start + 1)
    return found


def tool(name: str) -> str:
    """Where nvdisasm, cuobjdump or nvcc lies: on the path, or in NVIDIA's wheels. FileNotFoundError with the mend."""
    if found := shutil.which(name):
        return found
    package = importlib.util.find_spec("nvidia")
    for root in (package.submodule_search_locations or ()) if package else ():
        for path in sorted(Path(root).glob(f"*/bin/{name}")):
            return str(path)
    raise FileNotFoundError(f"{name} is not on the path: install the CUDA toolkit")


def _disassemble(cubin: bytes, path: Path) -> tuple[str, str]:
    path.write_bytes(cubin)
    rows = [[tool("nvdisasm"), "-c", str(path)], [tool("cuobjdump"), "-res-usage", str(path)]]
    runs = [subprocess.run(row, capture_output=True, text=True, check=True, timeout=_SECONDS) for row in rows]
    return runs[0].stdout, runs[1].stdout + runs[1].stderr


if __name__ == "__main__":
    for text, _ in disassembled(Path(sys.argv[1])):
        print(text)
