"""What the name of a part says of the others."""

from __future__ import annotations

import pytest

from modelyard.store import split


@pytest.mark.parametrize(
    ("source", "second"),
    [
        ("/a/m-00001-of-00002.gguf", "/a/m-00002-of-00002.gguf"),
        ("hf://o/r@v1/sub/m-00001-of-00002.gguf", "hf://o/r@v1/sub/m-00002-of-00002.gguf"),
        ("s3://b/m-00001-of-00002.gguf#sha256=ab&size=3", "s3://b/m-00002-of-00002.gguf"),
        ("https://h/m-00001-of-00002.gguf?key=1#size=3", "https://h/m-00002-of-00002.gguf?key=1"),
    ],
)
def test_the_first_part_names_the_others(source: str, second: str) -> None:
    assert split.parts_of(source) == (source, second)


@pytest.mark.parametrize(
    "source",
    ["/a/m.gguf", "/a/m-00001-of-00001.gguf", "/a/m-00002-of-00003.gguf", "/m-00001-of-01001.gguf"],
)
def test_others_stand_alone(source: str) -> None:
    assert split.parts_of(source) == (source,)


def test_what_is_wrong_with_a_name_or_a_part() -> None:
    def small(one: str) -> str | None:
        return f"{one} is bad" if "00003-of" in one else None

    later = split.problem("hf://o/r/m-00002-of-00003.gguf", lambda _: None)
    assert later is not None
    assert "part 2 of 3; name the first, which ends with -00001-of-00003.gguf" in later
    assert "1000" in (split.problem("/m-00001-of-01001.gguf", lambda _: None) or "")
    assert split.problem("/m-00001-of-00003.gguf", small) == "/m-00003-of-00003.gguf is bad"
    assert split.problem("/m-00001-of-00002.gguf", small) is None
