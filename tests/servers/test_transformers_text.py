"""Text of tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence

from modelyard.servers.transformers.text import Text


def test_characters_in_several_tokens_come_whole() -> None:
    def decode(tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    text = Text(decode, list(b"prompt"), [])
    assert [text.add(byte) for byte in "é€x".encode()] == ["", "é", "", "", "€", "x"]
    assert text.add(0xC3) == ""
    assert text.end() == "\ufffd"


def test_what_a_tokenizer_does_to_the_first_word_is_done_to_the_prompt_alone() -> None:
    def decode(tokens: Sequence[int]) -> str:  # as SentencePiece does
        return "".join(f" {token}" for token in tokens)[1:]

    text = Text(decode, [1, 2], [])
    assert text.add(3) + text.add(4) == " 3 4"


def test_a_stop_text_that_begins_and_does_not_go_on_is_shown() -> None:
    text = Text(lambda tokens: "".join(map(chr, tokens)), [], ["abc"])
    assert [text.add(ord(letter)) for letter in "xabab"] == ["x", "", "", "ab", ""]
    assert text.end() == "ab"
