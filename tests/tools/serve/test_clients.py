"""The endpoint with ranks that are played: bounds, and clients that go, do not read, or send anything."""

from __future__ import annotations

import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from http_client import COMPLETIONS, asked, got, refuses, sent, wait_for, whole
from played_ranks import played, text_of

from partitioner.errors import InputError
from tools.serve import connection
from tools.serve.connection import BODY_BYTES
from tools.serve.listening import bound


def test_a_body_that_is_too_large_is_refused_before_it_is_read() -> None:
    with played() as server, socket.create_connection(("127.0.0.1", server.port), 20) as client:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {BODY_BYTES + 1}\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
    with played() as server, socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(BODY_BYTES // 65536):
            client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        client.sendall(b"1\r\n \r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.3)
    with played() as server, socket.create_connection(("127.0.0.1", server.port), 20) as client:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_full_queue_says_when_to_come_again() -> None:
    with played(rows=1, queue=2) as server:
        server.waits.clear()
        held = [sent(server.port, {"prompt": "a", "max_tokens": 3}) for _ in range(3)]
        wait_for(lambda: server.desk.load.waiting + server.desk.load.running == 3)
        found = asked(server.port, COMPLETIONS, {"prompt": "a"})
        assert (found.status, found.headers["retry-after"]) == (503, "1")
        assert found.document["error"]["code"] == "queue_full"
        server.waits.set()
        assert all(client.recv(1000).startswith(b"HTTP/1.1 200") for client in held)
        assert asked(server.port, COMPLETIONS, {"prompt": "a"}).status == 200
        for client in held:
            client.close()


def test_a_request_whose_time_is_over_ends_as_it_is() -> None:
    with played(rows=1, timeout=0.5, seconds=0.05, length=5000) as server:
        body = {"prompt": "a", "max_tokens": 4000}
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(asked, server.port, COMPLETIONS, body)
            wait_for(lambda: server.desk.load.running == 1)
            second = pool.submit(asked, server.port, COMPLETIONS, body | {"stream": True})
            (choice,) = first.result().document["choices"]
            assert choice["finish_reason"] == "length"
            assert 2 < len(choice["text"]) < 100
            assert text_of("a", 100).startswith(choice["text"])
            if second.result().status != 200:
                assert second.result().document["error"]["code"] == "timeout"
        assert server.idle()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_leaves_its_row(stream: bool) -> None:
    with played(rows=1, queue=1, seconds=0.01, length=100_000) as server:
        client = sent(server.port, {"prompt": "a", "max_tokens": 90_000, "stream": stream})
        waits = sent(server.port, {"prompt": "a", "max_tokens": 90_000, "stream": stream})
        wait_for(lambda: server.desk.load.running == server.desk.load.waiting == 1)
        waits.close()
        wait_for(lambda: server.desk.load.waiting == 0)
        client.close()
        assert server.idle()
        assert asked(server.port, COMPLETIONS, {"prompt": "a", "max_tokens": 3}).text == text_of("a", 3)
        assert server.said == []


def test_a_client_that_does_not_read_is_dropped_and_holds_nobody_up() -> None:
    with played(rows=2, unread=50, length=100_000) as server:
        client = sent(server.port, {"prompt": "a", "max_tokens": 90_000, "stream": True}, window=2048)
        wait_for(lambda: server.desk.load.running == 1)
        assert asked(server.port, COMPLETIONS, {"prompt": "b", "max_tokens": 30}).text == text_of("b", 30)
        assert server.idle(20)
        assert server.steps < 10_000
        received = b""
        while data := client.recv(65536):
            received += data
        assert b"[DONE]" not in received
        client.close()


def test_anything_sent_is_answered_or_closed() -> None:
    texts = [
        b"\x00\xff" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n\r\n", b"A" * 100_000,
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ]  # fmt: skip
    with played() as server:
        for text in texts:
            with socket.create_connection(("127.0.0.1", server.port), 10) as client:
                client.sendall(text)
                client.shutdown(socket.SHUT_WR)
                try:
                    found = client.recv(100)
                except ConnectionResetError:
                    found = b""
                assert found == b"" or re.match(rb"HTTP/1.1 4\d\d ", found), found
        assert asked(server.port, COMPLETIONS, {"prompt": "a", "max_tokens": 3}).text == text_of("a", 3)


def test_at_the_end_answers_are_finished() -> None:
    with played(seconds=0.02) as server:
        clients = [sent(server.port, {"prompt": "a", "max_tokens": 30, "stream": n}) for n in (True, False)]
        wait_for(lambda: server.desk.load.running == 2)
        server.listening.leave()
        wait_for(lambda: refuses(server.port))
        found = [whole(client) for client in clients]
        assert all(text.startswith(b"HTTP/1.1 200") for text in found)
        assert b"[DONE]" in found[0]
        assert text_of("a", 30).encode() in found[1]
        wait_for(lambda: server.listening.is_over)


def test_at_the_end_answers_are_not_waited_for_longer_than_the_grace() -> None:
    with played(seconds=0.02, grace=0.3, length=100_000) as server:
        client = sent(server.port, {"prompt": "a", "max_tokens": 90_000})
        wait_for(lambda: server.desk.load.running == 1)
        server.listening.leave()
        (choice,) = json.loads(whole(client).partition(b"\r\n\r\n")[2])["choices"]
        assert choice["finish_reason"] == "length"
        wait_for(lambda: server.listening.is_over)


def test_where_ranks_fail_clients_are_told() -> None:
    with played(seconds=0.02, length=100_000) as server:
        clients = [sent(server.port, {"prompt": "a", "max_tokens": 90_000, "stream": n}) for n in (True, False)]
        wait_for(lambda: server.desk.load.running == 2)
        time.sleep(0.2)
        server.listening.fail()
        streamed, plain = (whole(client) for client in clients)
        assert plain.startswith(b"HTTP/1.1 500")
        assert b'"code":"failed"' in streamed


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--host 127.0.0.1 --port {port} .*in use"):
            bound("127.0.0.1", port)
    with pytest.raises(InputError, match="can't be listened at"):
        bound("no.such.host.invalid", 0)


def test_many_at_once_lose_nothing() -> None:
    """200 requests: whole and streamed, stopped, too many, broken, cut, and not read."""
    with played(rows=4, data_ranks=2, queue=200, unread=50, length=4000) as server:
        with ThreadPoolExecutor(200) as pool:
            wrong = [found for found in pool.map(lambda n: one(server.port, n), range(200)) if found]
        assert wrong == []
        assert server.idle(20)
        assert got(server.port, "/health").document["running"] == 0
        assert server.said == []


def one(port: int, n: int) -> str:
    """The ``n``-th of many; what was wrong with it."""
    prompt, most = f"prompt {n}", 5 + n % 40
    body: dict[str, object] = {"prompt": prompt, "max_tokens": most}
    whole_text = text_of(prompt, most)
    if n % 10 == 6:
        found = asked(port, COMPLETIONS, b'{"prompt": "a", ' + bytes([n]) * n)
        return "" if found.status == 400 else f"{n}: {found.status}"
    if n % 10 == 7:
        sent(port, body | {"max_tokens": 3900, "stream": n % 20 == 7}).close()
        return ""
    if n % 10 == 8:
        client = sent(port, body | {"max_tokens": 3900, "stream": True}, window=2048)
        time.sleep(0.5)
        client.close()
        return ""
    if n % 2:
        found = asked(port, COMPLETIONS, body | {"stream": True})
        return "" if found.streamed == whole_text else f"{n}: {found}"
    stop = whole_text[3:5]
    found = asked(port, COMPLETIONS, body | {"stop": stop})
    return "" if found.text == whole_text.partition(stop)[0] else f"{n}: {found}"
