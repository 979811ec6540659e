# ruff: noqa: RUF001 - the punctuation of many scripts
from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.servers.translation.sentences import cut, is_text, shortened

TEXTS = st.text(
    st.sampled_from("ab Zé3.?!,;。！\n\r\t\0 \u2028\x85'\")»中文🙂\u0301 "), max_size=80
) | st.text(max_size=60)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It rains. We stay in.", ["It rains.", "We stay in."]),
        ("One line\nand another", ["One line", "and another"]),
        ('He said: "No!" She left.', ['He said: "No!"', "She left."]),
        ("Dr. Smith met Mr. J. Doe.", ["Dr. Smith met Mr. J. Doe."]),
        ("Am 3. Mai um 5 p.m. war es.", ["Am 3. Mai um 5 p.m. war es."]),
        ("It was 2020. Then it ended.", ["It was 2020.", "Then it ended."]),
        ("Well... maybe not.", ["Well... maybe not."]),
        ("今天下雨。我们在家。", ["今天下雨。", "我们在家。"]),
        ("Version 3.14 is out.", ["Version 3.14 is out."]),
        ("¿Qué? ¡No!", ["¿Qué?", "¡No!"]),
    ],
)
def test_sentences_are_cut_at_their_ends(text: str, sentences: list[str]) -> None:
    assert [piece for piece in cut(text) if is_text(piece)] == sentences


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost(text: str) -> None:
    pieces = cut(text)
    assert "".join(pieces) == text
    for piece in pieces:
        assert not is_text(piece) or piece == piece.strip()


@given(TEXTS.map(lambda text: (text * 5).strip()), st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_long_ones_are_cut_further_and_nothing_is_lost(text: str, most: int) -> None:
    parts = list(shortened(text, len, most))
    assert "".join(parts) == text
    for part in parts:
        assert not is_text(part) or (len(part) <= most and part == part.strip())


def test_long_ones_are_cut_at_commas_then_at_spaces() -> None:
    text = "when it rains here, we stay in the house"
    assert list(shortened(text, lambda part: len(part.split()), 5)) == [
        "when it rains here,", " ", "we stay in the house"
    ]  # fmt: skip
    assert list(shortened("aa bb cc dd", len, 5)) == ["aa bb", " ", "cc dd"]
    assert list(shortened("abcdefgh", len, 5)) == ["abcd", "efgh"]


def test_what_one_character_takes_is_taken() -> None:
    assert list(shortened("ab", lambda part: 9, 5)) == ["a", "b"]


def test_a_word_of_a_million_characters_is_never_counted_whole() -> None:
    counted: list[int] = []

    def length(part: str) -> int:
        counted.append(len(part))
        return len(part) // 3

    parts = list(shortened("x" * 1_000_000, length, 100))
    assert "".join(parts) == "x" * 1_000_000
    assert max(counted) <= 800


@pytest.mark.parametrize(
    "text",
    [
        *(
            "." * 200_000,
            "a. b. " * 30_000,
            "!\"'" * 60_000,
            "a\0" * 60_000,
            " " * 200_000 + "b",
            "\n" * 200_000,
        ),
        *("a" + " " * 200_000 + "b", "a" + "\u0301" * 100_000, "👩\u200d" * 60_000 + "a", "。" * 100_000),
    ],
    ids=lambda text: f"{text[:3]!a}",
)
def test_what_repeats_takes_time_by_its_length_alone(text: str) -> None:
    begun = time.process_time()
    parts = [part for piece in cut(text) for part in shortened(piece, len, 200)]
    assert "".join(parts) == text
    assert time.process_time() - begun < 5, "the square of its length would be minutes"
