"""A bar holds what its columns have room for; off a terminal a line holds it all."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from watch.events import step

from tools.watch.metrics import Event
from tools.watch.terminal import Terminal, words

TOLD: Event = step(3, tokens_per_second=123456.0, mfu=0.0421, predicted_seconds=0.25)
ALL = "loss 5.2500, 500 ms a step (predicted 250 ms), 123,500 tokens/s, MFU 4.2 %"


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (None, ALL),
        (len(ALL), ALL),
        (len(ALL) - 1, "loss 5.2500, 500 ms a step, 123,500 tokens/s, MFU 4.2 %"),
        (50, "loss 5.2500, 500 ms, 123,500 tokens/s, MFU 4.2 %"),
        (40, "loss 5.2500, 500 ms, MFU 4.2 %"),
        (20, "loss 5.2500, 500 ms"),
        (5, "loss 5.2500, 500 ms"),
    ],
)
def test_what_weighs_least_is_left_out_first(room: int | None, said: str) -> None:
    assert words(TOLD, room) == said


def test_skipped_steps_and_samples_are_told() -> None:
    told = {key: value for key, value in TOLD.items() if key != "tokens_per_second"} | {"samples_per_second": 12.0}
    assert words(told | {"loss": None, "skipped": 2}, 50) == "loss no number, 500 ms, MFU 4.2 %, 2 skipped"
    assert "12 samples/s" in words(told)


def test_a_line_holds_it_all_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(1000) as terminal:
        for number in (3, 4):  # the second within a second of the first
            terminal.tell(TOLD | {"step": number})
        terminal.tell({"saving": "a/b"})
        terminal.tell({"warning": "[slow]"})
    assert capsys.readouterr().err == f"step 3 of 1,000: {ALL}\nwarning: [slow]\n"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_bar_stays_on_its_line(width: int) -> None:
    out = io.StringIO()
    with Terminal(100_000, Console(file=out, width=width, force_terminal=True, color_system=None)) as terminal:
        terminal.tell(TOLD | {"step": 12_345})
    last = out.getvalue().split("\r")[-1].removeprefix("\x1b[2K").splitlines()[0]
    assert len(last) <= width
    assert "…" not in last
    assert " 12345/100000 " in last
    assert [part in last for part in ("loss 5.2500, 500 ms", "tokens/s, MFU 4.2 %", "predicted")] == [
        True, width > 60, width == 200,
    ]  # fmt: skip
