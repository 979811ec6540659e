"""Sentences and their one right translation, made by chance from a seed; some are kept from every training.

    python -m translation.corpus     # from examples/: twenty of them

Whether one is kept (`held_out`) it decides itself, so that no seed and no number of sentences lets it into a
training set, in any direction.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator
from random import Random

from translation.english import English
from translation.french import French
from translation.german import German
from translation.grammar import Grammar
from translation.lexicon import (
    MODES,
    NAMES,
    OF_ALL,
    OF_GIVING,
    OF_OPENINGS,
    OF_PEOPLE_ALONE,
    OF_PERSONS,
    OF_THINGS,
    OF_TRAVEL,
    OF_WARES,
    OPENINGS,
    PEOPLE,
    PLACES,
    THINGS,
    VEHICLES,
    Name,
    Noun,
)
from translation.meaning import (
    Clause,
    Clock,
    Existence,
    Greeting,
    Meaning,
    NounPhrase,
    Number,
    Price,
    Pronoun,
    State,
    Subject,
    Today,
    Travel,
    When,
)
from translation.spanish import Spanish

GRAMMARS: dict[str, Grammar] = {
    grammar.code: grammar for grammar in (English(), French(), German(), Spanish())
}
LANGUAGES = tuple(GRAMMARS)
PAIRS = tuple((source, target) for source in LANGUAGES for target in LANGUAGES if source != target)
HELD_OUT = 20
"""One meaning of so many is kept from every training."""


def translations(meaning: Meaning) -> dict[str, str]:
    """The meaning in each language."""
    return {code: grammar.say(meaning) for code, grammar in GRAMMARS.items()}


def held_out(sentence: dict[str, str]) -> bool:
    """Whether these translations are kept from every training."""
    return hashlib.sha256(sentence["en"].encode()).digest()[0] < 256 // HELD_OUT


def training(seed: int) -> Iterator[dict[str, str]]:
    """Without an end, some more than once."""
    return (sentence for sentence in _sentences(seed) if not held_out(sentence))


def testing(seed: int, count: int) -> list[dict[str, str]]:
    """`count` different ones that are in no training."""
    found: dict[str, dict[str, str]] = {}
    for sentence in _sentences(seed):
        if held_out(sentence):
            found.setdefault(sentence["en"], sentence)
            if len(found) == count:
                break
    return list(found.values())


def meanings(seed: int) -> Iterator[Meaning]:
    maker = _Maker(Random(seed))
    while True:
        yield maker.meaning()


def _sentences(seed: int) -> Iterator[dict[str, str]]:
    return map(translations, meanings(seed))


class _Maker:
    """Draws meanings, the kinds that combine most the most often."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._kinds = {
            self._number: 6,
            self._any_phrase: 14,
            self._doing: 32,
            self._giving: 10,
            self._state: 14,
            self._existence: 5,
            self._time: 3,
            self._travel: 8,
            self._today: 3,
            self._price: 4,
            self._greeting: 1,
        }

    def meaning(self) -> Meaning:
        (kind,) = self._random.choices(list(self._kinds), list(self._kinds.values()))
        return kind()

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _number(self) -> Meaning:
        return Number(self._random.randrange(1000))

    def _any_phrase(self) -> NounPhrase:
        return self._phrase(PEOPLE if self._chance(0.3) else THINGS + OPENINGS)

    def _phrase(
        self, nouns: tuple[Noun, ...], *, single: bool = False, definite: bool = False, owned: bool = True
    ) -> NounPhrase:
        noun = self._random.choice(nouns)
        adjectives = OF_PERSONS if noun in PEOPLE else OF_THINGS
        adjective = self._random.choice(adjectives) if self._chance(0.5) else None
        very = adjective is not None and self._chance(0.15)
        determiners = ["the", "the", "the", "this", "my", "our"]
        if not definite:
            determiners += ["a", "a"] + ([] if single else ["count", "count"])
        if owned and noun not in PEOPLE:
            determiners += ["owner", "owner"]
        determiner = self._random.choice(determiners)
        plural = determiner == "count" or (determiner != "a" and not single and self._chance(0.35))
        if determiner == "count":
            digits = self._chance(0.4)
            count = self._random.randrange(2, 1000 if digits else 100)
            return NounPhrase(noun, "count", True, adjective, very, count, digits)
        if determiner == "owner":
            owners: tuple[Noun | Name, ...] = PEOPLE if self._chance(0.5) else NAMES
            owner = self._random.choice(owners)
            # German has "Annas Schlüssel" for one and for many.
            plural = plural and noun.de.singular != noun.de.plural
            return NounPhrase(noun, "owner", plural, adjective, very, owner=owner)
        return NounPhrase(noun, determiner, plural, adjective, very)  # type: ignore[arg-type]

    def _subject(self) -> Subject:
        draw = self._random.random()
        if draw < 0.3:
            return Pronoun(self._random.choice(("I", "he", "she", "we")))
        if draw < 0.5:
            return self._random.choice(NAMES)
        return self._phrase(PEOPLE)

    def _doing(self) -> Clause:
        subject = self._subject()
        asked, negative = self._chance(0.2), self._chance(0.2)
        verb, nouns = self._random.choice(
            (
                (OF_ALL, PEOPLE),
                (OF_ALL, THINGS),
                (OF_PEOPLE_ALONE, PEOPLE),
                (OF_WARES, THINGS),
                (OF_WARES, THINGS),
                (OF_OPENINGS, OPENINGS),
            )
        )
        names = [name for name in NAMES if name != subject]
        what: NounPhrase | Name
        if nouns is PEOPLE and self._chance(0.3):
            what = self._random.choice(names)
        else:
            what = self._phrase(nouns, definite=negative)
        mode = self._mode()
        because = None
        when = None
        if not asked:
            if self._chance(0.2):
                because = self._quality(question=False)
            elif self._chance(0.3):
                when = self._when(mode)
        return Clause(
            subject,
            self._random.choice(verb),
            what,
            mode,
            negative=negative,
            question=asked,
            when=when,
            because=because,
        )

    def _mode(self) -> str:
        return "present" if self._chance(0.3) else self._random.choice(MODES)

    def _when(self, mode: str) -> When:
        if mode == "perfect":
            return When(adverb=0)
        return self._random.choice((self._adverb, self._weekday, self._date))()

    def _adverb(self) -> When:
        return When(adverb=self._random.randrange(3))

    def _weekday(self) -> When:
        return When(weekday=self._random.randrange(7))

    def _date(self) -> When:
        return When(date=(self._random.randrange(1, 32), self._random.randrange(1, 13)))

    def _giving(self) -> Clause:
        subject = self._subject()
        mode = self._mode()
        asked, negative = self._chance(0.15), self._chance(0.15)
        recipient: NounPhrase | Name
        if self._chance(0.3):
            recipient = self._random.choice([name for name in NAMES if name != subject])
        else:
            recipient = self._phrase(PEOPLE, single=True)
        return Clause(
            subject,
            self._random.choice(OF_GIVING),
            self._phrase(THINGS, definite=negative, owned=False),
            mode,
            recipient,
            negative,
            asked,
            self._when(mode) if not asked and self._chance(0.2) else None,
        )

    def _state(self) -> State:
        asked = self._chance(0.25)
        if self._chance(0.65):
            return self._quality(question=asked)
        subject = self._phrase(PEOPLE if self._chance(0.3) else THINGS, definite=True)
        place = self._random.choice(PLACES)
        return State(subject, place=place, negative=self._chance(0.25), question=asked)

    def _quality(self, *, question: bool) -> State:
        subject: Subject
        draw = self._random.random()
        if draw < 0.15:
            subject = Pronoun(self._random.choice(("he", "she")))
        elif draw < 0.3:
            subject = self._random.choice(NAMES)
        elif draw < 0.45:
            subject = self._bare(PEOPLE)
        else:
            subject = self._bare(THINGS + OPENINGS)
        thing = isinstance(subject, NounPhrase) and subject.noun not in PEOPLE
        adjective = self._random.choice(OF_THINGS if thing else OF_PERSONS)
        return State(subject, adjective, self._chance(0.2), negative=self._chance(0.25), question=question)

    def _bare(self, nouns: tuple[Noun, ...]) -> NounPhrase:
        """Without an adjective: one is said of it."""
        phrase = self._phrase(nouns, definite=True)
        return NounPhrase(phrase.noun, phrase.determiner, phrase.plural, owner=phrase.owner)

    def _existence(self) -> Existence:
        noun = self._random.choice(PEOPLE + THINGS)
        adjective = None
        if self._chance(0.5):
            adjective = self._random.choice(OF_PERSONS if noun in PEOPLE else OF_THINGS)
        if self._chance(0.4):
            what = NounPhrase(noun, "a", False, adjective)
        else:
            digits = self._chance(0.4)
            count = self._random.randrange(2, 1000 if digits else 100)
            what = NounPhrase(noun, "count", True, adjective, False, count, digits)
        return Existence(what, self._random.choice(PLACES))

    def _time(self) -> Clock:
        if self._chance(0.5):
            return Clock(self._random.randrange(24), self._random.randrange(60), True)
        return Clock(self._random.randrange(1, 11), self._random.randrange(0, 60, 5), False)

    def _travel(self) -> Travel:
        vehicle = self._phrase(VEHICLES, definite=True, owned=False)
        when = self._when("present") if self._chance(0.5) else None
        return Travel(vehicle, self._random.choice(OF_TRAVEL), when, self._time())

    def _today(self) -> Today:
        day = datetime.date(1950, 1, 1) + datetime.timedelta(days=self._random.randrange(36525))
        return Today(day.year, day.month, day.day, day.weekday())

    def _price(self) -> Price:
        return Price(self._phrase(THINGS, definite=True), self._random.randrange(50, 100000))

    def _greeting(self) -> Greeting:
        return Greeting(self._random.randrange(5), self._random.choice(NAMES))


if __name__ == "__main__":
    for _, example in zip(range(20), training(1), strict=False):
        print(*example.values(), "", sep="\n")
