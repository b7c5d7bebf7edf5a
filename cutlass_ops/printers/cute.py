"""The CuTe DSL printer, for sm_90 and up: a spec as one Python function over the accumulator, compiled through quack.

    @gemm_epilogue(outputs=("store1",), ops={"bias": RowVecLoad("bias")})
    def epilogue(acc, bias):
        v0 = acc + bias
        v1 = activation.gelu_tanh_approx(v0)
        return {"D": v1, "store1": v0}

All calls of quack (https://github.com/Dao-AILab/quack) and of the DSL are in this file. As a program,
``python -m cutlass_ops.printers.cute DIR`` compiles DIR/kernel.json and DIR/epilogue.py to DIR/kernel.o, with no GPU.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cutlass_ops.spec import kernel as kernels
from cutlass_ops.spec.elementwise import OPS
from cutlass_ops.spec.kernel import Kernel
from cutlass_ops.spec.spec import ACCUMULATOR, Gemm, Load

SOURCE = "epilogue.py"
PACKAGES = ("quack-kernels", "nvidia-cutlass-dsl", "apache-tvm-ffi")
DTYPES = ("bfloat16", "float16", "float8_e4m3fn")
_OPERANDS = {"m n": "TileLoad", "n": "RowVecLoad", "m": "ColVecLoad"}  # quack infers a scalar from its one element
_POINTER = 2  # quack's word for a scalar that the device reads
_FUNCTION = "func"

# The DSL's runtime is 43 MB; all that a compiled kernel asks of it is this.
_STUB = """\
#include <stdint.h>
typedef void (*set_error_t)(const char *kind, const char **parts, int32_t count);
void CuteDSLRT_TVMFFISetRaisedCudaError(set_error_t set_error, int32_t code) {
  (void)code;
  const char *parts[] = {"CUDA refused to load or launch the kernel"};
  set_error("RuntimeError", parts, 1);
}
"""


def refusal(kernel: Kernel) -> str | None:
    """Why quack has no such kernel, or None."""
    gemm, tile = kernel.gemm, kernel.tiling
    tiles = sum(load.over == "m n" for load in gemm.loads)
    if int(kernel.arch.strip("sm_a")) < 90:
        return f"the CuTe printer starts at sm_90, not {kernel.arch}"
    if gemm.dtype not in DTYPES:
        return f"tensor cores of the CuTe printer take {', '.join(DTYPES)}, not {gemm.dtype}"
    if gemm.kind == "grouped" and tiles > 1:
        return "quack's grouped GEMM loads at most one operand over m n"
    if gemm.kind == "grouped" and gemm.a != "m k":
        return "quack's grouped GEMM reads its rows from a stored m k"
    if gemm.kind == "grouped" and any(load.over == "m" and load.dtype != "float32" for load in gemm.loads):
        return "quack's grouped GEMM loads a vector over m as float32"
    if any(not load.over and load.dtype != "float32" for load in gemm.loads):
        return "a number that the epilogue loads is a float32"
    if tile.m % 64 or tile.n % 16:
        return f"a tile of {tile.m} x {tile.n}: rows go by 64, columns by 16"
    return None


def source(kernel: Kernel) -> str:
    """The text of the epilogue's module."""
    gemm = kernel.gemm
    names = _names(gemm)
    outputs = [f"store{n}" for n in range(1, len(gemm.stores))]
    pinned = [load for load in gemm.loads if load.over and names[load.name] != "c"]
    imports = sorted({_OPERANDS[load.over] for load in pinned})
    parameters = ", ".join([ACCUMULATOR, *(names[load.name] for load in gemm.loads)])
    body = [f"    {op.value} = {OPS[op.op].cute.format(*(_word(names, arg) for arg in op.args))}" for op in gemm.ops]
    keys = ["D", *outputs]
    results = ", ".join(f'"{key}": {names[store.value]}' for key, store in zip(keys, gemm.stores, strict=True))
    operands = ", ".join(f'"{load.name}": {_OPERANDS[load.over]}("{load.name}")' for load in pinned)
    lines = [f'"""{gemm.kind} {gemm.dtype} {gemm.digest[:16]}"""', ""]
    lines += ["from quack import activation"] if any("activation." in line for line in body) else []
    lines += ["from quack.epilogue.frontend import gemm_epilogue"]
    lines += [f"from quack.epilogue.ops import {', '.join(imports)}"] if imports else []
    lines += ["", "", f"@gemm_epilogue(outputs={tuple(outputs)!r}, ops={{{operands}}})".replace("'", '"')]
    lines += [f"def epilogue({parameters}):", *body, f"    return {{{results}}}", ""]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Of the packages that decide what comes out. PackageNotFoundError without the extra ``cutlass``."""
    return {name: metadata.version(name) for name in PACKAGES}


def commands(kernel: Kernel, directory: Path, nvcc: str) -> list[list[str]]:
    """What builds ``directory``/kernel.so from its kernel.json and epilogue.py."""
    ffi, runtime = (_package(name) for name in ("tvm_ffi", "nvidia_cutlass_dsl"))
    archive = runtime / "cu12" / "lib" / "libcuda_dialect_runtime_static.a"
    objects = [str(directory / "kernel.o"), str(directory / "stub.c"), str(archive)]
    return [
        [sys.executable, "-P", "-m", "cutlass_ops.printers.cute", str(directory)],
        [nvcc, "-shared", "-Xcompiler", "-fPIC", "-Xlinker", "--strip-all", "-cudart", "static"]
        + ["-o", str(directory / "kernel.so"), *objects, f"-L{ffi / 'lib'}", "-ltvm_ffi"],
    ]


def environment(kernel: Kernel, directory: Path) -> dict[str, str]:
    """What the compiling process must find in its environment before it imports anything."""
    number = kernel.arch.removeprefix("sm_").rstrip("a")
    return {"CUTE_DSL_ARCH": kernel.arch, "QUACK_ARCH": number, "QUACK_CACHE_DIR": str(directory / "objects")}


def load(library: Path, kernel: Kernel) -> Callable[..., None]:
    """``launch(a, b, loads, stores, offsets)`` on torch's current stream; operands in the shapes of ``spec``.

    Needs apache-tvm-ffi alone. Errors of the library (a wrong shape, dtype or device) are ValueErrors.
    """
    tvm_ffi = importlib.import_module("tvm_ffi")  # of an extra, as all that is imported so
    function = tvm_ffi.load_module(str(library))[_FUNCTION]
    gemm, tile = kernel.gemm, kernel.tiling
    first = _first_tile(gemm)

    def lay(load: Load, x: torch.Tensor) -> Any:
        """As quack takes it: numbers by address, vectors with the batch in front, rows flattened."""
        if load.over == "m n":
            return flat(x)
        if not load.over:
            return x.data_ptr()
        return x if x.dim() == 2 or gemm.kind == "grouped" else x.reshape(1, -1)

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, x.shape[-1]) if gemm.kind == "linear" else x

    def launch(
        a: torch.Tensor,
        b: torch.Tensor,
        loads: Sequence[torch.Tensor],
        stores: Sequence[torch.Tensor],
        offsets: torch.Tensor | None = None,
    ) -> None:
        b = b.mT if gemm.b == "n k" else b
        a = a.mT if gemm.a == "k m" else flat(a)
        processors = torch.cuda.get_device_properties(a.device).multi_processor_count
        rows = [(row, lay(row, x)) for row, x in zip(gemm.loads, loads, strict=True)]
        c = next((x for row, x in rows if row is first), None)
        fields = [*(x for row, x in rows if row is not first), *map(flat, stores[1:]), None, None]
        schedule = (processors // (tile.cluster_m * tile.cluster_n), None, 8, None, None, None)
        groups = None if offsets is None else (offsets, None, None, None)
        function(a, b, flat(stores[0]), c, tuple(fields), schedule, groups, None, None)

    return launch


def _names(gemm: Gemm) -> dict[str, str]:
    """What each value is called in the text: the first load over m n is quack's C operand."""
    own = [ACCUMULATOR, *(load.name for load in gemm.loads), *(op.value for op in gemm.ops)]
    first = _first_tile(gemm)
    return {name: "c" if first is not None and name == first.name else name for name in own}


def _first_tile(gemm: Gemm) -> Load | None:
    return next((load for load in gemm.loads if load.over == "m n"), None)


def _word(names: dict[str, str], arg: str | float) -> str:
    return names[arg] if isinstance(arg, str) else repr(float(arg))


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError(f"{name} is not installed: pip install 'partitioner[cutlass]'")
    return Path(found.submodule_search_locations[0])


def _compile(directory: Path) -> None:
    """kernel.json and epilogue.py to kernel.o and stub.c; sizes are symbols, so the ones here mean nothing."""
    host = importlib.import_module("quack.gemm_runtime").host
    host.get_max_active_clusters = lambda count: 0  # asks the device, and is read at launch only
    kernel = kernels.from_json((directory / "kernel.json").read_text())
    gemm, tile = kernel.gemm, kernel.tiling
    found = importlib.util.spec_from_file_location("epilogue", directory / SOURCE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["epilogue"] = module
    found.loader.exec_module(module)
    sizes = {"l": 2, "m": 512, "n": 768, "k": 256}
    a, b, loads, stores = (_fakes(kind, gemm, sizes) for kind in ("a", "b", "loads", "stores"))
    first = _first_tile(gemm)
    values = {load.name: x for load, x in zip(gemm.loads, loads, strict=True) if load is not first}
    values |= {f"store{n}": x for n, x in enumerate(stores) if n}
    plan = module.epilogue.gemm(
        a[0],
        b[0],
        stores[0],
        next((x for load, x in zip(gemm.loads, loads, strict=True) if load is first), None),
        epi_args=values,
        epi_key_overrides={load.name: _POINTER for load in gemm.loads if not load.over},
        tile_M=tile.m,
        tile_N=tile.n,
        cluster_M=tile.cluster_m,
        cluster_N=tile.cluster_n,
        pingpong=tile.pingpong,
        cu_seqlens_m=_empty((sizes["l"] + 1,), "int32") if gemm.kind == "grouped" else None,
        b_kn=True,
        _launch=False,
    )
    expected = (*values, "split_k_semaphore", "split_k_workspace")
    if plan.gemm_cls.EpilogueArguments._fields != expected:
        raise RuntimeError(f"quack's arguments are {plan.gemm_cls.EpilogueArguments._fields}, not {expected}")
    plan.compiled_fn.export_to_c(object_file_path=str(directory / "kernel.o"), function_name=_FUNCTION)
    (directory / "stub.c").write_text(_STUB)


def _fakes(what: str, gemm: Gemm, sizes: dict[str, int]) -> list[torch.Tensor]:
    lead = ["l"] if gemm.kind == "batched" else []
    rows = {"m n": [*lead, "m", "n"], "n": ["l", "n"], "m": ["m"] if gemm.kind == "grouped" else ["l", "m"], "": []}
    if gemm.kind in ("mm", "linear"):
        sizes = {**sizes, "l": 1}
    if what == "a":
        return [_stored(lead, "m k", gemm.a, gemm.dtype, sizes)]
    if what == "b":
        return [_stored(["l"] if gemm.kind == "grouped" else lead, "k n", gemm.b, gemm.dtype, sizes)]
    if what == "stores":
        return [_empty([sizes[f] for f in rows["m n"]], store.dtype) for store in gemm.stores]
    return [_empty([sizes[f] for f in rows[load.over]], load.dtype) for load in gemm.loads]


def _stored(lead: list[str], order: str, memory: str, dtype: str, sizes: dict[str, int]) -> torch.Tensor:
    """A matrix in the product's order whose last two dimensions lie in memory as said."""
    x = _empty([sizes[f] for f in (*lead, *memory.split())], dtype)
    return x if memory == order else x.mT


def _empty(shape: Sequence[int], dtype: str) -> Any:
    return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device="meta")


if __name__ == "__main__":
    _compile(Path(sys.argv[1]))
