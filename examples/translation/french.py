"""French: agreement, most adjectives after the noun, "ne … pas" around the verb, elision."""

from __future__ import annotations

import re

from translation.grammar import Grammar, euros, listed, words
from translation.lexicon import ADVERBS, AUXILIARIES, Adjective, Name, Noun, Verb
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
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
    "dix-huit dix-neuf"
)
TENS = listed("- - vingt trente quarante cinquante soixante")
VOWELS = "aeiouéèêàâîôhAEO"
BEFORE_VOWELS = {"beau": "bel", "nouveau": "nouvel", "vieux": "vieil", "ce": "cet", "ma": "mon"}


class French(Grammar):
    code = "fr"

    def number(self, value: int, *, feminine: bool = False) -> str:
        one = "une" if feminine else "un"
        if value >= 100:
            hundreds, rest = divmod(value, 100)
            name = "cent" if hundreds == 1 else ONES[hundreds] + (" cent" if rest else " cents")
            return words(name, self.number(rest, feminine=feminine) if rest else "")
        if value < 20:
            return one if value == 1 else ONES[value]
        if value < 70:
            ten, unit = divmod(value, 10)
            if unit == 1:
                return f"{TENS[ten]} et {one}"
            return TENS[ten] + (f"-{ONES[unit]}" if unit else "")
        if value < 80:
            return "soixante et onze" if value == 71 else f"soixante-{ONES[value - 60]}"
        if value == 80:
            return "quatre-vingts"
        return f"quatre-vingt-{one if value == 81 else ONES[value - 80]}"

    def sentence(self, words: str, *, question: bool = False) -> str:
        text = super().sentence("est-ce que " + words if question else words, question=question)
        return text[:-1] + " ?" if question else text

    def greeting(self, greeting: str, name: str) -> str:
        return f"{greeting}, {name} !"

    def fused(self, words: str) -> str:
        text = re.sub(rf"\b(l|j|n|d|qu)(?:e|a) (?=[{VOWELS}])", r"\1'", words)
        for apart, together in (("à le", "au"), ("de le", "du"), ("de les", "des")):
            text = re.sub(rf"\b{apart} ", f"{together} ", text)
        return text

    def phrase(self, phrase: NounPhrase) -> str:
        forms = phrase.noun.fr
        feminine = forms.gender == "f"
        noun = forms.plural if phrase.plural else forms.singular
        determiner = self._determiner(phrase, feminine)
        adjective = phrase.adjective
        form = self._agreeing(adjective, feminine, phrase.plural) if adjective else ""
        very = "très" if phrase.very else ""
        if adjective and adjective.before:
            if not phrase.plural:
                form = _before(form, noun)
            core = words(very, form, noun)
        else:
            core = words(noun, very, form)
        if not phrase.plural:
            determiner = _before(determiner, core)
        owner = "de " + self._who(phrase.owner) if phrase.owner else ""
        return words(determiner, core, owner)

    def _determiner(self, phrase: NounPhrase, feminine: bool) -> str:
        match phrase.determiner:
            case "the" | "owner":
                forms = ("le", "la", "les")
            case "a":
                forms = ("un", "une", "")
            case "this":
                forms = ("ce", "cette", "ces")
            case "my":
                forms = ("mon", "ma", "mes")
            case "our":
                forms = ("notre", "notre", "nos")
            case "count":
                return str(phrase.count) if phrase.digits else self.number(phrase.count, feminine=feminine)
        return forms[2 if phrase.plural else feminine]

    def _agreeing(self, adjective: Adjective, feminine: bool, plural: bool) -> str:
        return adjective.fr[feminine + 2 * plural]

    def _who(self, who: Subject | Noun) -> str:
        match who:
            case Name():
                return who.text
            case Pronoun():
                return {"I": "je", "he": "il", "she": "elle", "we": "nous"}[who.word]
            case Noun():
                return ("la " if who.fr.gender == "f" else "le ") + who.fr.singular
            case NounPhrase():
                return self.phrase(who)

    def clause(self, clause: Clause) -> str:
        finite, rest = self._verb(clause.verb, clause.mode, person(clause.subject))
        core = f"ne {finite} pas" if clause.negative else finite
        when = self._when(clause.when) + "," if clause.when else ""
        recipient = "à " + self._who(clause.recipient) if clause.recipient else ""
        because = "parce que " + self.state(clause.because) if clause.because else ""
        return words(
            when, self._who(clause.subject), core, rest, self._who(clause.object), recipient, because
        )

    def _verb(self, verb: Verb, mode: str, who: int) -> tuple[str, str]:
        """The finite verb, and what comes after "pas"."""
        if mode == "present":
            finite, _, rest = verb.fr[who].partition(" ")
            return finite, rest
        return AUXILIARIES[mode]["fr"][who], verb.fr[5] if mode == "perfect" else verb.fr[4]

    def _when(self, when: When) -> str:
        if when.adverb is not None:
            return ADVERBS["fr"][when.adverb]
        if when.weekday is not None:
            return self.weekday(when.weekday)
        assert when.date is not None
        return "le " + self._date(*when.date)

    def _date(self, day: int, month: int) -> str:
        return f"{'1er' if day == 1 else day} {self.month(month)}"

    def state(self, state: State) -> str:
        plural = person(state.subject) == 3
        verb = "sont" if plural else "est"
        if state.place:
            feminine = state.place.fr.gender == "f"
            what = f"dans {'la' if feminine else 'le'} {state.place.fr.singular}"
        else:
            assert state.adjective is not None
            what = words(
                "très" if state.very else "",
                self._agreeing(state.adjective, _feminine(state.subject), plural),
            )
        return words(self._who(state.subject), f"ne {verb} pas" if state.negative else verb, what)

    def existence(self, existence: Existence) -> str:
        place = existence.place.fr
        article = "la" if place.gender == "f" else "le"
        return f"il y a {self.phrase(existence.what)} dans {article} {place.singular}"

    def time_is(self, clock: Clock) -> str:
        return "il est " + self._clock(clock)

    def _clock(self, clock: Clock) -> str:
        if clock.digits:
            return f"{clock.hour} h {clock.minute:02}"
        before = clock.minute > 30
        hour = clock.hour + before
        hours = words(self.number(hour, feminine=True), "heure" if hour == 1 else "heures")
        if clock.minute == 0:
            return hours
        minutes = 60 - clock.minute if before else clock.minute
        if minutes == 15:
            return words(hours, "moins le quart" if before else "et quart")
        if minutes == 30:
            return words(hours, "et demie")
        return words(hours, "moins" if before else "", self.number(minutes))

    def travel(self, travel: Travel) -> str:
        verb = travel.verb.fr[3 if travel.vehicle.plural else 1]
        when = self._when(travel.when) if travel.when else ""
        return words(self.phrase(travel.vehicle), verb, when, "à", self._clock(travel.clock))

    def today(self, today: Today) -> str:
        date = f"{self.weekday(today.weekday)} {self._date(today.day, today.month)} {today.year}"
        return f"aujourd'hui, nous sommes le {date}"

    def price(self, price: Price) -> str:
        verb = "coûtent" if price.what.plural else "coûte"
        return f"{self.phrase(price.what)} {verb} {euros(price.cents, ',')} €"


def _before(word: str, following: str) -> str:
    """The form of a masculine adjective, "ce" or "ma" before a vowel."""
    return BEFORE_VOWELS.get(word, word) if following[0] in VOWELS else word


def _feminine(subject: Subject) -> bool:
    match subject:
        case Pronoun():
            return subject.word == "she"
        case Name():
            return subject.gender == "f"
        case NounPhrase():
            return subject.noun.fr.gender == "f"
