"""Codes of languages, those that mean the same, and pairs of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.languages import Pairs, code_of, name_of, pair_of
from modelyard.languages import near

CODES = ("en", "fr", "de", "zh", "zh-Hans", "zh-Hant", "pt", "pt-BR")
codes = st.sampled_from(CODES)
pairs = st.builds(
    Pairs,
    st.frozensets(st.tuples(codes, codes).filter(lambda pair: pair[0] != pair[1]), max_size=6),
    st.frozensets(codes, max_size=4),
)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("en", "en"),
        ("EN", "en"),
        ("pt_br", "pt-BR"),
        ("ZH-hans-cn", "zh-Hans-CN"),
        ("es_419", "es-419"),
        ("en_ab1c", "en-AB1C"),
    ],
)
def test_codes_are_written_alike(text: str, code: str) -> None:
    assert code_of(text) == code == code_of(code)


@pytest.mark.parametrize("text", ["", "e", "engl", "en-", "-fr", "en fr", "en\n", "é1", "en-x", "auto", "*"])
def test_what_is_no_code(text: str) -> None:
    with pytest.raises(ValueError, match="is not a language's code"):
        code_of(text)


@pytest.mark.parametrize("text", ["", "en", "en-", "-fr", "en-pt-BR", "en_fr", "en--fr", "en-fr\n", "**-fr"])
def test_what_is_no_pair(text: str) -> None:
    with pytest.raises(ValueError, match="is not a pair"):
        pair_of(text)


@given(codes, codes)
def test_a_pair_in_one_word_is_read_as_it_was_written(source: str, target: str) -> None:
    assert pair_of(name_of((source, target))) == (source, target)


@pytest.mark.parametrize(
    ("code", "known", "found"),
    [
        ("en", "en fr", "en"),
        ("EN", "en fr", "en"),
        ("it", "en fr", None),
        ("zh-CN", "zh en", "zh"),
        ("zh-CN", "zh-Hant zh-Hans", "zh-Hans"),
        ("zh-TW", "zh-Hans zh-Hant", "zh-Hant"),
        ("zh-TW", "zh-Hans", "zh-Hans"),
        ("zh", "zh-Hans zh-Hant", "zh-Hans"),
        ("zh-Hant", "zh zh-Hans", "zh"),
        ("pt_BR", "pt", "pt"),
        ("pt_BR", "pt pt-BR", "pt-BR"),
        ("pt", "pt-BR", "pt-BR"),
        ("pt-PT", "pt-BR", None),
        ("en-GB", "eng en", "en"),
        ("eng", "en fr", "en"),
        ("fra_Latn", "en fr", "fr"),
        ("zho_Hant", "zh zh-Hant", "zh-Hant"),
        ("xyz", "en fr", None),
    ],
)
def test_near_codes(code: str, known: str, found: str | None) -> None:
    assert next(near(code, frozenset(known.split())), None) == found


@given(pairs)
def test_pairs_are_those_that_they_list(some: Pairs) -> None:
    listed = list(some)
    assert listed == sorted(set(listed))
    assert bool(some) == bool(listed)
    assert set(listed) == {(one, other) for one in CODES for other in CODES if (one, other) in some}
    assert {pair for pair in listed if pair[0] == "en"} == {("en", code) for code in some.targets("en")}
    assert some.sources >= {source for source, _ in listed}
    assert some.languages >= {target for _, target in listed}
    assert ("en", "en") not in some


@given(pairs, codes, codes)
def test_what_is_found_is_translated_and_exact_where_it_can_be(some: Pairs, source: str, target: str) -> None:
    found = some.find(source, target)
    if (source, target) in some:
        assert found == (source, target)
    if found is not None:
        assert found in some
        assert [code.partition("-")[0] for code in found] == [
            code.partition("-")[0] for code in (source, target)
        ]


def test_another_source_of_the_same_language_is_tried() -> None:
    some = Pairs(frozenset({("pt-BR", "fr"), ("pt", "en")}))
    assert some.find("pt_BR", "en") == ("pt", "en")
    assert some.find("pt", "fr") == ("pt-BR", "fr")
