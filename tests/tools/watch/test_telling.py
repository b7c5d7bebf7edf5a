"""All listeners hear of what rank 0 tells and of the end; one that fails is left out, and the others are told so."""

from __future__ import annotations

import json

import pytest
from shown import plan
from watch.events import step

from partitioner.errors import InputError
from tools.watch.metrics import Event
from tools.watch.telling import MARK, Telling


class Heard:
    """Keeps what it is told; ``full``: fails from the second step on."""

    def __init__(self, full: bool = False) -> None:
        self.events, self.full, self.closed = list[Event](), full, 0

    def __str__(self) -> str:
        return "a listener"

    def tell(self, event: Event) -> None:
        if self.full and event.get("step") == 2:
            raise OSError("No space left on device")
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1


def test_lines_are_events_or_what_the_users_code_printed(capsys: pytest.CaptureFixture[str]) -> None:
    heard = Heard()
    with Telling(plan(), [heard]) as telling:
        telling.read("printed\n")
        telling.read(f"begun {MARK}{json.dumps(step(1))}\n")
        telling.status = 0
    assert capsys.readouterr().out == "printed\nbegun "
    assert telling.events == [step(1)]
    first, end = heard.events
    assert first["step"] == 1
    assert first["mfu"] > 0
    assert end == {"status": 0}
    assert heard.closed == 1


def test_a_listener_that_fails_is_left_out_and_training_goes_on() -> None:
    heard, full = Heard(), Heard(full=True)
    with Telling(plan(), [full, heard]) as telling:
        for number in (1, 2, 3):
            telling.tell(step(number))
    assert [event["step"] for event in telling.events] == [1, 2, 3]
    assert [event["step"] for event in full.events] == [1]
    told = "a listener: No space left on device; nothing more is told there"
    assert [event.get("step", event.get("warning")) for event in heard.events] == [1, 2, told, 3, None]


@pytest.mark.parametrize(
    ("error", "status"), [(InputError("the mend"), 2), (ValueError("bad"), 1), (SystemExit(143), 143)]
)
def test_the_end_tells_why(error: BaseException, status: int) -> None:
    heard = Heard()
    with pytest.raises(type(error)), Telling(plan(), [heard]):
        raise error
    assert heard.events == [{"status": status, "why": f"{type(error).__name__}: {error}"}]
