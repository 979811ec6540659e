"""What the fake engine says: a function of the model's name and the prompt, nothing else.

Called by the fake engine, and by tests to compute the exact answer they must get.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice

_TEXT = (
    "amber anchor apple arrow ash autumn basin beacon birch bloom bridge brook cedar chalk cliff cloud "
    "coast coral crane dawn delta drift dune echo elm ember falcon fern field flint fog forest gale garden "
    "glade grain grove harbor hazel heath hill island ivy jade lake lantern maple marsh meadow mist moon "
    "moss oak ocean olive orchard pebble pine quartz rain reed ridge river"
)
_WORDS = tuple(_TEXT.split())
_PIECE = 4
_DIMENSIONS = 16


def expected_text(model: str, prompt: str, max_tokens: int) -> str:
    """The text of exactly `max_tokens` tokens that `model` generates after `prompt`."""
    return "".join(islice(tokens(model, prompt), max_tokens))


def tokens(model: str, prompt: str) -> Iterator[str]:
    """The endless tokens after a prompt: words, all but the first with a space before them."""
    seed = f"{model}\0{prompt}".encode()
    block, space = 0, ""
    while True:
        for byte in blake2b(seed, salt=block.to_bytes(8, "little")).digest():
            yield space + _WORDS[byte % len(_WORDS)]
            space = " "
        block += 1


def chat_prompt(messages: Sequence[Mapping[str, object]]) -> str:
    """The prompt of a chat: one line per message, its role before it."""
    return "\n".join(f"{message.get('role', 'user')}: {_content(message)}" for message in messages)


def token_ids(text: str) -> list[int]:
    """The tokens of a text: up to four bytes each, under a leading one that keeps zero bytes."""
    data = text.encode()
    return [
        int.from_bytes(b"\x01" + data[start : start + _PIECE], "big") for start in range(0, len(data), _PIECE)
    ]


def text_of(ids: Sequence[int]) -> str:
    """The text of `token_ids`. Raises ValueError for what is no such token."""
    if any(not isinstance(token, int) or not 0x100 <= token < 0x2 << 8 * _PIECE for token in ids):
        raise ValueError("tokens: not tokens of this model")
    return b"".join(token.to_bytes(_PIECE + 1, "big").lstrip(b"\0")[1:] for token in ids).decode(
        "utf-8", "replace"
    )


def embedding(model: str, text: str) -> list[float]:
    """The vector of a text, each element between -1 and 1."""
    digest = blake2b(f"{model}\0{text}".encode(), digest_size=_DIMENSIONS).digest()
    return [byte / 127.5 - 1 for byte in digest]


def relevance(model: str, query: str, document: str) -> float:
    """The relevance score of a document, between 0 and 1."""
    digest = blake2b(f"{model}\0{query}\0{document}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 0xFFFFFFFF


def _content(message: Mapping[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")
