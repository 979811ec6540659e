"""What the four grammars have in common: which part of a meaning asks for which method."""

from __future__ import annotations

from abc import ABC, abstractmethod

from translation.lexicon import GREETINGS, MONTHS, WEEKDAYS
from translation.meaning import (
    Clause,
    Clock,
    Existence,
    Greeting,
    Meaning,
    NounPhrase,
    Number,
    Price,
    State,
    Today,
    Travel,
)


class Grammar(ABC):
    """One language's words and their order. A phrase or a number has neither capital nor full stop."""

    code: str

    def say(self, meaning: Meaning) -> str:
        match meaning:
            case NounPhrase():
                return self.fused(self.phrase(meaning))
            case Number(value):
                return self.number(value)
            case State():
                return self.sentence(self.state(meaning), question=meaning.question)
            case Clause():
                return self.sentence(self.clause(meaning), question=meaning.question)
            case Existence():
                return self.sentence(self.existence(meaning))
            case Clock():
                return self.sentence(self.time_is(meaning))
            case Travel():
                return self.sentence(self.travel(meaning))
            case Today():
                return self.sentence(self.today(meaning))
            case Price():
                return self.sentence(self.price(meaning))
            case Greeting():
                return self.greeting(GREETINGS[self.code][meaning.greeting], meaning.name.text)

    def sentence(self, words: str, *, question: bool = False) -> str:
        text = self.fused(words)
        return text[0].upper() + text[1:] + ("?" if question else ".")

    def greeting(self, greeting: str, name: str) -> str:
        return f"{greeting}, {name}!"

    def fused(self, words: str) -> str:
        """With what the language writes as one word, or leaves out, between two."""
        return words

    def month(self, number: int) -> str:
        return MONTHS[self.code][number - 1]

    def weekday(self, number: int) -> str:
        return WEEKDAYS[self.code][number]

    @abstractmethod
    def number(self, value: int) -> str: ...

    @abstractmethod
    def phrase(self, phrase: NounPhrase) -> str: ...

    @abstractmethod
    def clause(self, clause: Clause) -> str: ...

    @abstractmethod
    def state(self, state: State) -> str: ...

    @abstractmethod
    def existence(self, existence: Existence) -> str: ...

    @abstractmethod
    def time_is(self, clock: Clock) -> str: ...

    @abstractmethod
    def travel(self, travel: Travel) -> str: ...

    @abstractmethod
    def today(self, today: Today) -> str: ...

    @abstractmethod
    def price(self, price: Price) -> str: ...


def words(*parts: str) -> str:
    """The parts that there are, with a space between two."""
    return " ".join(part for part in parts if part)


def listed(text: str) -> list[str]:
    return text.split()


def euros(cents: int, point: str) -> str:
    return f"{cents // 100}{point}{cents % 100:02}"
