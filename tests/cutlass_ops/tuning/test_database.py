"""The kernel database: both ways through its file, what a size finds, what is no database."""

from __future__ import annotations

from pathlib import Path

import pytest
from specs import specs

from cutlass_ops.tuning import database
from cutlass_ops.tuning.database import Database, Measured

GELU, WGRAD = specs()["gelu"], specs()["wgrad"]


def _row(m: int, n: int, k: int, key: str = "k", gemm: object = GELU) -> Measured:
    return Measured(gemm.digest, gemm.a, m, n, k, key, "cute sm_90a 128x256x64", 1e-4, 1.2e-4, "eager")  # type: ignore[attr-defined]


def _database(*rows: Measured) -> Database:
    return Database("NVIDIA H100 80GB HBM3", "580.1", {"torch": "2.11.0"}, rows)


def test_through_a_file(tmp_path: Path) -> None:
    kept = _database(_row(4096, 512, 256), _row(2048, 512, 256, key=""))
    kept.save(tmp_path / "kernels.json")
    found = database.load(str(tmp_path / "kernels.json"))
    assert (found.device, found.driver, found.versions) == (kept.device, kept.driver, kept.versions)
    assert set(found.rows) == set(kept.rows)


def test_tokens_share_a_bucket_and_nothing_else_does() -> None:
    kept = _database(_row(4096, 512, 256), _row(512, 256, 4096, gemm=WGRAD))
    assert kept.look(GELU, 3000, 512, 256) == kept.rows[0]
    assert kept.look(WGRAD, 512, 256, 2049) == kept.rows[1]
    for sizes in ((2048, 512, 256), (4097, 512, 256), (4096, 511, 256), (4096, 512, 255)):
        assert kept.look(GELU, *sizes) is None
    assert kept.look(WGRAD, 500, 256, 4096) is None
    assert kept.look(specs()["gate"], 4096, 512, 256) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "rows": []}', '{"version": 1, "rows": [{"m": 1}]}'])
def test_what_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.json is no kernel database"):
        database.load(str(path))
