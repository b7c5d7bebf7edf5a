"""A client's connection: its request is read within bounds, work for it ends where it goes, its events are sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from tools.serve.refusal import Refusal
from tools.serve.replies import Reply
from tools.serve.texts import Answer

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
BODY_BYTES, BODY_SECONDS = 4 << 20, 30.0
CLOSE = {"Connection": "close"}


class Cut(Exception):
    """The client is gone, or is to be."""


async def body(request: Request) -> bytes:
    """Raises Refusal for one that is too large, comes too slowly or is no JSON, Cut where the client goes."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "send JSON, with the header Content-Type: application/json", headers=CLOSE)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > BODY_BYTES:
        raise _too_large()
    try:
        return await asyncio.wait_for(_read(request.receive), BODY_SECONDS)
    except TimeoutError as error:
        raise Refusal(408, f"the body took more than {BODY_SECONDS:g} s", headers=CLOSE) from error


async def _read(receive: Receive) -> bytes:
    found = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cut
        found += message.get("body", b"")
        if len(found) > BODY_BYTES:
            raise _too_large()
        if not message.get("more_body"):
            return bytes(found)


def _too_large() -> Refusal:
    return Refusal(413, f"a body has at the most {BODY_BYTES:,} bytes", headers=CLOSE)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T], lost: asyncio.Event) -> T:
    """What ``work`` makes; raises Cut, the work ended, where the client goes or is ``lost`` before."""
    own = asyncio.create_task(work)
    ends = [asyncio.create_task(_gone(receive)), asyncio.create_task(lost.wait())]
    try:
        await asyncio.wait([own, *ends], return_when=asyncio.FIRST_COMPLETED)
        if own.done():
            return own.result()
        raise Cut
    finally:
        for task in (own, *ends):
            task.cancel()
        await asyncio.gather(own, *ends, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def refused(refusal: Refusal) -> JSONResponse:
    """What the client is told."""
    return JSONResponse(refusal.document, refusal.status, dict(refusal.headers))


class EventStream(Response):
    """An answer in server-sent events; the status waits for its first part. ``close`` is called at the end."""

    def __init__(self, answer: Answer, reply: Reply, close: Callable[[], None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answer, self._reply, self._close = answer, reply, close

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Send all of it, as an application of ASGI does."""
        try:
            await while_connected(receive, self._sent(scope, receive, send), self._answer.lost)
        except Cut:
            return  # the server closes the connection of an answer that is not whole
        finally:
            self._close()

    async def _sent(self, scope: Message, receive: Receive, send: Send) -> None:
        has_begun, reply, texts = False, self._reply, self._answer.texts

        async def told(*events: object) -> None:
            for event in events:
                await send({"type": "http.response.body", "body": _event(event), "more_body": True})

        try:
            async for part in self._answer.parts():
                if not has_begun:
                    await send({"type": "http.response.start", "status": 200, "headers": self._own_headers()})
                    await told(*reply.first(texts))
                    has_begun = True
                await told(reply.chunk(part))
        except Refusal as refusal:
            if not has_begun:
                await refused(refusal)(scope, receive, send)
                return
            await told(refusal.document)
        else:
            await told(*reply.last(texts))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        return [(name, value) for name, value in self.raw_headers if name != b"content-length"]


def _event(document: object) -> bytes:
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
