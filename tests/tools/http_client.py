"""A client of HTTP for tests: documents, events of a stream, and connections that misbehave."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """Of the only choice."""
        (choice,) = self.document["choices"]
        return choice["text"] if "text" in choice else choice["message"]["content"]

    @property
    def finish(self) -> str:
        (choice,) = self.document["choices"]
        return choice["finish_reason"]

    @property
    def events(self) -> list[Any]:
        """Without the last, which says that nothing follows."""
        lines = self.body.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""], lines[-3:]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]

    @property
    def streamed(self) -> str:
        """The text of a stream of one choice."""
        found = [choice for event in self.events for choice in event["choices"]]
        return "".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in found)


def asked(
    port: int, path: str, body: Any = None, method: str = "POST", headers: Any = JSON, seconds: float = 60
) -> Answered:  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        given = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, given, headers)
        found = connection.getresponse()
        return Answered(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
    finally:
        connection.close()


def got(port: int, path: str) -> Answered:
    return asked(port, path, method="GET", headers={})


def sent(port: int, body: Any, path: str = COMPLETIONS, window: int | None = None) -> socket.socket:
    """A connection on which a question is asked, and nothing is read."""
    found = socket.socket()
    if window is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    found.settimeout(60)
    found.connect(("127.0.0.1", port))
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    found.sendall(head.encode() + text)
    return found


def wait_for(is_so: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return True
    return False


def whole(client: socket.socket) -> bytes:
    """Until the server closes."""
    found = b""
    with client:
        while data := client.recv(65536):
            found += data
    return found
