from __future__ import annotations

import pytest

from modelyard import languages

M2M100 = frozenset(("ar", "en", "fr", "nso", "no", "pt", "sr", "tl", "zh"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("en", "en"),
        ("EN", "en"),
        ("en-GB", "en"),
        ("eng", "en"),
        ("eng_Latn", "en"),
        ("pt_BR", "pt"),
        ("zh-CN", "zh"),
        ("zh_Hans", "zh"),
        ("zh-Hant-TW", "zh-Hant"),
        ("zh-TW", "zh-Hant"),
        ("zt", "zh-Hant"),
        ("zho_Hant", "zh-Hant"),
        ("sr-Latn", "sr"),
        ("arb_Arab", "ar"),
        ("kas_Deva", "ks-Deva"),
        ("kas_Arab", "ks"),
        ("nb", "no"),
        ("ns", "nso"),
        ("fil", "tl"),
        ("iw", "he"),
        ("ROMANCE", "ROMANCE"),
        ("", ""),
    ],
)
def test_a_code_is_written_in_one_way(text: str, code: str) -> None:
    assert languages.canonical(text) == code


def test_a_language_is_found_without_its_region_and_its_script() -> None:
    assert languages.match("zh-TW", M2M100) == "zh"
    assert languages.match("zh-TW", M2M100 | {"zh-Hant"}) == "zh-Hant"
    assert languages.match("zho_Hant", M2M100) == "zh"
    assert languages.match("pt_BR", M2M100) == "pt"
    assert languages.match("de", M2M100) is None


@pytest.mark.parametrize(
    "text", ["", "e", "en-", "en-US-x-y", "en fr", "../en", "en\0", "ен", "e" * 10_000, "1e"]
)
def test_what_is_no_code_is_no_language(text: str) -> None:
    assert languages.match(text, M2M100) is None
    assert isinstance(languages.similar(text, M2M100), list)


def test_near_codes_are_those_of_like_names_and_letters() -> None:
    assert languages.similar("english", M2M100)[0] == "en"
    assert languages.similar("frr", M2M100)[0] == "fr"
    assert len(languages.similar("x", M2M100)) <= 3


def test_every_code_has_a_name_and_is_its_own() -> None:
    for code in languages.NAMES:
        assert languages.canonical(code) == code
        assert languages.name(code) != code
    assert languages.name("zh-Hant") == "Chinese (traditional)"
    assert languages.name("qqq") == "qqq"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("pt_BR", "Portuguese (BR)"),
        ("zt", "Chinese (traditional)"),
        ("nb", "Norwegian"),
        ("zh-Hans", "Chinese (simplified)"),
    ],
)
def test_a_code_that_is_written_in_another_way_has_its_name(code: str, name: str) -> None:
    assert languages.name(code) == name
