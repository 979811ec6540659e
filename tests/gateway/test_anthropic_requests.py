"""What a request of Anthropic's API becomes for an engine, and what of it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.engines.fake import FakeEngine
from modelyard.errors import InvalidRequest
from modelyard.gateway.anthropic_request import chat_of
from modelyard.gateway.fields import Fields

WEATHER = {"name": "weather", "description": "Now.", "input_schema": {"type": "object"}}


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "a", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}], **more}


def chat(**more: Any) -> dict[str, Any]:
    return chat_of(FakeEngine(), Fields(asked(**more)))


def content(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
BOB = {"name": "bob", "input_schema": {}}


class TestRequests:
    def test_sampling_and_stops(self) -> None:
        body = chat(temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["a", "b"], metadata={"user_id": "x"})
        del body["messages"]
        assert body == {"max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": ["a", "b"]}

    def test_images(self) -> None:
        link = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
        said = chat(messages=content(IMAGE, link, {"type": "text", "text": "What?"}))["messages"]
        assert said == [
            {
                "role": "user",
                "content": [
                    IMAGE_PART,
                    {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                    {"type": "text", "text": "What?"},
                ],
            }
        ]

    def test_images_in_results_and_text_behind_them(self) -> None:
        result = {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}
        said = chat(messages=content(result, {"type": "text", "text": "So?"}))["messages"]
        assert said == [
            {"role": "tool", "tool_call_id": "t", "content": [IMAGE_PART]},
            {"role": "user", "content": "So?"},
        ]

    def test_documents_of_text(self) -> None:
        source = {"type": "text", "media_type": "text/plain", "data": "once"}
        said = chat(messages=content({"type": "document", "title": "T", "source": source}))["messages"]
        assert said == [{"role": "user", "content": "T\nonce"}]

    @pytest.mark.parametrize(
        ("choice", "word", "parallel"),
        [
            ({"type": "auto"}, "auto", None),
            ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
            ({"type": "none", "disable_parallel_tool_use": False}, "none", None),
        ],
    )
    def test_choices_of_tools(self, choice: dict[str, Any], word: str, parallel: bool | None) -> None:
        body = chat(tools=[WEATHER, BOB], tool_choice=choice)
        assert (body["tool_choice"], body.get("parallel_tool_calls")) == (word, parallel)
        assert len(body["tools"]) == 2

    def test_one_tool_is_chosen_by_showing_no_other(self) -> None:
        body = chat(tools=[WEATHER, BOB], tool_choice={"type": "tool", "name": "bob"})
        assert body["tool_choice"] == "required"
        assert body["tools"] == [{"type": "function", "function": {"name": "bob", "parameters": {}}}]

    def test_structured_output(self) -> None:
        shape = {"type": "json_schema", "schema": {"type": "object"}}
        for more in ({"output_config": {"format": shape, "effort": "low"}}, {"output_format": shape}):
            made = chat(**more)["response_format"]
            assert (made["type"], made["json_schema"]["schema"]) == ("json_schema", {"type": "object"})

    def test_keeping_all_thinking_is_what_is_done(self) -> None:
        chat(context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]})

    @pytest.mark.parametrize(
        ("more", "path"),
        [
            ({"container": "x"}, "container"),
            ({"mcp_servers": []}, "mcp_servers"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": None}, "max_tokens"),
            ({"temperature": "hot"}, "temperature"),
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
            (
                {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
                "messages",
            ),
            ({"messages": content({"type": "text", "text": "x", "odd": 1})}, "messages[0].content[0].odd"),
            ({"messages": content({"type": "search_result"})}, "messages[0].content[0].type"),
            (
                {"messages": content({"type": "document", "source": {"type": "base64", "data": ""}})},
                "messages[0].content[0].source.type",
            ),
            ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
            ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
            ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
            ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
            ({"tools": [], "tool_choice": {"type": "any"}}, "tool_choice"),
            (
                {"context_management": {"edits": [{"type": "compact_20260112"}]}},
                "context_management.edits[0].type",
            ),
            ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
            ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ],
    )
    def test_what_cannot_be_honoured_is_named(self, more: dict[str, Any], path: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            chat(**more)
        assert caught.value.param == path
        assert f"`{path}`" in caught.value.message

    @pytest.mark.parametrize(
        ("more", "path"),
        [
            ({"top_k": 3}, "top_k"),
            ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking"),
            ({"thinking": {"type": "adaptive", "budget_tokens": 9}}, "thinking.budget_tokens"),
        ],
    )
    def test_what_this_engine_cannot_is_named(
        self, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], path: str
    ) -> None:
        monkeypatch.setattr(FakeEngine, "chat_fields", frozenset())
        with pytest.raises(InvalidRequest, match="engine fake") as caught:
            chat(**more)
        assert caught.value.param == path
