"""What a request of Ollama's API becomes for an engine, and what of it is refused."""

from __future__ import annotations

import base64
from math import inf
from typing import Any

import pytest

from modelyard.core.types import Spec
from modelyard.engines.fake import FakeEngine
from modelyard.errors import InvalidRequest
from modelyard.gateway.fields import Fields
from modelyard.gateway.ollama_request import chat_of, embed_of, generate_of, keep_alive_of, raw_of

SPEC = Spec("a", "0" * 64, "fake", parameters={"context": 4096})
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


def chat(**more: Any) -> dict[str, Any]:
    return chat_of(
        SPEC, FakeEngine(), Fields({"model": "a", "messages": [{"role": "user", "content": "hi"}], **more})
    )


class TestRequests:
    def test_options(self) -> None:
        options = {
            "temperature": 0,
            "top_p": 0.9,
            "seed": 7,
            "stop": "x",
            "num_predict": 5,
            "top_k": 3,
            "repeat_penalty": 1.1,
            "num_ctx": 4096,
            "num_gpu": 99,
            "num_keep": 2,
            "min_p": None,
        }
        body = chat(options=options)
        del body["messages"]
        assert body == {
            "temperature": 0,
            "top_p": 0.9,
            "seed": 7,
            "stop": ["x"],
            "max_tokens": 5,
            "top_k": 3,
            "repeat_penalty": 1.1,
            "n_keep": 2,
        }
        assert "max_tokens" not in chat(options={"num_predict": -1})

    def test_what_asks_for_nothing_is_no_request(self) -> None:
        empty = {"suffix": "", "template": "", "system": "", "context": [], "_debug_render_only": False}
        rest: dict[str, Any] = {"options": None, "format": None, "images": [], "raw": False}
        made = generate_of(SPEC, FakeEngine(), Fields({"prompt": "x", **empty, **rest}))
        assert made == {"messages": [{"role": "user", "content": "x"}]}

    def test_formats(self) -> None:
        assert chat(format="json")["response_format"] == {"type": "json_object"}
        made = chat(format={"type": "object"})["response_format"]
        assert (made["type"], made["json_schema"]["schema"]) == ("json_schema", {"type": "object"})
        assert "response_format" not in chat(format="")

    def test_images(self) -> None:
        body = chat(messages=[{"role": "user", "content": "What?", "images": [PNG, "/9j/4A"]}])
        text, png, jpeg = body["messages"][0]["content"]
        assert text == {"type": "text", "text": "What?"}
        assert png["image_url"]["url"] == f"data:image/png;base64,{PNG}"
        assert jpeg["image_url"]["url"] == "data:image/jpeg;base64,/9j/4A"
        made = generate_of(SPEC, FakeEngine(), Fields({"prompt": "What?", "images": [PNG]}))
        assert made["messages"] == [{"role": "user", "content": [text, png]}]
        made = generate_of(SPEC, FakeEngine(), Fields({"images": [PNG]}))
        assert made["messages"] == [{"role": "user", "content": [png]}]

    def test_results_find_their_calls(self) -> None:
        calls: list[Any] = [{"function": {"name": name, "arguments": {}}} for name in ("x", "y", "x")]
        results = [
            {"role": "tool", "content": "", "tool_name": "y"},
            {"role": "tool", "content": ""},
            {"role": "tool", "content": "", "tool_name": "x"},
        ]
        _, model, *heard = chat(
            messages=[
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "", "tool_calls": calls, "thinking": "hm"},
                *results,
            ]
        )["messages"]
        ids = [call["id"] for call in model["tool_calls"]]
        assert len(set(ids)) == 3
        assert [one["tool_call_id"] for one in heard] == [ids[1], ids[0], ids[2]]
        assert model["reasoning_content"] == "hm"

    @pytest.mark.parametrize(
        ("more", "path"),
        [
            ({"odd": 1}, "odd"),
            ({"logprobs": True}, "logprobs"),
            ({"context": [1]}, "context"),
            ({"format": "xml"}, "format"),
            ({"think": "very"}, "think"),
            ({"options": {"num_ctx": 8192}}, "options.num_ctx"),
            ({"options": {"tfs_z": 1.0}}, "options.tfs_z"),
            ({"options": {"seed": "x"}}, "options.seed"),
            ({"tools": [{"type": "web"}]}, "tools[0].type"),
            ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": "", "odd": 1}]}, "messages[0].odd"),
            ({"messages": [{"role": "assistant", "content": "I"}]}, "messages"),
        ],
    )
    def test_what_cannot_be_honoured_is_named(self, more: dict[str, Any], path: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            chat(**more)
        assert caught.value.param == path

    def test_what_cannot_be_generated_is_named(self) -> None:
        for make, more in (
            (generate_of, "suffix"),
            (generate_of, "template"),
            (raw_of, "system"),
            (raw_of, "format"),
        ):
            with pytest.raises(InvalidRequest) as caught:
                make(SPEC, FakeEngine(), Fields({"prompt": "x", more: "y"}))
            assert caught.value.param == more
        with pytest.raises(InvalidRequest, match="`input` is missing"):
            embed_of(SPEC, FakeEngine(), Fields({}), "input")

    @pytest.mark.parametrize(
        ("more", "path"), [({"options": {"top_k": 3}}, "options.top_k"), ({"think": True}, "think")]
    )
    def test_what_this_engine_cannot_is_named(
        self, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], path: str
    ) -> None:
        monkeypatch.setattr(FakeEngine, "chat_fields", frozenset())
        with pytest.raises(InvalidRequest, match="engine fake") as caught:
            chat(**more)
        assert caught.value.param == path


class TestKeepAlive:
    def test_in_gos_notation(self) -> None:
        for value, seconds in {
            "5m": 300.0,
            "1h30m": 5400.0,
            "250ms": 0.25,
            "-1s": inf,
            "0": 0.0,
            "5": 5.0,
            1e30: inf,
        }.items():
            assert keep_alive_of(value) == seconds
