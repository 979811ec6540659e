"""German: cases, the finite verb second and the rest of it last, or all of it last."""

from __future__ import annotations

import re

from translation.grammar import Grammar, euros, listed, words
from translation.lexicon import ADVERBS, AUXILIARIES, Name, Verb
from translation.meaning import (
    Clause,
    Clock,
    Existence,
    NounPhrase,
    Price,
    Pronoun,
    State,
    Subject,
    Today,
    Travel,
    When,
    person,
)

ONES = listed(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
)
TENS = listed("- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")

# By case: masculine, feminine, neuter, plural.
GENDERS = "mfn"
DEFINITE = {"nom": ("er", "ie", "as", "ie"), "acc": ("en", "ie", "as", "ie"), "dat": ("em", "er", "em", "")}
THIS = {"nom": ("er", "e", "es", "e"), "acc": ("en", "e", "es", "e"), "dat": ("em", "er", "em", "")}
INDEFINITE = {"nom": ("", "e", "", "e"), "acc": ("en", "e", "", "e"), "dat": ("em", "er", "em", "")}
WEAK = {"nom": ("e", "e", "e", "en"), "acc": ("en", "e", "e", "en"), "dat": ("en", "en", "en", "")}
MIXED = {"nom": ("er", "e", "es", "en"), "acc": ("en", "e", "es", "en"), "dat": ("en", "en", "en", "")}
STRONG = {"nom": ("er", "e", "es", "e"), "acc": ("en", "e", "es", "e")}


class German(Grammar):
    code = "de"

    def number(self, value: int) -> str:
        if value >= 100:
            hundreds, rest = divmod(value, 100)
            return ("" if hundreds == 1 else ONES[hundreds]) + "hundert" + (self.number(rest) if rest else "")
        if value < 20:
            return ONES[value]
        ten, unit = divmod(value, 10)
        return ("" if not unit else ("ein" if unit == 1 else ONES[unit]) + "und") + TENS[ten]

    def fused(self, words: str) -> str:
        return re.sub(r"\bin dem\b", "im", words)

    def phrase(self, phrase: NounPhrase, case: str = "nom") -> str:
        forms = phrase.noun.de
        column = 3 if phrase.plural else GENDERS.index(forms.gender)
        determiner, endings = self._determiner(phrase, case, column)
        adjective = ""
        if phrase.adjective:
            adjective = words("sehr" if phrase.very else "", phrase.adjective.de + endings[case][column])
        genitive = ""
        if phrase.owner and not isinstance(phrase.owner, Name):
            owner = phrase.owner.de
            genitive = f"{'der' if owner.gender == 'f' else 'des'} {owner.genitive}"
        return words(determiner, adjective, forms.plural if phrase.plural else forms.singular, genitive)

    def _determiner(
        self, phrase: NounPhrase, case: str, column: int
    ) -> tuple[str, dict[str, tuple[str, str, str, str]]]:
        """The word, and the endings of an adjective after it."""
        match phrase.determiner:
            case "owner" if isinstance(phrase.owner, Name):
                return phrase.owner.text + "s", STRONG
            case "the" | "owner":
                return "d" + DEFINITE[case][column], WEAK
            case "this":
                return "dies" + THIS[case][column], WEAK
            case "count":
                return str(phrase.count) if phrase.digits else self.number(phrase.count), STRONG
            case other:
                return {"a": "ein", "my": "mein", "our": "unser"}[other] + INDEFINITE[case][column], MIXED

    def _who(self, who: Subject, case: str = "nom") -> str:
        match who:
            case Name():
                return who.text
            case Pronoun():
                return {"I": "ich", "he": "er", "she": "sie", "we": "wir"}[who.word]
            case NounPhrase():
                return self.phrase(who, case)

    def clause(self, clause: Clause) -> str:
        subject = self._who(clause.subject)
        finite, last = self._verb(clause, min(person(clause.subject), 2))
        recipient = self._who(clause.recipient, "dat") if clause.recipient else ""
        middle = words(recipient, self._who(clause.object, "acc"), "nicht" if clause.negative else "")
        if clause.question:
            return words(finite, subject, middle, last)
        if clause.when:
            return words(self._when(clause.when), finite, subject, middle, last)
        main = words(subject, finite, middle, last)
        return f"{main}, weil {self._state(clause.because, last=True)}" if clause.because else main

    def _verb(self, clause: Clause, who: int) -> tuple[str, str]:
        """The finite verb, and what ends the clause. Who must not, "darf nicht"."""
        verb, mode = clause.verb, clause.mode
        if mode == "present":
            return verb.de[who], verb.prefix
        if mode == "must" and clause.negative:
            return ("darf", "darf", "dürfen")[who], verb.de[3]
        return AUXILIARIES[mode]["de"][who], verb.de[4] if mode == "perfect" else verb.de[3]

    def _when(self, when: When) -> str:
        if when.adverb is not None:
            return ADVERBS["de"][when.adverb]
        if when.weekday is not None:
            return "am " + self.weekday(when.weekday)
        assert when.date is not None
        return f"am {when.date[0]}. {self.month(when.date[1])}"

    def state(self, state: State) -> str:
        return self._state(state)

    def _state(self, state: State, *, last: bool = False) -> str:
        """With the verb last, as after "weil"."""
        subject = self._who(state.subject)
        verb = "sind" if person(state.subject) == 3 else "ist"
        if state.place:
            place = state.place.de
            what = f"in {'der' if place.gender == 'f' else 'dem'} {place.singular}"
        else:
            assert state.adjective is not None
            what = words("sehr" if state.very else "", state.adjective.de_bare)
        what = words("nicht" if state.negative else "", what)
        if last:
            return words(subject, what, verb)
        return words(verb, subject, what) if state.question else words(subject, verb, what)

    def existence(self, existence: Existence) -> str:
        place = existence.place.de
        where = f"in {'der' if place.gender == 'f' else 'dem'} {place.singular}"
        return f"es gibt {self.phrase(existence.what, 'acc')} {where}"

    def time_is(self, clock: Clock) -> str:
        return "es ist " + self._clock(clock)

    def _clock(self, clock: Clock) -> str:
        """Five minutes around the half are said from it, and the half from the hour to come."""
        if clock.digits:
            return f"{clock.hour}:{clock.minute:02} Uhr"
        minute = clock.minute
        if minute == 0:
            return "ein Uhr" if clock.hour == 1 else f"{self.number(clock.hour)} Uhr"
        half = f"halb {self.number(clock.hour + 1)}"
        if 25 <= minute <= 35:
            return words({25: "fünf vor", 30: "", 35: "fünf nach"}[minute], half)
        before = minute > 30
        minutes = 60 - minute if before else minute
        name = "Viertel" if minutes == 15 else self.number(minutes)
        return f"{name} {'vor' if before else 'nach'} {self.number(clock.hour + before)}"

    def travel(self, travel: Travel) -> str:
        verb: Verb = travel.verb
        when = self._when(travel.when) if travel.when else ""
        finite = verb.de[2 if travel.vehicle.plural else 1]
        return words(self.phrase(travel.vehicle), finite, when, "um", self._clock(travel.clock), verb.prefix)

    def today(self, today: Today) -> str:
        date = f"{today.day}. {self.month(today.month)} {today.year}"
        return f"heute ist {self.weekday(today.weekday)}, der {date}"

    def price(self, price: Price) -> str:
        verb = "kosten" if price.what.plural else "kostet"
        return f"{self.phrase(price.what)} {verb} {euros(price.cents, ',')} €"
