"""Licences of repositories: asked for once, and again where they could not be told."""

from __future__ import annotations

import pytest

from modelyard.store import licences
from modelyard.store.licences import Licences, Place

HERE: Place = ("https://hub", "org/model", "a" * 40)


class Card:
    def __init__(self, *answers: str | Exception | None) -> None:
        self.answers = list(answers)

    def __call__(self) -> str | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_what_was_told_is_kept() -> None:
    known, card = Licences(), Card("", "mit")
    assert [known.of(HERE, card) for _ in range(2)] == ["", ""]
    assert known.of((*HERE[:2], "b" * 40), card) == "mit"


def test_one_that_could_not_be_told_is_asked_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    known, card = Licences(), Card(None, None, "mit")
    assert [known.of(HERE, card) for _ in range(2)] == ["", ""]
    assert len(card.answers) == 2
    monkeypatch.setattr(licences, "AGAIN", 0.0)
    assert known.of(("other", *HERE[1:]), card) == ""
    assert known.of(("other", *HERE[1:]), card) == "mit"


def test_who_gives_up_lets_the_next_one_ask() -> None:
    known, card = Licences(), Card(KeyError("stopped"), "mit")
    with pytest.raises(KeyError):
        known.of(HERE, card)
    assert known.of(HERE, card) == "mit"


def test_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "MOST", 2)
    known = Licences()
    for repo in "abac":
        known.of(("hub", repo, ""), lambda repo=repo: repo)  # type: ignore[misc]
    assert [known.of(("hub", repo, ""), lambda: "anew") for repo in "acb"] == ["a", "c", "anew"]


def test_who_waits_for_another_one_does_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "LICENCE_WAIT", 0.01)
    known, inner = Licences(), list[str]()

    def ask() -> str:
        inner.append(known.of(HERE, lambda: "never"))
        return "mit"

    assert known.of(HERE, ask) == "mit"
    assert inner == [""]
