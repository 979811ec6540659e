"""What a sentence says, in no language: what the four grammars put into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from translation.lexicon import Adjective, Name, Noun, Verb

Determiner = Literal["the", "a", "this", "my", "our", "count", "owner"]


@dataclass(frozen=True)
class NounPhrase:
    """`count` (in words or `digits`) and `owner` (one person) go with the determiner of that name."""

    noun: Noun
    determiner: Determiner = "the"
    plural: bool = False
    adjective: Adjective | None = None
    very: bool = False
    count: int = 0
    digits: bool = False
    owner: Noun | Name | None = None


@dataclass(frozen=True)
class Pronoun:
    word: Literal["I", "he", "she", "we"]


Subject = NounPhrase | Name | Pronoun


@dataclass(frozen=True)
class When:
    """One of: an adverb (0 today, 1 tomorrow, 2 now), a weekday from Monday, a (day, month), both from 1."""

    adverb: int | None = None
    weekday: int | None = None
    date: tuple[int, int] | None = None


@dataclass(frozen=True)
class State:
    """That somebody or something is so (an adjective) or there (a place)."""

    subject: Subject
    adjective: Adjective | None = None
    very: bool = False
    place: Noun | None = None
    negative: bool = False
    question: bool = False


@dataclass(frozen=True)
class Clause:
    """That somebody does something, to somebody if there is a `recipient`."""

    subject: Subject
    verb: Verb
    object: NounPhrase | Name
    mode: str = "present"
    recipient: NounPhrase | Name | None = None
    negative: bool = False
    question: bool = False
    when: When | None = None
    because: State | None = None


@dataclass(frozen=True)
class Existence:
    """That there is something, in a place."""

    what: NounPhrase
    place: Noun


@dataclass(frozen=True)
class Clock:
    """Hour and minute of the day; in words the hour is 1 to 10, the minute of five."""

    hour: int
    minute: int
    digits: bool


@dataclass(frozen=True)
class Travel:
    """That a vehicle arrives or leaves, at a time."""

    vehicle: NounPhrase
    verb: Verb
    when: When | None
    clock: Clock


@dataclass(frozen=True)
class Today:
    """Which day it is."""

    year: int
    month: int
    day: int
    weekday: int


@dataclass(frozen=True)
class Price:
    """What something costs, in cents of a euro."""

    what: NounPhrase
    cents: int


@dataclass(frozen=True)
class Greeting:
    """The number of a greeting, and who is greeted."""

    greeting: int
    name: Name


@dataclass(frozen=True)
class Number:
    """0 to 999, in words."""

    value: int


Meaning = NounPhrase | State | Clause | Existence | Clock | Travel | Today | Price | Greeting | Number


def person(subject: Subject) -> int:
    """0: I, 1: he, she or one thing, 2: we, 3: several."""
    if isinstance(subject, Pronoun):
        return {"I": 0, "he": 1, "she": 1, "we": 2}[subject.word]
    return 3 if isinstance(subject, NounPhrase) and subject.plural else 1
