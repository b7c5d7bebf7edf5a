"""``partitioner serve`` on one rank and on several: what is answered is what ``generate`` makes of the same prompts."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from http_client import CHAT, COMPLETIONS, asked, got, sent
from served import LENGTH, ROWS, Served, byte_tokenizer, plan, rss, served

from runtime.generate.generate import generate
from tools.generate.rank import Model, loaded
from tools.generate.text_coder import text_coder

PROMPTS = ("a", "hello there", "def main(", "é€ and so on", "x" * 100, "0123456789" * 9)
MOST = 24
GREEDY = {"max_tokens": MOST, "temperature": 0}
SECONDS = 60.0  # that anything may take
pytestmark = pytest.mark.timeout(300)  # two servers start before the first test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_tokenizer(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def one_plan(folder: Path) -> Path:
    return plan(folder / "plan1.json")


@pytest.fixture(scope="module")
def servers(folder: Path, one_plan: Path) -> Iterator[dict[int, Served]]:
    """On so many ranks."""
    found = {1: served(str(one_plan), "--tokenizer", str(folder), "--name", "small")}
    try:
        two = plan(folder / "plan2.json", "--ranks", "2", "--pin", "tp=2")
        found[2] = served(str(two), "--tokenizer", str(folder), "--name", "small", "--max-unread", "50")
        for server in found.values():
            server.wait_for_port()
        yield found
    finally:
        for server in found.values():
            server.stop()


@pytest.fixture(scope="module")
def greedy(servers: dict[int, Served], folder: Path, one_plan: Path) -> dict[str, str]:
    """What ``generate`` makes of each prompt."""
    model = loaded(Model(str(one_plan), None, None, str(folder), ROWS, 64, LENGTH, 1.0))
    coder = text_coder(str(folder))
    answers = generate(model, [coder.prompt(text) for text in PROMPTS], most=MOST, rows=ROWS)
    return {text: coder.decode(answer.tokens) for text, answer in zip(PROMPTS, answers, strict=True)}


@pytest.mark.parametrize("ranks", [1, 2])
def test_answers_are_those_of_generate_whole_and_streamed(
    servers: dict[int, Served], greedy: dict[str, str], ranks: int
) -> None:
    port = servers[ranks].port
    with ThreadPoolExecutor(12) as pool:
        whole = list(pool.map(lambda text: asked(port, COMPLETIONS, {"prompt": text, **GREEDY}), PROMPTS))
        streamed = list(
            pool.map(lambda text: asked(port, COMPLETIONS, {"prompt": text, "stream": True, **GREEDY}), PROMPTS)
        )
    together = asked(port, COMPLETIONS, {"prompt": list(PROMPTS), **GREEDY}).document
    assert [found.text for found in whole] == list(greedy.values())
    assert [found.streamed for found in streamed] == list(greedy.values())
    assert [choice["text"] for choice in together["choices"]] == list(greedy.values())
    assert {found.finish for found in whole} == {"length"}
    assert len(set(greedy.values())) > len(PROMPTS) // 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_dialogue_is_answered_as_its_text_is(servers: dict[int, Served], ranks: int) -> None:
    port = servers[ranks].port
    found = asked(port, CHAT, {"messages": [{"role": "user", "content": "hi"}], **GREEDY})
    assert found.text == asked(port, COMPLETIONS, {"prompt": "[user]hi[assistant]", **GREEDY}).text
    stop = found.text[5:7]
    stopped = asked(port, CHAT, {"messages": [{"role": "user", "content": "hi"}], "stop": stop, **GREEDY})
    assert (stopped.text, stopped.finish) == (found.text.partition(stop)[0], "stop")


def test_draws_hang_on_the_seed_alone(servers: dict[int, Served]) -> None:
    """Not on what else is answered, nor on how many ranks there are."""

    def drawn(ranks: int, seed: int) -> str:
        body = {"prompt": "hello", "max_tokens": 30, "seed": seed, "temperature": 0.8, "top_p": 0.9, "top_k": 50}
        return asked(servers[ranks].port, COMPLETIONS, body).text

    alone = [drawn(1, seed) for seed in range(6)]
    assert len(set(alone)) == 6
    for ranks in (1, 2):
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda seed, own=ranks: drawn(own, seed), range(6))) == alone


def test_clients_that_go_leave_their_rows(servers: dict[int, Served], greedy: dict[str, str]) -> None:
    port = servers[2].port
    long = {"prompt": "a", "max_tokens": LENGTH - 1, "temperature": 0}
    for _ in range(3):
        clients = [sent(port, {**long, "stream": n % 2 == 0}) for n in range(2 * ROWS)]
        while not got(port, "/health").document["running"]:
            pass
        for client in clients:
            client.close()
    assert asked(port, COMPLETIONS, {"prompt": "a", **GREEDY}).text == greedy["a"]
    assert is_idle(port)


def test_what_can_not_be_is_refused_and_hurts_nothing(servers: dict[int, Served], greedy: dict[str, str]) -> None:
    for server in servers.values():
        for body in ({"prompt": [256]}, {"prompt": [-1]}, {"prompt": "a" * LENGTH}, {"prompt": "a", "max_tokens": 256}):
            assert asked(server.port, COMPLETIONS, body).status == 400
        assert asked(server.port, COMPLETIONS, {"prompt": "a", **GREEDY}).text == greedy["a"]
        assert got(server.port, "/v1/models").document["data"][0]["id"] == "small"


def test_who_waits_uses_nothing(servers: dict[int, Served]) -> None:
    def used() -> float:
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in servers[2].ranks]
        return sum(int(own[11]) + int(own[12]) for own in fields) / 100

    before = used()
    time.sleep(2)
    assert used() - before < 0.2


def test_a_signal_ends_it_when_its_answers_are_whole(servers: dict[int, Served]) -> None:
    server = servers[1]
    with ThreadPoolExecutor(1) as pool:
        body = {"prompt": "a", "max_tokens": LENGTH - 1, "temperature": 0, "stream": True}
        answer = pool.submit(asked, server.port, COMPLETIONS, body)
        while not got(server.port, "/health").document["running"]:
            pass
        server.process.send_signal(signal.SIGINT)
        assert answer.result().events[-1]["choices"][0]["finish_reason"] == "length"
    status, told = server.ended()
    assert status == 128 + signal.SIGINT
    assert told.endswith("stopped by SIGINT as asked\n")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 1)


def test_a_rank_that_fails_ends_all_and_is_named(servers: dict[int, Served]) -> None:
    server = servers[2]
    client = sent(server.port, {"prompt": "a", "max_tokens": LENGTH - 1, "stream": True})
    os.kill(server.ranks[1], signal.SIGKILL)
    status, told = server.ended()
    assert status == 1
    assert "rank 1 failed" in told
    with client:
        while client.recv(65536):
            pass


def is_idle(port: int) -> bool:
    """Whether all rows get free."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found = got(port, "/health").document
        if not found["running"] and not found["waiting"]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parity
@pytest.mark.timeout(500)
@pytest.mark.parametrize("pins", [("dp=2",), ("tp=2",), ("pp=2",)])
def test_a_storm_loses_nothing(folder: Path, pins: tuple[str, ...]) -> None:
    """Three times 200 requests at once, of which some are broken, cut or not read; memory comes back."""
    words = [word for pin in pins for word in ("--pin", pin)]
    two = plan(folder / f"{pins[0]}.json", "--ranks", "2", *words)
    server = served(str(two), "--tokenizer", str(folder), "--max-queue", "300", "--max-unread", "20")
    try:
        port = server.wait_for_port()
        alone = {n: drawn_text(port, n) for n in range(200) if n % 5 < 3}
        used = list[int]()
        for _ in range(3):
            with ThreadPoolExecutor(200) as pool:
                wrong = [found for found in pool.map(lambda n: one_of_storm(port, n, alone), range(200)) if found]
            assert wrong == []
            assert is_idle(port)
            used.append(sum(map(rss, server.ranks)))
        assert used[2] < used[0] + 10_000_000, used
        assert got(port, "/health").document == {"status": "ok", "running": 0, "waiting": 0, "rows": health_rows(pins)}
        server.process.send_signal(signal.SIGTERM)
        assert server.ended()[0] == 128 + signal.SIGTERM
    finally:
        server.stop()


def health_rows(pins: tuple[str, ...]) -> int:
    return ROWS * 2 if "dp=2" in pins else ROWS


def body_of(n: int) -> dict[str, object]:
    return {"prompt": f"text {n}" * (1 + n % 7), "max_tokens": 10 + n % 30, "seed": n, "temperature": n % 3 / 2}


def drawn_text(port: int, n: int) -> str:
    return asked(port, COMPLETIONS, body_of(n)).text


def one_of_storm(port: int, n: int, alone: dict[int, str]) -> str:
    """The ``n``-th of many at once; what was wrong with it."""
    body = body_of(n)
    if n % 5 == 3:
        found = asked(port, COMPLETIONS, b'{"prompt": ' + bytes([n]) * n, seconds=200)
        return "" if found.status == 400 else f"{n}: {found}"
    if n % 5 == 4:
        client = sent(port, body | {"max_tokens": 150, "stream": n % 2 == 0}, window=2048)
        threading.Event().wait(n % 20 / 10)
        client.close()
        return ""
    streams = n % 5 == 2
    found = asked(port, COMPLETIONS, body | {"stream": streams}, seconds=200)
    text = found.streamed if streams else found.text
    return "" if text == alone[n] else f"{n}: {text!r} is not {alone[n]!r}"
