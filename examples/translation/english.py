"""English: "do" in questions and negations, the possessor before what is possessed."""

from __future__ import annotations

from translation.grammar import Grammar, euros, listed, words
from translation.lexicon import ADVERBS, AUXILIARIES, Name, Noun, Verb
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
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = listed("- - twenty thirty forty fifty sixty seventy eighty ninety")


class English(Grammar):
    code = "en"

    def number(self, value: int) -> str:
        if value >= 100:
            rest = value % 100
            return words(ONES[value // 100], "hundred", "and " + self.number(rest) if rest else "")
        if value < 20:
            return ONES[value]
        return TENS[value // 10] + (f"-{ONES[value % 10]}" if value % 10 else "")

    def phrase(self, phrase: NounPhrase) -> str:
        noun = phrase.noun.en.plural if phrase.plural else phrase.noun.en.singular
        adjective = words("very" if phrase.very else "", phrase.adjective.en) if phrase.adjective else ""
        rest = words(adjective, noun)
        return words(self._determiner(phrase, rest), rest)

    def _determiner(self, phrase: NounPhrase, rest: str) -> str:
        match phrase.determiner:
            case "a":
                return "an" if rest[0] in "aeiou" else "a"
            case "this":
                return "these" if phrase.plural else "this"
            case "count":
                return str(phrase.count) if phrase.digits else self.number(phrase.count)
            case "owner":
                assert phrase.owner is not None
                return self._who(phrase.owner) + "'s"
            case other:
                return other

    def _who(self, who: Subject | Noun) -> str:
        match who:
            case Name():
                return who.text
            case Pronoun():
                return who.word
            case Noun():
                return "the " + who.en.singular
            case NounPhrase():
                return self.phrase(who)

    def clause(self, clause: Clause) -> str:
        subject = self._who(clause.subject)
        finite, rest = self._verb(clause.verb, clause.mode, person(clause.subject), plain=self._plain(clause))
        negation = "not" if clause.negative else ""
        end = words(self._who(clause.recipient) if clause.recipient else "", self._who(clause.object))
        if clause.because:
            end = words(end, "because", self.state(clause.because))
        if clause.question:
            return words(finite, subject, negation, rest, end)
        return words(self._when(clause.when), subject, finite, negation, rest, end)

    def _plain(self, clause: Clause) -> bool:
        return not (clause.negative or clause.question)

    def _verb(self, verb: Verb, mode: str, who: int, *, plain: bool) -> tuple[str, str]:
        """The finite verb, and what comes after "not"."""
        base, third, participle = verb.en
        singular = who == 1
        if mode == "present":
            return (third if singular else base, "") if plain else ("does" if singular else "do", base)
        auxiliary = AUXILIARIES[mode]["en"][singular]
        if mode == "want" and not plain:
            return "does" if singular else "do", words("want to", base)
        return auxiliary, participle if mode == "perfect" else base

    def _when(self, when: When | None) -> str:
        if when is None:
            return ""
        if when.adverb is not None:
            return ADVERBS["en"][when.adverb]
        if when.weekday is not None:
            return "on " + self.weekday(when.weekday)
        assert when.date is not None
        return f"on {self.month(when.date[1])} {when.date[0]}"

    def state(self, state: State) -> str:
        subject = self._who(state.subject)
        verb = "are" if person(state.subject) == 3 else "is"
        negation = "not" if state.negative else ""
        if state.place:
            what = f"in the {state.place.en.singular}"
        else:
            assert state.adjective is not None
            what = words("very" if state.very else "", state.adjective.en)
        if state.question:
            return words(verb, subject, negation, what)
        return words(subject, verb, negation, what)

    def existence(self, existence: Existence) -> str:
        verb = "are" if existence.what.plural else "is"
        return f"there {verb} {self.phrase(existence.what)} in the {existence.place.en.singular}"

    def time_is(self, clock: Clock) -> str:
        return "it is " + self._clock(clock)

    def _clock(self, clock: Clock) -> str:
        if clock.digits:
            return f"{clock.hour}:{clock.minute:02}"
        if clock.minute == 0:
            return f"{self.number(clock.hour)} o'clock"
        before = clock.minute > 30
        minutes = 60 - clock.minute if before else clock.minute
        name = {15: "a quarter", 30: "half"}.get(minutes) or self.number(minutes)
        return f"{name} {'to' if before else 'past'} {self.number(clock.hour + before)}"

    def travel(self, travel: Travel) -> str:
        verb = travel.verb.en[0 if travel.vehicle.plural else 1]
        return words(
            self.phrase(travel.vehicle), verb, self._when(travel.when), "at", self._clock(travel.clock)
        )

    def today(self, today: Today) -> str:
        return f"today is {self.weekday(today.weekday)}, {self.month(today.month)} {today.day}, {today.year}"

    def price(self, price: Price) -> str:
        verb = "cost" if price.what.plural else "costs"
        return f"{self.phrase(price.what)} {verb} €{euros(price.cents, '.')}"
