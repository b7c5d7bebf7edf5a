"""The paths of OpenAI's API: a request comes in, is checked, asked for, and answered whole or as it comes."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tools.generate.text_coder import TextCoder
from tools.serve.connection import Cut, EventStream, body, refused, while_connected
from tools.serve.desk import Desk
from tools.serve.questions import Chat, Completion, Served, question, requests
from tools.serve.refusal import Refusal
from tools.serve.replies import Reply
from tools.serve.texts import Answer, Texts

GONE = 499  # nobody reads it


class Door:
    """``most_unread``: pieces of a stream that its client may be behind; ``say`` is told what went wrong here."""

    def __init__(
        self, served: Served, coder: TextCoder, desk: Desk, texts: Texts, most_unread: int, say: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._served, self._coder, self._desk, self._texts = served, coder, desk, texts
        self._most_unread, self._say, self._created = most_unread, say, int(time.time())

    def app(self) -> FastAPI:
        """The application of ASGI."""
        app = FastAPI(openapi_url=None)
        app.add_api_route("/v1/completions", self._completions, methods=["POST"], response_model=None)
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"], response_model=None)
        app.add_api_route("/v1/models", self._models, methods=["GET"], response_model=None)
        app.add_api_route("/v1/models/{name:path}", self._model, methods=["GET"], response_model=None)
        app.add_api_route("/health", self._health, methods=["GET"], response_model=None)
        for status in (404, 405):
            app.add_exception_handler(status, _no_such_path)
        app.add_exception_handler(Refusal, _refused)
        app.add_exception_handler(Cut, _cut)
        app.add_exception_handler(Exception, self._failed)
        return app

    async def _completions(self, request: Request) -> Response:
        return await self._answered(request, Completion)

    async def _chat(self, request: Request) -> Response:
        return await self._answered(request, Chat)

    async def _answered(self, request: Request, kind: type[Completion] | type[Chat]) -> Response:
        asked = question(kind, await body(request), self._served)
        wanted = await asyncio.to_thread(requests, asked, self._coder, self._served)
        if len(wanted) > self._desk.most:
            raise Refusal(400, f"{len(wanted):,} prompts: at the most {self._desk.most:,} can wait", "prompt")
        tokens = sum(len(one.prompt) for one in wanted)
        reply = Reply(self._served.name, kind is Chat, tokens, asked.has_usage)
        answer = self._texts.open(wanted, asked.stops, self._most_unread if asked.stream else None)
        if asked.stream:
            return EventStream(answer, reply, lambda: self._texts.close(answer))
        try:
            contents = await while_connected(request.receive, _read(answer), answer.lost)
        finally:
            self._texts.close(answer)
        return JSONResponse(reply.whole(answer.texts, contents))

    async def _models(self) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._own_model()]})

    async def _model(self, name: str) -> JSONResponse:
        if name != self._served.name:
            raise Refusal(404, f"there is no model {name!r} here", "model", "model_not_found")
        return JSONResponse(self._own_model())

    async def _health(self) -> JSONResponse:
        load, leaves = self._desk.load, self._texts.leaves
        known = {"status": "leaving" if leaves else "ok", "running": load.running, "waiting": load.waiting}
        return JSONResponse(known | {"rows": self._desk.rows}, 503 if leaves else 200)

    def _own_model(self) -> dict[str, object]:
        name, length = self._served.name, self._served.length
        own: dict[str, object] = {"id": name, "object": "model", "created": self._created, "owned_by": "partitioner"}
        return own | {"max_model_len": length}

    async def _failed(self, request: Request, error: Exception) -> Response:
        self._say("".join(traceback.format_exception(error)))
        return refused(Refusal(500, "the server failed to answer: its log says why"))


async def _read(answer: Answer) -> list[str]:
    """Each text, when all have ended."""
    found = [""] * len(answer.texts)
    async for part in answer.parts():
        found[part.index] += part.text
    return found


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refused(error)


async def _cut(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


async def _no_such_path(request: Request, error: Exception) -> Response:
    return refused(Refusal(getattr(error, "status_code", 404), f"{request.method} {request.url.path} is not served"))
