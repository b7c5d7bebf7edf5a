"""What experts chose is a plan of the space that is searched for their program, at the price of its row, and no better
than what search finds there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.models.plain_decoder import Dimensions
from tools.validate.command import OWN_RUNS
from tools.validate.experts import WORTH_SAYING, configurations, expert, main
from tools.validate.predict_run import Rerun
from tools.validate.published_runs import Run, read
from tools.validate.published_sources import sources

RERUN, RUNS = Rerun(sources()), {run.name: run for run in read(OWN_RUNS)}
LLAMA_8B = RUNS["dgxc-0131"]
GPT_175B = Dimensions(96, 12288, 96, 96, 49152, False, 51200, True, 2048, False)
LLAMA_405B = Dimensions(126, 16384, 128, 8, 53248, True, 128256, False, 8192, False)


def mlperf(size: Dimensions, gpus: int, global_batch: int, measured: float, **decisions: int) -> Run:
    """A configuration of MLPerf Training 3.1 or 5.0, H100, as its script has it."""
    return replace(
        LLAMA_8B, size=size, gpus=gpus, precision="fp8", sequence_parallel=True, overlap_tensor=True, micro_batch=1,
        global_batch=global_batch, step_seconds=measured, **decisions,
    )  # fmt: skip


PUBLISHED = {
    **{name: run for name, run in RUNS.items() if run.group == "dgxc"},
    "mlperf 175B on 768": mlperf(GPT_175B, 768, 3072, 11.0754, tp=4, pp=8, virtual=12, cp=1, dp=24),
    "mlperf 405B on 2048": mlperf(LLAMA_405B, 2048, 1152, 14.222, tp=8, pp=8, virtual=8, cp=2, dp=16),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_experts_chose_is_in_the_space(name: str) -> None:
    run = PUBLISHED[name]
    found = expert((run,), RERUN, searched=False)
    assert not found.reason
    assert found.plan is not None
    assert found.plan.parallelism.mesh == {a: n for a, n in run.degrees.items() if n > 1 or a != "cp"}
    assert found.plan.cost.step_seconds == pytest.approx(RERUN.predict(run).step_seconds, rel=1e-3)
    assert abs(found.error or 0.0) < 0.12


def test_ends_of_the_model_take_slots_where_layers_do_not_divide() -> None:
    found = expert((PUBLISHED["mlperf 405B on 2048"],), RERUN, searched=False)
    assert found.plan is not None
    assert [sum(unit.startswith("blocks.") for unit in s) for s in found.plan.decisions.stages] == [1, *[2] * 62, 1]


def test_search_finds_what_experts_moved_to_and_says_why() -> None:
    """NVIDIA's recipe for 15B was tp 4 with micro-batches of 4, 2.83 s, and is tp 2 with micro-batches of 2, 2.66 s."""
    after = RUNS["dgxc-0165"]
    before = replace(after, tp=4, dp=4, micro_batch=4, step_seconds=2.83)
    was, now = (expert((run,), RERUN) for run in (before, after))
    for found in (was, now):
        assert found.best is not None
        assert (found.best.parallelism.mesh, found.best.parallelism.micro_batch) == ({"pp": 1, "dp": 8, "tp": 2}, 2)
    assert now.ratio == 1.0
    assert now.why == ""
    assert was.ratio is not None
    assert was.ratio > WORTH_SAYING
    assert was.why.startswith("tp 2 -> 4, micro-batch 2 -> 4 costs")


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    unread, unknown = (["nowhere.csv"], "nowhere.csv cannot be read"), ([OWN_RUNS, "--group", "x"], "no row of group x")
    for words, told in (unread, unknown):
        assert main(words) == 2
        assert told in capsys.readouterr().err


def test_rows_of_one_configuration_go_together() -> None:
    again = replace(LLAMA_8B, step_seconds=2 * LLAMA_8B.step_seconds, name="again")
    other = replace(LLAMA_8B, recompute="full")
    rows, alone = configurations([LLAMA_8B, other, again])
    assert alone == (other,)
    assert expert(rows, RERUN, searched=False).measured_seconds == 1.5 * LLAMA_8B.step_seconds
