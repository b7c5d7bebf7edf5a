"""The endpoint with ranks that are played: answers and refusals have OpenAI's shapes."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from http_client import CHAT, COMPLETIONS, asked, got
from played_ranks import NAME, played, text_of

from tools.generate.text_coder import text_coder

CHATS = replace(text_coder(None), template="{% for m in messages %}{{ m.content }}{% endfor %}")


def test_a_completion_has_the_shape_of_openai() -> None:
    with played() as server:
        found = asked(server.port, COMPLETIONS, {"model": NAME, "prompt": "hello", "max_tokens": 5})
        own = found.document
    assert (found.status, found.headers["content-type"]) == (200, "application/json")
    assert re.fullmatch("cmpl-[0-9a-f]{24}", own.pop("id"))
    assert abs(own.pop("created") - time.time()) < 60
    assert own == {
        "object": "text_completion",
        "model": NAME,
        "choices": [{"index": 0, "text": text_of("hello", 5), "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10},
    }


def test_a_chat_completion_has_the_shape_of_openai() -> None:
    with played(coder=CHATS) as server:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 5}
        own = asked(server.port, CHAT, body).document
    message = {"role": "assistant", "content": text_of("hello", 5), "refusal": None}
    assert re.fullmatch("chatcmpl-[0-9a-f]{24}", own["id"])
    assert own["object"] == "chat.completion"
    assert own["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]


@pytest.mark.parametrize("has_usage", [True, False])
def test_a_stream_tells_the_same_in_chunks(has_usage: bool) -> None:
    with played(coder=CHATS) as server:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "stream": True}
        found = asked(server.port, CHAT, body | {"stream_options": {"include_usage": has_usage}})
        plain = asked(server.port, COMPLETIONS, {"prompt": "hello", "max_tokens": 5, "stream": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    events = found.events
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    if has_usage:
        last = events.pop()
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert all(("usage" in event) == has_usage and event.get("usage") is None for event in events)
    (first,), *rest = [event["choices"] for event in events]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"] for (choice,) in rest] == [*({"content": c} for c in text_of("hello", 5)), {}]
    assert [choice["finish_reason"] for (choice,) in rest] == [None] * 5 + ["length"]
    assert {event["object"] for event in plain.events} == {"text_completion"}
    assert plain.streamed == text_of("hello", 5)


def test_several_prompts_are_several_choices() -> None:
    prompts = ["a", "bc", "def", "g"]
    with played() as server:
        found = asked(server.port, COMPLETIONS, {"prompt": prompts, "max_tokens": 6}).document
        streamed = asked(server.port, COMPLETIONS, {"prompt": prompts, "max_tokens": 6, "stream": True}).events
    assert [(c["index"], c["text"]) for c in found["choices"]] == [(n, text_of(p, 6)) for n, p in enumerate(prompts)]
    assert found["usage"] == {"prompt_tokens": 7, "completion_tokens": 24, "total_tokens": 31}
    texts = [""] * 4
    for (choice,) in (event["choices"] for event in streamed):
        texts[choice["index"]] += choice["text"]
    assert texts == [text_of(p, 6) for p in prompts]


def test_a_stop_text_and_an_ending_token_end_an_answer() -> None:
    text = text_of("hello", 20)
    with played(ends=frozenset({ord(text[9])})) as server:
        body = {"prompt": "hello", "max_tokens": 20, "stop": ["zzz", text[4:6]]}
        for found in (asked(server.port, COMPLETIONS, body).document,):
            (choice,) = found["choices"]
            assert (choice["text"], choice["finish_reason"]) == (text[:4], "stop")
        assert asked(server.port, COMPLETIONS, body | {"stream": True}).streamed == text[:4]
        (choice,) = asked(server.port, COMPLETIONS, {"prompt": "hello", "max_tokens": 20}).document["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text[: text.index(text[9])], "stop")


def test_models_and_health_are_told() -> None:
    with played() as server:
        found = got(server.port, "/v1/models").document
        assert (found["object"], [model["id"] for model in found["data"]]) == ("list", [NAME])
        assert got(server.port, f"/v1/models/{NAME}").document == found["data"][0]
        assert found["data"][0].items() >= {"object": "model", "owned_by": "partitioner"}.items()
        assert got(server.port, "/v1/models/other").status == 404
        assert got(server.port, "/health").document == {"status": "ok", "running": 0, "waiting": 0, "rows": 2}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", COMPLETIONS, 405), ("POST", "/v1/embeddings", 404), ("GET", "/docs", 404)],
)
def test_other_paths_are_refused_in_the_same_shape(method: str, path: str, status: int) -> None:
    with played() as server:
        found = asked(server.port, path, b"{}" if method == "POST" else None, method)
    assert found.status == status
    assert found.document["error"].keys() == {"message", "type", "param", "code"}


def test_what_is_wrong_is_told_in_the_shape_of_openai() -> None:
    with played() as server:
        found = asked(server.port, COMPLETIONS, {"prompt": "a", "temperature": 5})
        assert asked(server.port, COMPLETIONS, {"prompt": "a"}, headers={"Content-Type": "text/plain"}).status == 415
        assert asked(server.port, COMPLETIONS, b"{").status == 400
        assert asked(server.port, COMPLETIONS, {"prompt": ["a"] * 7}).status == 400
    own = found.document["error"]
    assert (found.status, own["type"], own["param"], own["code"]) == (400, "invalid_request_error", "temperature", None)
    assert "temperature" in own["message"]


def test_what_goes_wrong_in_the_server_is_said_and_nobody_waits() -> None:
    def broken(text: str) -> list[int]:
        raise KeyError(text)

    with played(coder=replace(text_coder(None), encode=broken)) as server:
        found = asked(server.port, COMPLETIONS, {"prompt": "abc"})
        assert (found.status, found.document["error"]["type"]) == (500, "server_error")
        assert "KeyError: 'abc'" in "".join(server.said)
        assert asked(server.port, COMPLETIONS, {"prompt": [1], "max_tokens": 2}).status == 200
