"""The server of HTTP in a thread with an event loop of its own, and what the thread that steps tells it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence

import uvicorn
from fastapi import FastAPI

from partitioner.errors import InputError
from tools.serve.desk import New
from tools.serve.texts import READ_SECONDS, Texts

MOST_CONNECTIONS = 1000
IDLE_SECONDS = 30  # of a connection without a request
SEND_BYTES = 64 << 10  # of an answer that lie with the system
SILENT_MS = 30_000  # of a client that takes none of them: then the system closes its connection
FAILED_SECONDS = 1.0  # for clients to be told
POLL_SECONDS = 0.01


def bound(host: str, port: int) -> socket.socket:
    """A socket of the address that nobody can connect to yet; raises InputError where there is none to have."""
    found: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MS)  # accepted ones have both from it
        found.bind(address)
    except OSError as error:
        if found is not None:
            found.close()
        raise InputError(f"--host {host} --port {port} can't be listened at: {error.strerror}") from error
    return found


class Listening:
    """``texts`` are those that ``app`` answers by; ``grace`` seconds are left to them at the end.

    Clients can connect when it is made.
    """

    def __init__(self, app: FastAPI, texts: Texts, own: socket.socket, grace: float) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", ws="none", loop="asyncio", http="h11",
            proxy_headers=False, server_header=False, limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=int(grace + READ_SECONDS) + 1,
        )  # fmt: skip
        self._server, self._texts, self._own, self._grace = uvicorn.Server(config), texts, own, grace
        self._loop = asyncio.new_event_loop()
        self._failure: BaseException | None = None
        self._is_closed, self._closing = False, threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name="listening")
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            time.sleep(POLL_SECONDS)

    @property
    def is_over(self) -> bool:
        """Whether all connections are closed; raises what ended it before it was to end."""
        if self._thread.is_alive():
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def told(self, news: Sequence[New]) -> None:
        """Pass on the tokens of a call."""
        if news:
            self._call(lambda: self._texts.told(news))

    def leave(self) -> None:
        """Take no connection more, end when all are closed."""
        self._call(lambda: self._texts.leave(self._grace))
        self._server.should_exit = True

    def fail(self) -> None:
        """Tell all clients that no answer comes, in a moment's time."""
        self._call(self._texts.fail)
        self._server.should_exit = True
        self._thread.join(FAILED_SECONDS)

    def _call(self, what: Callable[[], object]) -> None:
        with self._closing:
            if not self._is_closed:
                self._loop.call_soon_threadsafe(what)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                try:
                    runner.run(self._server.serve(sockets=[self._own]))
                    if not self._server.should_exit:
                        raise RuntimeError("the HTTP server has ended by itself")
                finally:
                    with self._closing:
                        self._is_closed = True
        except BaseException as error:  # raised where it is looked for
            self._failure = error
