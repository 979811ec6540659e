"""The sentences of examples/translation: one right translation each, some kept from every training."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from translation import corpus
from translation.corpus import LANGUAGES
from translation.lexicon import (
    NAMES,
    OF_ALL,
    OF_GIVING,
    OF_OPENINGS,
    OF_THINGS,
    OF_TRAVEL,
    OPENINGS,
    PEOPLE,
    THINGS,
    VEHICLES,
)
from translation.meaning import (
    Clause,
    Clock,
    Meaning,
    NounPhrase,
    Number,
    Price,
    Pronoun,
    State,
    Travel,
    When,
)

Sentence = dict[str, str]
TRAINED = list(itertools.islice(corpus.training(7), 6_000))
TESTED = corpus.testing(11, 100)


def noun(english: str, determiner: str = "the", **more: object) -> NounPhrase:
    (found,) = (each for each in (*PEOPLE, *THINGS, *OPENINGS) if each.en.singular == english)
    return NounPhrase(found, determiner, **more)  # type: ignore[arg-type]


def adjective(english: str) -> object:
    return next(each for each in OF_THINGS if each.en == english)


def test_what_is_said_is_what_its_four_languages_say() -> None:
    find, need = OF_ALL[1], OF_ALL[3]
    open_it, give = OF_OPENINGS[0], OF_GIVING[0]
    old_man = noun("man", adjective=adjective("old"))
    said: dict[Meaning, tuple[str, str, str, str]] = {
        NounPhrase(THINGS[0], "count", True, OF_THINGS[5], count=21): (
            "twenty-one red apples",
            "vingt et une pommes rouges",
            "einundzwanzig rote Äpfel",
            "veintiuna manzanas rojas",
        ),
        Number(571): (
            "five hundred and seventy-one",
            "cinq cent soixante et onze",
            "fünfhunderteinundsiebzig",
            "quinientos setenta y uno",
        ),
        Clause(old_man, open_it, noun("window", "this"), "present", when=When(date=(1, 3))): (
            "On March 1 the old man opens this window.",
            "Le 1er mars, le vieil homme ouvre cette fenêtre.",
            "Am 1. März macht der alte Mann dieses Fenster auf.",
            "El 1 de marzo el hombre viejo abre esta ventana.",
        ),
        Clause(Pronoun("I"), need, noun("dog", "owner", owner=PEOPLE[4]), "must", negative=True): (
            "I must not need the king's dog.",
            "Je ne dois pas avoir besoin du chien du roi.",
            "Ich darf den Hund des Königs nicht brauchen.",
            "No debo necesitar el perro del rey.",
        ),
        Clause(NAMES[0], give, noun("key", "a"), "will", recipient=noun("child"), question=True): (
            "Will Anna give the child a key?",
            "Est-ce qu'Anna va donner une clé à l'enfant ?",
            "Wird Anna dem Kind einen Schlüssel geben?",
            "¿Va Anna a dar una llave al niño?",
        ),
        Clause(
            Pronoun("she"), find, NAMES[6], "perfect", because=State(noun("house", "our"), OF_THINGS[1], True)
        ): (
            "She has found Paul because our house is very small.",
            "Elle a trouvé Paul parce que notre maison est très petite.",
            "Sie hat Paul gefunden, weil unser Haus sehr klein ist.",
            "Ella ha encontrado a Paul porque nuestra casa es muy pequeña.",
        ),
        Clock(3, 35, False): (
            "It is twenty-five to four.",
            "Il est quatre heures moins vingt-cinq.",
            "Es ist fünf nach halb vier.",
            "Son las cuatro menos veinticinco.",
        ),
        Travel(
            NounPhrase(VEHICLES[0]),
            OF_TRAVEL[1],
            When(weekday=0),
            Clock(14, 5, True),
        ): (
            "The train leaves on Monday at 14:05.",
            "Le train part lundi à 14 h 05.",
            "Der Zug fährt am Montag um 14:05 Uhr ab.",
            "El tren sale el lunes a las 14:05.",
        ),
        Price(noun("book", "owner", owner=NAMES[0], adjective=adjective("new")), 1205): (
            "Anna's new book costs €12.05.",
            "Le nouveau livre d'Anna coûte 12,05 €.",
            "Annas neues Buch kostet 12,05 €.",
            "El libro nuevo de Anna cuesta 12,05 €.",
        ),
    }
    for meaning, expected in said.items():
        assert tuple(corpus.translations(meaning).values()) == expected


def test_a_sentence_has_one_right_translation_in_each_language() -> None:
    """No sentence of one language stands for two of another."""
    found: dict[str, dict[str, tuple[str, ...]]] = {code: {} for code in LANGUAGES}
    for sentence in (*TRAINED, *TESTED):
        for code, text in sentence.items():
            assert found[code].setdefault(text, tuple(sentence.values())) == tuple(sentence.values())


def test_a_seed_says_which_sentences() -> None:
    assert list(itertools.islice(corpus.training(7), 200)) == TRAINED[:200]
    assert list(itertools.islice(corpus.training(8), 200)) != TRAINED[:200]
    assert corpus.testing(11, 20) == TESTED[:20]


def test_no_held_out_sentence_is_in_a_training_set_in_any_language() -> None:
    assert len({sentence["en"] for sentence in TESTED}) == len(TESTED)
    trained = [*TRAINED, *itertools.islice(corpus.training(11), 3_000)]
    for code in LANGUAGES:
        assert {sentence[code] for sentence in TESTED}.isdisjoint(sentence[code] for sentence in trained)


def test_every_word_of_the_held_out_sentences_is_trained() -> None:
    """What they ask for is to combine words, not to guess them; digits apart."""
    for code in LANGUAGES:
        trained = {word for sentence in TRAINED for word in sentence[code].lower().split()}
        asked = {word for sentence in TESTED for word in sentence[code].lower().split()}
        new = [word for word in asked - trained if not any(map(str.isdigit, word))]
        assert len(new) < 0.05 * len(asked)


@pytest.mark.parametrize(("source", "target"), [("en", "fr"), ("fr", "de"), ("fr", "es")])
def test_a_lookup_table_does_not_translate_them(source: str, target: str) -> None:
    """Neither of sentences, nor of the one most like it, nor of phrases and words."""
    sentences = {sentence[source]: sentence[target] for sentence in TRAINED}
    assert not any(sentence[source] in sentences for sentence in TESTED)
    nearest = _Nearest(sentences)
    table = _PhraseTable(sentences)
    assert _right(source, target, nearest.translate) < 0.05
    assert _right(source, target, table.translate) < 0.2
    # It is a table that does what such tables can: it knows its own phrases.
    phrase = next(sentence for sentence in TRAINED if sentence[source][0].islower())
    assert table.translate(phrase[source]) == phrase[target]


def _right(source: str, target: str, translate: Callable[[str], str]) -> float:
    return sum(translate(sentence[source]) == sentence[target] for sentence in TESTED) / len(TESTED)


class _Nearest:
    """The translation of the trained sentence that has the most words in common."""

    def __init__(self, sentences: Sentence) -> None:
        self._known = [(set(source.split()), target) for source, target in sentences.items()]

    def translate(self, text: str) -> str:
        words = set(text.split())
        return max(self._known, key=lambda known: len(words & known[0]) / len(words | known[0]))[1]


class _PhraseTable:
    """The longest phrase that was trained as such, else the word that goes with the word most."""

    def __init__(self, sentences: Sentence) -> None:
        self._phrases = {
            source: target
            for source, target in sentences.items()
            if source[-1] not in ".?!" and " " in source
        }
        together: Counter[tuple[str, str]] = Counter()
        sources: Counter[str] = Counter()
        targets: Counter[str] = Counter()
        for source, target in sentences.items():
            left, right = set(source.split()), set(target.split())
            sources.update(left)
            targets.update(right)
            together.update(itertools.product(left, right))
        self._words: dict[str, str] = {}
        best: dict[str, float] = {}
        for (left_word, right_word), count in together.items():
            share = count / (sources[left_word] + targets[right_word])
            if share > best.get(left_word, 0.0):
                best[left_word], self._words[left_word] = share, right_word

    def translate(self, text: str) -> str:
        return " ".join(self._parts(text.split()))

    def _parts(self, words: list[str]) -> Iterator[str]:
        at = 0
        while at < len(words):
            for end in range(len(words), at + 1, -1):
                phrase = self._phrases.get(" ".join(words[at:end]))
                if phrase:
                    yield phrase
                    break
            else:
                end = at + 1
                yield self._words.get(words[at], words[at])
            at = end


def test_its_files_are_small() -> None:
    """Of the whole example, models too."""
    folder = Path(corpus.__file__).parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10_000_000
