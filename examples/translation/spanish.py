"""Spanish: agreement, adjectives after the noun, no "I" or "we", two verbs for "is", "a" before people."""

from __future__ import annotations

import re

from translation.grammar import Grammar, euros, listed, words
from translation.lexicon import ADVERBS, AUXILIARIES, PEOPLE, Adjective, Name, Noun
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
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco "
    "veintiséis veintisiete veintiocho veintinueve"
)
TENS = listed("- - - treinta cuarenta cincuenta sesenta setenta ochenta noventa")
HUNDREDS = listed(
    "- ciento doscientos trescientos cuatrocientos quinientos seiscientos setecientos ochocientos novecientos"
)


class Spanish(Grammar):
    code = "es"

    def number(self, value: int, gender: str = "") -> str:
        """With the gender of what is counted, if something is."""
        if value >= 100:
            hundreds, rest = divmod(value, 100)
            return "cien" if value == 100 else words(HUNDREDS[hundreds], self.number(rest) if rest else "")
        if value % 10 == 1 and value != 11 and gender:
            one = "una" if gender == "f" else "un"
            return (
                ("veintiún" if one == "un" else "veintiuna")
                if value == 21
                else f"{TENS[value // 10]} y {one}"
            )
        if value < 30:
            return ONES[value]
        ten, unit = divmod(value, 10)
        return TENS[ten] + (f" y {ONES[unit]}" if unit else "")

    def sentence(self, words: str, *, question: bool = False) -> str:
        text = super().sentence(words, question=question)
        return "¿" + text if question else text

    def greeting(self, greeting: str, name: str) -> str:
        return f"¡{greeting}, {name}!"

    def fused(self, words: str) -> str:
        return re.sub(r"\b(a|de) el\b", lambda found: found[1] + "l", words)

    def phrase(self, phrase: NounPhrase) -> str:
        forms = phrase.noun.es
        feminine = forms.gender == "f"
        noun = forms.plural if phrase.plural else forms.singular
        adjective = ""
        if phrase.adjective:
            form = self._agreeing(phrase.adjective, feminine, phrase.plural)
            adjective = words("muy" if phrase.very else "", form)
        owner = "de " + self._who(phrase.owner) if phrase.owner else ""
        return words(self._determiner(phrase, feminine), noun, adjective, owner)

    def _determiner(self, phrase: NounPhrase, feminine: bool) -> str:
        match phrase.determiner:
            case "the" | "owner":
                forms = ("el", "la", "los", "las")
            case "a":
                forms = ("un", "una", "", "")
            case "this":
                forms = ("este", "esta", "estos", "estas")
            case "my":
                forms = ("mi", "mi", "mis", "mis")
            case "our":
                forms = ("nuestro", "nuestra", "nuestros", "nuestras")
            case "count":
                gender = phrase.noun.es.gender
                return str(phrase.count) if phrase.digits else self.number(phrase.count, gender)
        return forms[feminine + 2 * phrase.plural]

    def _agreeing(self, adjective: Adjective, feminine: bool, plural: bool) -> str:
        return adjective.es[feminine + 2 * plural]

    def _who(self, who: Subject | Noun) -> str:
        match who:
            case Name():
                return who.text
            case Pronoun():
                return {"I": "", "he": "él", "she": "ella", "we": ""}[who.word]
            case Noun():
                return ("la " if who.es.gender == "f" else "el ") + who.es.singular
            case NounPhrase():
                return self.phrase(who)

    def clause(self, clause: Clause) -> str:
        who = person(clause.subject)
        form = clause.verb.es
        if clause.mode == "present":
            finite, rest = form[who], ""
        else:
            finite = AUXILIARIES[clause.mode]["es"][who]
            rest = form[5] if clause.mode == "perfect" else form[4]
        subject = self._who(clause.subject)
        end = words(
            "a" if _somebody(clause.object) else "",
            self._who(clause.object),
            "a " + self._who(clause.recipient) if clause.recipient else "",
            "porque " + self.state(clause.because) if clause.because else "",
        )
        negation = "no" if clause.negative else ""
        if clause.question:
            return self._asked(clause.mode, negation, finite, rest, subject, end)
        when = self._when(clause.when) if clause.when else ""
        return words(when, subject, negation, finite, rest, end)

    def _asked(self, mode: str, negation: str, finite: str, rest: str, subject: str, end: str) -> str:
        """The subject follows the finite verb, the participle with it."""
        if mode == "perfect":
            return words(negation, finite, rest, subject, end)
        if mode == "will":
            return words(negation, finite.removesuffix(" a"), subject, "a", rest, end)
        return words(negation, finite, subject, rest, end)

    def _when(self, when: When) -> str:
        if when.adverb is not None:
            return ADVERBS["es"][when.adverb]
        if when.weekday is not None:
            return "el " + self.weekday(when.weekday)
        assert when.date is not None
        return f"el {when.date[0]} de {self.month(when.date[1])}"

    def state(self, state: State) -> str:
        plural = person(state.subject) == 3
        subject = self._who(state.subject)
        negation = "no" if state.negative else ""
        if state.place:
            verb = "están" if plural else "está"
            where = f"en {'la' if state.place.es.gender == 'f' else 'el'} {state.place.es.singular}"
            if state.question:
                return words(negation, verb, subject, where)
            return words(subject, negation, verb, where)
        assert state.adjective is not None
        verb = "son" if plural else "es"
        form = self._agreeing(state.adjective, _feminine(state.subject), plural)
        what = words("muy" if state.very else "", form)
        if state.question:
            return words(negation, verb, what, subject)
        return words(subject, negation, verb, what)

    def existence(self, existence: Existence) -> str:
        place = existence.place.es
        article = "la" if place.gender == "f" else "el"
        return f"hay {self.phrase(existence.what)} en {article} {place.singular}"

    def time_is(self, clock: Clock) -> str:
        return words("es" if _hour(clock) == 1 else "son", self._clock(clock))

    def _clock(self, clock: Clock) -> str:
        hour = _hour(clock)
        article = "la" if hour == 1 else "las"
        if clock.digits:
            return f"{article} {clock.hour}:{clock.minute:02}"
        name = f"{article} {'una' if hour == 1 else self.number(hour)}"
        if clock.minute == 0:
            return name
        before = clock.minute > 30
        minutes = 60 - clock.minute if before else clock.minute
        rest = {15: "cuarto", 30: "media"}.get(minutes) or self.number(minutes)
        return words(name, "menos" if before else "y", rest)

    def travel(self, travel: Travel) -> str:
        verb = travel.verb.es[3 if travel.vehicle.plural else 1]
        when = self._when(travel.when) if travel.when else ""
        return words(self.phrase(travel.vehicle), verb, when, "a", self._clock(travel.clock))

    def today(self, today: Today) -> str:
        return (
            f"hoy es {self.weekday(today.weekday)}, {today.day} de {self.month(today.month)} de {today.year}"
        )

    def price(self, price: Price) -> str:
        verb = "cuestan" if price.what.plural else "cuesta"
        return f"{self.phrase(price.what)} {verb} {euros(price.cents, ',')} €"


def _hour(clock: Clock) -> int:
    """The hour that is named."""
    return clock.hour + (not clock.digits and clock.minute > 30)


def _somebody(who: NounPhrase | Name) -> bool:
    return isinstance(who, Name) or who.noun in PEOPLE


def _feminine(subject: Subject) -> bool:
    match subject:
        case Pronoun():
            return subject.word == "she"
        case Name():
            return subject.gender == "f"
        case NounPhrase():
            return subject.noun.es.gender == "f"
