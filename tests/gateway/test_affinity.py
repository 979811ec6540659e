"""What of a request counts as its beginning."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelyard.gateway.affinity import LONGEST, prefix_of


def chat(*turns: tuple[str, Any]) -> int:
    messages = [{"role": role, "content": content} for role, content in turns]
    return prefix_of(json.dumps({"model": "m", "messages": messages}).encode())


SYSTEM = ("system", "You are kind.")
ASKED = ("user", "Who was Ada?")


def test_the_turns_of_a_chat_begin_alike() -> None:
    first = chat(SYSTEM, ASKED)
    assert chat(SYSTEM, ASKED, ("assistant", "A countess."), ("user", "When?")) == first
    assert chat(SYSTEM, ("user", "Who was Grace?")) != first
    assert chat(("system", "You are rude."), ASKED) != first


def test_where_one_message_ends_counts() -> None:
    assert chat(("system", "ab"), ("user", "c")) != chat(("system", "a"), ("user", "bc"))


def test_what_comes_after_the_first_kilobyte_does_not_count() -> None:
    long = ("system", "x" * LONGEST)
    assert chat(long, ASKED) == chat(long, ("user", "Who was Grace?"))
    assert chat(("system", "x" * LONGEST + " and more"), ASKED) == chat(long, ASKED)
    assert chat(("system", "y" + "x" * LONGEST), ASKED) != chat(long, ASKED)


def test_parts_of_a_message_count_as_they_are_written() -> None:
    parts = [{"type": "text", "text": "Who was Ada?"}]
    assert chat(("user", parts)) == chat(("user", parts), ("assistant", "A countess."))
    assert chat(("user", parts)) != chat(("user", [{"type": "text", "text": "Who?"}]))


@pytest.mark.parametrize("field", ["prompt", "input", "content", "query"])
def test_other_requests_begin_with_their_text(field: str) -> None:
    one, same, other = (
        prefix_of(json.dumps({field: text, "max_tokens": n}).encode())
        for n, text in enumerate(("Once upon", "Once upon", "Twice upon"))
    )
    assert one == same != other


@pytest.mark.parametrize("body", [{}, {"messages": "no list"}, {"messages": [1, None]}, {"prompt": ["a", 2]}])
def test_a_body_that_the_engine_will_refuse_has_a_beginning_too(body: dict[str, Any]) -> None:
    assert prefix_of(json.dumps(body).encode()) >= 0
