"""The C++ printer, for sm_80 to sm_90a: a spec as an epilogue visitor tree over CUTLASS's headers, compiled by nvcc.

    struct Op1 { ... float operator()(float x) const { return elementwise::gelu_tanh(x); } };  // v1 = gelu_tanh(v0)
    using Epilogue = N::Visitor<
        cute::tuple<cute::seq<>, cute::seq<>, cute::seq<0, 1>, cute::seq<2>, ...>,
        N::Accumulator, N::Row<cutlass::bfloat16_t>, N::Compute<Op0>, N::Compute<Op1>, ...>;

A node for each load, op and store, in the order of the spec; what a node reads are the numbers of its ``cute::seq``.
The GEMM around it is include/sm80.cuh or include/sm90.cuh, and the library's two functions are plain C.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from cutlass_ops.spec.kernel import Kernel
from cutlass_ops.spec.spec import ACCUMULATOR, Gemm, Op

SOURCE = "kernel.cu"
PACKAGES = ("nvidia-cutlass",)
INCLUDE = Path(__file__).parent / "include"
DTYPES = {
    "bfloat16": "cutlass::bfloat16_t",
    "float16": "cutlass::half_t",
    "float8_e4m3fn": "cutlass::float_e4m3_t",
    "float32": "float",
}
_ARCHITECTURES = {"sm_80": "sm80", "sm_86": "sm80", "sm_89": "sm80", "sm_90a": "sm90"}
_OPERANDS = {"m n": "Tile", "n": "Row", "m": "Column", "": "Number"}
_LAYOUTS = {"m k": "RowMajor", "k m": "ColumnMajor", "k n": "RowMajor", "n k": "ColumnMajor"}


@dataclass(frozen=True)
class Node:
    """One node of the visitor tree: its type, the nodes that it reads, its arguments, and what it is called."""

    type: str
    reads: tuple[int, ...]
    arguments: str
    name: str


def refusal(kernel: Kernel) -> str | None:
    """Why these headers have no such kernel, or None."""
    gemm, tile = kernel.gemm, kernel.tiling
    family = _ARCHITECTURES.get(kernel.arch)
    if family is None:
        return f"the C++ printer knows {', '.join(_ARCHITECTURES)}, not {kernel.arch}"
    if gemm.kind == "grouped":
        return "the C++ printer has no grouped GEMM"
    if gemm.dtype not in (("bfloat16", "float16", "float8_e4m3fn") if family == "sm90" else ("bfloat16", "float16")):
        return f"{gemm.dtype} has no tensor cores in the C++ printer on {kernel.arch}"
    for row in (*gemm.loads, *gemm.stores):
        if row.dtype not in DTYPES:
            return f"{row.dtype} is no dtype of an epilogue in the C++ printer"
    if gemm.dtype == "float8_e4m3fn" and (gemm.a, gemm.b) != ("m k", "n k"):
        return "float8 operands lie m k and n k on sm_90a"
    if family == "sm80" and (tile.pingpong or tile.cluster_m * tile.cluster_n > 1):
        return f"clusters and pingpong start at sm_90, not {kernel.arch}"
    if tile.m % 64 or tile.n % 64 or tile.k % 32:
        return f"a tile of {tile.m} x {tile.n} x {tile.k}: rows and columns go by 64, the depth by 32"
    return None


def source(kernel: Kernel) -> str:
    """The text of kernel.cu."""
    gemm = kernel.gemm
    family = _ARCHITECTURES[kernel.arch]
    nodes = _nodes(gemm, family)
    first = next((n for n, load in enumerate(gemm.loads) if load.over == "m n"), None) if family == "sm90" else None
    seqs = ", ".join(f"cute::seq<{', '.join(map(str, node.reads))}>" for node in nodes)
    types = [f"    {node.type}" for node in nodes]
    rows = [f"      {node.arguments}" for node in nodes]
    if family == "sm90":
        call = f"run(*call, arguments(*call), {'nullptr' if first is None else f'call->loads[{first}]'})"
    else:
        call = "run(*call, arguments(*call))"
    lines = [f"// {gemm.kind} {gemm.dtype} {gemm.digest[:16]}: {kernel.name}", f'#include "{family}.cuh"', ""]
    lines += ["namespace {", "", "using cutlass::gemm::GemmShape;", "using namespace cutlass::layout;"]
    lines += ["using cute::_0;", "using cute::_1;", "", *(_functor(n, op) for n, op in enumerate(gemm.ops)), ""]
    lines += [f"using C = {_config(kernel, family, first)};", f"using N = {family}::Nodes<C>;", ""]
    lines += ["using Epilogue = N::Visitor<", f"    cute::tuple<{seqs}>,"]
    lines += _noted(types, ",", ">;", nodes) + [""]
    lines += ["Epilogue::Arguments arguments(Call const &call) {", "  return {"]
    lines += [*_noted(rows, ",", "};", nodes), "}", "", "}  // namespace", ""]
    lines += [f'extern "C" char const *cutlass_ops_spec() {{ return "{gemm.digest}"; }}']
    lines += [f'extern "C" int cutlass_ops_launch(Call const *call) {{ return {family}::Gemm<C, Epilogue>::{call}; }}']
    return "\n".join([*lines, ""])


def versions() -> dict[str, str]:
    """Of the packages that decide what comes out. PackageNotFoundError without the extra ``cutlass``."""
    return {name: metadata.version(name) for name in PACKAGES}


def commands(kernel: Kernel, directory: Path, nvcc: str) -> list[list[str]]:
    """What builds ``directory``/kernel.so from its kernel.cu."""
    number = kernel.arch.removeprefix("sm_")
    return [
        [nvcc, "-shared", "-O3", "-std=c++17", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC", "--no-compress"]
        + [f"-gencode=arch=compute_{number},code={kernel.arch}", "-cudart", "static", "-Xlinker", "--strip-all"]
        + [f"-I{INCLUDE}", f"-I{_headers()}", "-o", str(directory / "kernel.so"), str(directory / SOURCE)]
    ]


def environment(kernel: Kernel, directory: Path) -> dict[str, str]:
    return {}


class Call(ctypes.Structure):
    """include/call.cuh's Call, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("m", "n", "k", "l", "lda", "ldb")),
        *((name, ctypes.c_void_p) for name in ("a", "b")),
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("loads", "stores")),
        ("processors", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
    )


def load(library: Path, kernel: Kernel) -> Callable[..., None]:
    """``launch(a, b, loads, stores, offsets)`` on torch's current stream; operands in the shapes of ``spec``.

    RuntimeError where the library was printed from another spec or CUTLASS refuses the call.
    """
    functions = ctypes.CDLL(str(library))
    functions.cutlass_ops_spec.restype = ctypes.c_char_p
    functions.cutlass_ops_launch.argtypes = [ctypes.POINTER(Call)]
    gemm = kernel.gemm
    if functions.cutlass_ops_spec().decode() != gemm.digest:
        raise RuntimeError(f"{library} computes another spec than {gemm.digest[:16]}")

    def launch(
        a: torch.Tensor,
        b: torch.Tensor,
        loads: Sequence[torch.Tensor],
        stores: Sequence[torch.Tensor],
        offsets: torch.Tensor | None = None,
    ) -> None:
        status = functions.cutlass_ops_launch(ctypes.byref(_call(gemm, a, b, loads, stores)))
        if status:
            raise RuntimeError(f"CUTLASS status {status} from {kernel.name} at a {tuple(a.shape)}, b {tuple(b.shape)}")

    return launch


def _call(
    gemm: Gemm, a: torch.Tensor, b: torch.Tensor, loads: Sequence[torch.Tensor], stores: Sequence[torch.Tensor]
) -> Call:
    a = a.reshape(-1, a.shape[-1]) if gemm.kind == "linear" else a
    (m, k), n = (a.shape[-2:] if gemm.a == "m k" else a.shape[-2:][::-1]), b.shape[-2 if gemm.b == "n k" else -1]
    device = torch.cuda.get_device_properties(a.device)
    addresses = [(ctypes.c_void_p * max(1, len(xs)))(*(x.data_ptr() for x in xs)) for xs in (loads, stores)]
    return Call(
        m,
        n,
        k,
        a.shape[0] if gemm.kind == "batched" else 1,
        a.stride(-2),
        b.stride(-2),
        a.data_ptr(),
        b.data_ptr(),
        *addresses,
        device.multi_processor_count,
        torch.cuda.current_stream(a.device).cuda_stream,
    )


def _nodes(gemm: Gemm, family: str) -> list[Node]:
    """The loads, ops and stores as nodes; the last one is the tree's result, the first store."""
    numbers: dict[str, int] = {}
    nodes: list[Node] = []

    def add(name: str, kind: str, reads: Sequence[int] = (), arguments: str = "{}") -> None:
        numbers.setdefault(name, len(nodes))
        nodes.append(Node(f"N::{kind}", tuple(reads), arguments, name))

    add(ACCUMULATOR, "Accumulator")
    source = family == "sm90"
    for n, load in enumerate(gemm.loads):
        kind, dtype = _OPERANDS[load.over], DTYPES[load.dtype]
        if source and kind == "Tile":
            add(load.name, "Source")
            source = False
        else:
            add(load.name, f"{kind}<{dtype}>", (), _loaded(kind, dtype, n))
    for n, op in enumerate(gemm.ops):
        add(op.value, f"Compute<Op{n}>", [numbers[arg] for arg in op.args if isinstance(arg, str)])
    for n, store in enumerate(gemm.stores[1:], 1):
        add(f"store {n}", f"Store<{DTYPES[store.dtype]}>", [numbers[store.value]], _stored(DTYPES[store.dtype], n))
    result, dtype = numbers[gemm.stores[0].value], DTYPES[gemm.stores[0].dtype]
    if family == "sm90":
        add("store 0", "Compute<Identity>", [result])
    else:
        add("store 0", f"Store<{dtype}>", [result], _stored(dtype, 0))
    return nodes


def _loaded(kind: str, dtype: str, n: int) -> str:
    address = f"call.load<{dtype}>({n})"
    strides = {"Tile": "call.n, _1{}, call.m * call.n", "Row": "_0{}, _1{}, call.n", "Column": "_1{}, _0{}, call.m"}
    return f"{{{{}}, {{{address}}}, {{}}}}" if kind == "Number" else f"{{{address}, {dtype}(0), {{{strides[kind]}}}}}"


def _stored(dtype: str, n: int) -> str:
    return f"{{call.store<{dtype}>({n}), {{call.n, _1{{}}, call.m * call.n}}}}"


def _functor(n: int, op: Op) -> str:
    letters = iter("xy")
    words = [next(letters) if isinstance(arg, str) else f"{float(arg)!r}f" for arg in op.args]
    parameters = ", ".join(f"float {word}" for word in words if word in "xy")
    body = f"{{ return elementwise::{op.op}({', '.join(words)}); }}"
    meaning = f"{op.value} = {op.op}({', '.join(map(str, op.args))})"
    return f"struct Op{n} {{ CUTLASS_DEVICE float operator()({parameters}) const {body} }};  // {meaning}"


def _config(kernel: Kernel, family: str, source: int | None) -> str:
    gemm, t = kernel.gemm, kernel.tiling
    operands = f"{DTYPES[gemm.dtype]}, {_LAYOUTS[gemm.a]}, {_LAYOUTS[gemm.b]}"
    result = DTYPES[gemm.stores[0].dtype]
    if family == "sm90":
        c = "void" if source is None else DTYPES[gemm.loads[source].dtype]
        tile, cluster = (f"cute::Shape<{', '.join(f'cute::_{x}' for x in row)}>" for row in _shapes(kernel))
        return f"sm90::Config<{operands}, {c}, {result}, {tile}, {cluster}, {str(t.pingpong).lower()}>"
    warp = f"GemmShape<{min(t.m // 2, 64)}, {min(t.n // 2, 64)}, {t.k}>"
    return f"sm80::Config<{operands}, {result}, GemmShape<{t.m}, {t.n}, {t.k}>, {warp}, {t.stages}>"


def _shapes(kernel: Kernel) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    t = kernel.tiling
    return (t.m, t.n, t.k), (t.cluster_m, t.cluster_n, 1)


def _noted(texts: list[str], between: str, end: str, nodes: list[Node]) -> list[str]:
    """The rows of a list with each node's number and name behind it."""
    marks = [between] * (len(texts) - 1) + [end]
    width = max(len(text) for text in texts) + len(end)
    rows = zip(texts, marks, enumerate(nodes), strict=True)
    return [f"{text + mark:<{width}}  // {n}: {node.name}" for text, mark, (n, node) in rows]


def _headers() -> Path:
    found = importlib.util.find_spec("cutlass_library")
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("CUTLASS's headers are not installed: pip install 'partitioner[cutlass]'")
    return Path(found.submodule_search_locations[0]) / "source" / "include"
