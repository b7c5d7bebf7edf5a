"""Tables of measured kernels: planted ones come out as they were planted, and what can't be priced is named."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from partitioner import Cluster
from partitioner.hardware.device import Attention, Products
from partitioner.hardware.link import Protocols, TokenExchange
from tools.main import main
from tools.measured_kernels.fit_kernels import fit_attention, fit_exchange, fit_products, fit_protocols
from tools.measured_kernels.kernel_prices import (
    attention_seconds,
    collective_seconds,
    exchange_seconds,
    product_seconds,
)
from tools.measured_kernels.kernel_tables import COLUMNS, Measured, read_tables

H100 = Cluster.load("dgx-h100")
SHAPES = [(m, n, k) for m in (512, 1024, 4096, 16384) for n in (1024, 2560, 8192) for k in (1024, 6144, 16384)]
PREFILLS = [(b, s, 32, kv, d, 0) for b in (1, 4) for s in (2048, 8192, 16384) for kv in (1, 8) for d in (64, 128)]
MIXTURES = [(1, h, 4**t, k, n) for h in (2048, 7168) for t in range(9) for k, n in ((1, 16), (8, 256))]  # one node
MESSAGES = [(n, 2**size) for n in (2, 4, 8) for size in range(10, 30, 2)]


def group(table: str, of: str, sizes: Sequence[Sequence[int]], system: str = "h100_sxm") -> Measured:
    return Measured(table, system, of, np.array(sizes, float), np.ones(len(sizes)))


def planted() -> list[Measured]:
    """Each kind of kernel, 2 % slower than it is priced."""
    ring, direct = H100.node.ring, H100.node.direct
    assert ring is not None
    assert direct is not None
    rows = [group("gemm", of, SHAPES) for of in ("bfloat16", "fp8")]
    found = [replace(row, seconds=1.02 * product_seconds(row, H100.device)) for row in rows]
    row = group("attention_forward", "bfloat16", PREFILLS)
    found.append(replace(row, seconds=1.02 * attention_seconds(row, H100.device)))
    for op in ("all_reduce", "alltoall"):
        row = group("nccl", op, MESSAGES)
        found.append(replace(row, seconds=1.02 * collective_seconds(row, ring, direct)))
    for of in ("dispatch", "combine"):
        row = group("expert_dispatch", of, [*MIXTURES, (2, 7168, 4096, 8, 256)])
        found.append(replace(row, seconds=1.02 * exchange_seconds(row, H100)))
    return found


def write(folder: Path, groups: Sequence[Measured], zipped: bool = True) -> Path:
    for table, columns in COLUMNS.items():
        told = "op" if table == "nccl" else "dtype"
        chosen = [g for g in groups if g.table == table]
        name = folder / f"{table}.csv{'.gz' if zipped else ''}"
        with gzip.open(name, "wt", newline="") if zipped else name.open("w", newline="") as file:
            out = csv.writer(file)
            if table == "expert_dispatch":  # two times a row
                out.writerow(["system", *columns, *(f"{g.of}_us" for g in chosen)])
                times = zip(*(g.seconds * 1e6 for g in chosen), strict=True)
                sizes = chosen[0].sizes if chosen else ()
                out.writerows([chosen[0].system, *map(int, row), *us] for row, us in zip(sizes, times, strict=True))
                continue
            out.writerow(["system", told, *columns, "latency_ms"])
            for g in chosen:
                pairs = zip(g.sizes, g.seconds, strict=True)
                out.writerows([g.system, g.of, *map(int, sizes), seconds * 1e3] for sizes, seconds in pairs)
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_planted_tables_come_back(tmp_path: Path, zipped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, [*planted(), group("gemm", "bfloat16", SHAPES, "tpu"), group("gemm", "int8_wo", SHAPES)],
                   zipped)  # fmt: skip
    assert main(["validate", "--kernels", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["table"], row["of"], row["rows"]) for row in found["tables"]] == [
        ("gemm", "bfloat16", 36), ("gemm", "fp8", 36), ("attention_forward", "bfloat16", 24),
        ("nccl", "all_reduce", 30), ("nccl", "alltoall", 30),
        ("expert_dispatch", "dispatch", 37), ("expert_dispatch", "combine", 37),
    ]  # fmt: skip
    for row in found["tables"]:
        assert [row["mean"], row["median"]] == pytest.approx([1 - 1 / 1.02] * 2, rel=1e-3)
        assert row["bias"] == pytest.approx(-row["mean"])
    assert [(row["system"], row["of"], row["reason"]) for row in found["unpriced"]] == [
        ("tpu", "bfloat16", "no preset stands for tpu"),
        ("h100_sxm", "int8_wo", "H100-SXM5-80GB has no products of int8_wo"),
    ]
    assert main(["validate", "--kernels", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "2.0 %" in shown
    assert "no preset stands for tpu" in shown


def test_attention_that_beats_the_peak_is_of_a_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = group("attention_forward", "bfloat16", PREFILLS)
    windowed = replace(row, sizes=np.array([[*p[:5], 256] for p in PREFILLS], float))
    seconds = attention_seconds(windowed, H100.device)
    folder = write(tmp_path, [replace(row, seconds=seconds)])
    assert main(["validate", "--kernels", str(folder), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["tables"]
    assert found["mean"] < 1e-6
    assert "of 24 rows are faster than its peak allows if queries see all keys: all are taken for a window of 256" in (
        found["note"]
    )
    assert main(["validate", "--kernels", str(write(tmp_path, [replace(windowed, seconds=seconds)])), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"][0]["note"] == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("system,dtype,m,n,k,latency_ms\nh100_sxm,bfloat16,1,2,x,3\n", "csv, line 2: k must be a whole number from 1"),
        ("system,dtype,m,n,k,latency_ms\nh100_sxm,bfloat16,1,2,3,nan\n", "line 2: latency_ms must be a positive"),
        ("system,dtype,m,n,latency_ms\nh100_sxm,bfloat16,1,2,3\n", "line 2: k must be a whole number from 1, it is ''"),
        ("system,dtype,m,n,k,latency_ms\nh100_sxm,bfloat16,1,2.5,3,4\n", "line 2: n must be a whole number from 1"),
        ("system,m,n,k,latency_ms\nh100_sxm,1,2,3,4\n", "line 2: the column dtype is missing"),
    ],
)  # fmt: skip
def test_a_broken_table_is_named(tmp_path: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gemm.csv").write_text(text)
    assert main(["validate", "--kernels", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err.replace("\n", " ")


def test_no_tables_and_both_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--kernels", str(tmp_path)]) == 2
    assert "holds no tables of kernels: give a folder with gemm.csv.gz" in capsys.readouterr().err.replace("\n", " ")
    assert main(["validate", "runs.csv", "--kernels", str(tmp_path)]) == 2
    assert "a file of runs, or a folder of kernels with --kernels, not both" in capsys.readouterr().err
    assert main(["validate", "--kernels", str(tmp_path), "--rows"]) == 2
    assert "--rows lists runs, and --kernels has none" in capsys.readouterr().err
    (tmp_path / "gemm.csv.gz").write_bytes(b"no gzip")
    assert main(["validate", "--kernels", str(tmp_path)]) == 2
    assert "gemm.csv.gz cannot be read" in capsys.readouterr().err


def test_a_fit_finds_what_was_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.measured_kernels.fit_kernels.STARTS", 1)
    device = H100.device
    row = Products(("bfloat16",), 0.8, 0.85, tile_loss=20.0, tile_depth=200.0, fixed_seconds=4e-6, norm=8.0)
    shapes = group("gemm", "bfloat16", SHAPES)
    _, seen, aside = fit_products(replace(shapes, seconds=product_seconds(shapes, device, row)), device)
    assert max(seen, aside) < 0.03
    told = Attention(0.7, 300.0, 200.0, 1e-5, 0.2, 900.0, backward=device.attention.backward)
    prefills = group("attention_forward", "bfloat16", PREFILLS)
    _, seen, aside = fit_attention(replace(prefills, seconds=attention_seconds(prefills, device, told)), device)
    assert max(seen, aside) < 0.03
    lines = Protocols((5e-6, 2e-5), (1e-6, 1e-6), (2e10, 3e11), {"2": 0.8, "4": 0.9, "8": 1.0}, {"all_reduce": 1.1})
    messages = [group("nccl", op, MESSAGES) for op in ("all_gather", "all_reduce")]
    messages = [replace(m, seconds=collective_seconds(m, lines, lines)) for m in messages]
    _, seen, aside = fit_protocols(messages, 4.5e11, lines=2)
    assert max(seen, aside) < 0.08
    exchange = TokenExchange(3e-5, 2e-8, 5e11, 1e12)
    tokens = group("expert_dispatch", "combine", MIXTURES)
    _, seen, aside = fit_exchange(replace(tokens, seconds=exchange_seconds(tokens, H100, exchange)), H100)
    assert max(seen, aside) < 0.03


def test_a_link_without_timings_of_experts_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [replace(row, system="l40s") for row in planted() if row.table == "expert_dispatch"]
    assert main(["validate", "--kernels", str(write(tmp_path, rows)), "--json"]) == 0
    for of, row in zip(("dispatch", "combine"), json.loads(capsys.readouterr().out)["unpriced"], strict=True):
        assert row["reason"] == f"l40s-8 has no {of} of experts' tokens measured inside a node"


def test_a_third_is_kept_aside_by_shape(tmp_path: Path) -> None:
    rows = read_tables(write(tmp_path, planted()))
    bf16, fp8 = (row for row in rows if row.table == "gemm")
    assert (bf16.aside == fp8.aside).all()
    assert 0.15 < bf16.aside.mean() < 0.5
