"""Recent translations are kept within a bound, and the ones that nobody asks for go first."""

from __future__ import annotations

from modelyard.gateway.translation.recent import Key, Recent


def key(text: str, version: str = "a@1") -> Key:
    return ((version,), "en", "fr", text)


def test_the_one_that_was_not_asked_for_the_longest_goes_first() -> None:
    recent = Recent()
    for text in ("one", "two", "six"):
        recent.put(key(text), text.upper(), 1000)
    assert recent.get(key("one")) == "ONE"
    most = recent.size
    recent.put(key("ten"), "TEN", most)
    assert [recent.get(key(text)) for text in ("one", "two", "six", "ten")] == ["ONE", None, "SIX", "TEN"]
    assert recent.size == most


def test_what_counts_is_what_is_kept() -> None:
    recent = Recent()
    for _ in range(3):
        recent.put(key("one"), "ONE", 10_000)
    once = recent.size
    recent.put(key("one", "a@2"), "ONE", 10_000)
    assert recent.size == 2 * once
    recent.put(key("long"), "x" * 10_000, 10_000)
    assert (recent.size, recent.get(key("long")), recent.get(key("one"))) == (2 * once, None, "ONE")
    recent.put(key("two"), "TWO", 0)  # the bound was lowered while it served
    assert recent.size == 0
