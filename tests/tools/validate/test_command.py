"""Published runs are predicted; what can't be expressed is listed with its reason; broken rows are named."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from partitioner import Cluster
from tools.main import main
from tools.validate.command import OWN_RUNS, spearman
from tools.validate.kept_aside import kept_aside
from tools.validate.published_runs import read

COLUMNS = [
    "run_id", "group", "model", "layers", "hidden", "heads", "kv_heads", "ffn", "gated_mlp", "vocab", "tied_embeddings",
    "seq", "attention", "gpu", "cluster", "gpus", "gpus_per_node", "interconnect", "tp", "pp", "virtual_stages", "cp",
    "dp", "sequence_parallel", "recompute", "zero", "zero_group", "grad_overlap", "tp_overlap", "compiled",
    "micro_batch", "global_batch", "precision", "step_seconds", "peak_gb", "memory_unit", "framework", "notes",
    "source",
]  # fmt: skip

# Three measured runs: MosaicML's MPT-125m, Megatron-LM's 22B as its 2022 paper has it, NVIDIA's Llama 3 8B recipe.
MPT = (
    "a,llmfoundry,MPT-125m,12,768,12,12,3072,0,50368,1,2048,flash,A100-SXM-80GB,a100-roce1600,8,8,"
    "NVLink3; RoCE 1600Gb/s per node,1,1,1,1,8,0,none,3,,1,,,40.0,640,bf16,1.1471,,,Composer/llm-foundry,,"
)
MEGATRON = (
    "b,seqsel,GPT 22B,48,6144,64,64,24576,0,51200,1,2048,unfused,A100-SXM-80GB,selene-a100,8,8,IB HDR,8,1,1,1,1,1,"
    "selective,0,,0,,,4.0,4,fp16,1.1,,,Megatron-LM,,"
)
LLAMA = (
    "c,dgxc,Llama3-8B,32,4096,32,8,14336,1,128256,0,8192,flash,H100-SXM-80GB,dgx-h100,8,8,IB NDR 8x400Gb/s per node,1,"
    "1,1,2,4,0,none,1,,1,,,1.0,128,bf16,12.39,70.833,1e9 bytes,NeMo 2.0,,"
)


def written(folder: Path, *rows: str, **changes: str) -> Path:
    path = folder / "runs.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        for row in rows:
            cells = dict(zip(COLUMNS, next(csv.reader([row])), strict=True))
            out.writerow((cells | changes).values())
    return path


def test_measured_runs_are_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, MPT, MEGATRON, LLAMA)
    assert main(["validate", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["run_id"] for row in found["rows"]] == ["a", "b", "c"]
    for row in found["rows"]:
        assert abs(row["error"]) < 0.12, row
    memory = found["rows"][2]
    tensors = memory["predicted_bytes"] * Cluster.load("dgx-h100").device.allocator_share
    assert tensors == pytest.approx(memory["measured_bytes"], rel=0.1)
    whole = next(g for g in found["groups"] if g["name"] == "all")
    assert whole["mean"] == pytest.approx(sum(abs(row["error"]) for row in found["rows"]) / 3)
    assert not found["refused"]


@pytest.mark.parity
def test_the_configuration_of_a_row_is_what_is_priced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds: dict[str, float] = {}
    for name, changes in {
        "plain": {}, "twice": {"global_batch": "1280"}, "again": {"recompute": "full"},
        "slow": {"attention": "unfused"}, "other": {"gpu": "H100-SXM-80GB"},
    }.items():  # fmt: skip
        main(["validate", str(written(tmp_path, MPT, **changes)), "--json"])
        seconds[name] = json.loads(capsys.readouterr().out)["rows"][0]["predicted_seconds"]
    assert seconds["twice"] == pytest.approx(2 * seconds["plain"], rel=0.05)
    assert seconds["plain"] < seconds["again"] < 1.5 * seconds["plain"]
    assert seconds["slow"] > 1.2 * seconds["plain"]
    assert seconds["other"] < 0.7 * seconds["plain"]


def rows(path: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["validate", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rows"]


def test_what_a_row_leaves_open_is_priced_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stated,) = rows(written(tmp_path, LLAMA), capsys)
    assert stated["otherwise_seconds"] == {}
    (left,) = rows(written(tmp_path, LLAMA, recompute="", zero=""), capsys)
    assert left["predicted_seconds"] == stated["predicted_seconds"]
    otherwise = left["otherwise_seconds"]
    assert otherwise.keys() == {"all blocks are recomputed", "ZeRO is 0"}
    (full,) = rows(written(tmp_path, LLAMA, recompute="full"), capsys)
    (zero,) = rows(written(tmp_path, LLAMA, zero="0"), capsys)
    assert otherwise == {
        "all blocks are recomputed": full["predicted_seconds"], "ZeRO is 0": zero["predicted_seconds"]
    }  # fmt: skip
    assert main(["validate", str(written(tmp_path, LLAMA, recompute=""))]) == 0
    assert "whether all blocks are recomputed is not said by 1 of 1 rows" in " ".join(capsys.readouterr().out.split())


def test_adapters_beside_a_frozen_base_take_no_gradients_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of three products are left, and hardly any state is held."""
    notes = "LoRA: base weights frozen (rank 16 adapters in the reference)"
    (whole,), (adapted,) = rows(written(tmp_path, LLAMA), capsys), rows(written(tmp_path, LLAMA, notes=notes), capsys)
    assert 0.6 < adapted["predicted_seconds"] / whole["predicted_seconds"] < 0.8
    assert adapted["predicted_bytes"] < whole["predicted_bytes"] - 8e9 * (2 + 12 / 8) * 0.95


def test_tensors_are_compared_with_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = "1e9 bytes, torch peak_memory_usage"
    (reserved,) = rows(written(tmp_path, LLAMA), capsys)
    (own,) = rows(written(tmp_path, LLAMA, memory_unit=unit), capsys)
    assert own["predicted_bytes"] == pytest.approx(0.9 * reserved["predicted_bytes"])


def predicted(folder: Path, capsys: pytest.CaptureFixture[str], **changes: str) -> float:
    main(["validate", str(written(folder, MPT, gpu="H100-SXM-80GB", tp="2", dp="4", **changes)), "--json"])
    return json.loads(capsys.readouterr().out)["rows"][0]["predicted_seconds"]


def test_a_blank_sequence_parallel_is_what_the_program_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [predicted(tmp_path, capsys, framework="nanotron", sequence_parallel=word) for word in ("", "1", "0")]
    assert found[0] == found[1] != found[2]
    other = [predicted(tmp_path, capsys, sequence_parallel=word) for word in ("", "0")]
    assert other[0] == other[1]


def test_few_bits_scaled_by_the_row_are_gathered_in_sixteen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"framework": "torchtitan", "precision": "fp8", "sequence_parallel": "1"}
    whole, rows = (predicted(tmp_path, capsys, **row, notes=f"float8 {word}") for word in ("tensorwise", "rowwise"))
    assert whole < rows


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"notes": "LoRA"}, "its base is frozen (LoRA), of adapters whose rank is not stated"),
        ({"gpu": "TPU-v5p"}, "no preset for GPU TPU-v5p"),
        ({"framework": "Colossal"}, "nothing is known of the program Colossal"),
        ({"dp": "4"}, "tp x pp x cp x dp is 4, gpus 8"),
        ({"precision": "fp7"}, "precision fp7 is none of bf16"),
        ({"precision": "fp8"}, "has no peak for products in float8_e4m3fn"),
        ({"layers": ""}, "the column layers is blank"),
        ({"recompute": "some"}, "recompute some is none of none"),
        ({"micro_batch": "7"}, "global_batch 640 is no multiple"),
        ({"heads": "7", "kv_heads": "7"}, "heads 7 does not divide 768"),
    ],
)
def test_what_can_not_be_expressed_is_listed(
    changes: dict[str, str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(written(tmp_path, MPT, **changes)), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["refused"]
    assert told in row["reason"]
    assert row["line"] == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": "0"}, "line 2: layers must be a positive number, it is '0'"),
        ({"step_seconds": "-1"}, "line 2: step_seconds must be a positive number"),
        ({"hidden": "76.5"}, "line 2: hidden must be a whole number"),
        ({"attention": "quick"}, "line 2: attention must be one of flash, unfused"),
        ({"zero": "7"}, "line 2: zero must be one of 0, 1, 2, 3"),
    ],
)
def test_a_broken_row_is_named(
    changes: dict[str, str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(written(tmp_path, MPT, **changes))]) == 2
    assert told in capsys.readouterr().err.replace("\n", " ")


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "nowhere.csv"]) == 2
    assert "nowhere.csv cannot be read" in capsys.readouterr().err


def test_equal_rows_are_the_noise_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = MPT.replace("1.1471", "1.2")
    assert len(read(written(tmp_path, MPT, again))) == 2
    main(["validate", str(tmp_path / "runs.csv"), "--json"])
    assert json.loads(capsys.readouterr().out)["noise_floor"] == pytest.approx(0.0529 / 1.17355)


def test_rank_correlation_is_scipy_s() -> None:
    a, b = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0], [2.0, 7.0, 1.0, 8.0, 2.0, 8.0, 1.0, 8.0]
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(a, a) == pytest.approx(1)
    assert spearman(a, [1.0] * 8) == 0


def test_a_third_of_each_source_s_models_is_kept_from_fits(tmp_path: Path) -> None:
    rows = [MPT.replace("MPT-125m", f"MPT-{n}") for n in range(6)]
    runs = read(written(tmp_path, *rows))
    aside = kept_aside(runs)
    assert len({run.model for run in runs if run.line in aside}) == 2
    alone = read(written(tmp_path, *([MPT] * 9)))
    assert len(kept_aside(alone)) in (0, 9)  # equal runs go together


def test_runs_come_with_the_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All can be expressed, each with its source; one is predicted."""
    runs = read(OWN_RUNS)
    assert len(runs) >= 30
    assert {run.group for run in runs} >= {"sc21", "seqsel", "dgxc", "torchtitan", "llmfoundry", "internevo"}
    assert not [run.name for run in runs if run.strange]
    with Path(OWN_RUNS).open(newline="") as file:
        assert all(row["source"] for row in csv.DictReader(file))
    small = [run for run in runs if run.model == "MPT-125m"][:1]
    monkeypatch.setattr("tools.validate.command.read", lambda path: small if path == OWN_RUNS else [])
    assert main(["validate", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["run_id"] == small[0].name
    assert abs(row["error"]) < 0.2
