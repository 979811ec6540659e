"""The section `translation`, and what models are said to translate."""

from __future__ import annotations

import pytest

from modelyard.config import Config, ConfigErrors, Translation, load
from modelyard.config.difference import compare
from modelyard.config.values import PROMPT
from modelyard.core.languages import Pairs
from modelyard.core.types import Spec

MODELS = "models: {small: {engine: fake}, large: {engine: fake}}\n"


def text(content: str) -> Config:
    return load(None, content, {}, engine_types=["fake"])


def spec(fields: str) -> Spec:
    return text(f"models: {{a: {{engine: fake, {fields}}}}}").models[0].spec


def problems(content: str) -> dict[str, str]:
    with pytest.raises(ConfigErrors) as caught:
        text(content)
    return {problem.path: problem.message for problem in caught.value.problems}


def of_model(fields: str) -> dict[str, str]:
    return problems(f"models: {{a: {{engine: fake, {fields}}}}}")


def test_what_is_not_said_is_the_default() -> None:
    assert text(MODELS).translation == Translation() == text("translation: {}").translation
    assert spec("slots: 1").pairs == Pairs()


def test_the_whole_section() -> None:
    found = text(
        MODELS
        + """
translation:
  pivot: en
  llm: {model: large, prompt: "From {source} to {target}, {{json}}"}
  fallback: {model: small, text: "not now"}
  cache: 1MB
  preload: [en-fr, de-en, en-fr, en-PT_br]
  max_texts: 10
  max_chars: 1000
  local_only: true
  spill_after: 250ms
"""
    ).translation
    assert found == Translation(
        pivot=("en",),
        llm="large",
        prompt="From {source} to {target}, {{json}}",
        fallback="small",
        fixed="not now",
        cache=1_000_000,
        preload=(("en", "fr"), ("de", "en"), ("en", "pt-BR")),
        max_texts=10,
        max_chars=1000,
        local_only=True,
        spill_after=0.25,
    )
    assert text("translation: {preload: auto}").translation.preload_auto
    assert text(MODELS + "translation: {llm: {model: large}}").translation.prompt == PROMPT


def test_a_model_that_is_registered_later_may_be_named_and_one_that_was_mistyped_may_not() -> None:
    assert text(MODELS + "translation: {llm: {model: elsewhere}}").translation.llm == "elsewhere"
    found = problems(MODELS + "translation: {llm: {model: lage}, fallback: {model: smal}}")
    assert found == {
        "translation.llm.model": "there is no model 'lage'; did you mean 'large'?",
        "translation.fallback.model": "there is no model 'smal'; did you mean 'small'?",
    }


@pytest.mark.parametrize(
    ("section", "path", "said"),
    [
        ("pivot: [en, english]", "pivot[1]", "is not a language's code"),
        ("pivot: '*'", "pivot[0]", "is not a language's code"),
        ("preload: [en]", "preload[0]", "is not a pair of languages"),
        ("preload: [en-fr, auto]", "preload[1]", "`auto` stands alone"),
        ("preload: ['*-fr']", "preload[0]", "`auto` stands alone"),
        ("preload: [en-en_EN_]", "preload[0]", "is not a pair of languages"),
        ("llm: {}", "llm.model", "is required"),
        ("llm: {model: large, prompt: to me}", "llm.prompt", "needs {target}"),
        ("llm: {model: large, prompt: 'to {target} {text}'}", "llm.prompt", "has {text}"),
        ("llm: {model: large, prompt: 'to {target!z}'}", "llm.prompt", "has {target!z}; only"),
        ("llm: {model: large, prompt: 'to {target:>9999999999}'}", "llm.prompt", "has {target:>9999999999}"),
        ("llm: {model: large, prompt: '{source:%d} {target}'}", "llm.prompt", "has {source:%d}"),
        ("llm: {model: large, prompt: 'to {target} }'}", "llm.prompt", "single { or }"),
        ("fallback: {}", "fallback", "needs a `model`, a `text`, or both"),
        ("cache: 0", "cache", "more than 0"),
        ("max_texts: 0", "max_texts", "between 1"),
        ("spill_after: forever", "spill_after", "bound"),
        ("local: true", "local", "is not a field here"),
    ],
)
def test_what_is_wrong_in_the_section_is_named_by_its_path(section: str, path: str, said: str) -> None:
    found = problems(MODELS + f"translation: {{{section}}}")
    assert list(found) == [f"translation.{path}"]
    assert said in found[f"translation.{path}"]


def test_what_a_model_translates() -> None:
    assert spec("languages: [en, fr, PT_br]").pairs == Pairs(among=frozenset({"en", "fr", "pt-BR"}))
    assert spec("pairs: en-fr").pairs == Pairs(frozenset({("en", "fr")}))
    assert spec("languages: [en, fr], pairs: ['*-*']").pairs == Pairs(among=frozenset({"en", "fr"}))
    fan = spec("languages: [en, fr, de], pairs: [en-*, '*-it', de-zh_hans]").pairs
    assert set(fan) == {
        ("en", "fr"),
        ("en", "de"),
        ("en", "it"),
        ("fr", "it"),
        ("de", "it"),
        ("de", "zh-Hans"),
    }


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ("languages: [en]", "languages", "is one language alone"),
        ("languages: [e]", "languages[0]", "is not a language's code"),
        ("pairs: [en-fr, english-french]", "pairs[1]", "is not a pair of languages"),
        ("pairs: [en_fr]", "pairs[0]", "is not a pair of languages"),
        ("pairs: [auto]", "pairs[0]", "is not a pair of languages"),
        ("pairs: [en-en]", "pairs[0]", "is one language twice"),
        ("pairs: ['*-en']", "pairs[0]", "say under `languages` which"),
        ("languages: [en, fr], pairs: [en-fr]", "languages", "is of no use beside"),
    ],
)
def test_what_is_wrong_in_a_model_is_named_by_its_path(fields: str, path: str, said: str) -> None:
    found = of_model(fields)
    assert list(found) == [f"models.a.{path}"]
    assert said in found[f"models.a.{path}"]


def test_what_it_translates_makes_a_version_and_its_quality_does_not() -> None:
    bare, some, same = spec("slots: 1"), spec("languages: [en, fr]"), spec("languages: [fr, en, en]")
    assert len({bare.digest, some.digest, spec("pairs: [en-fr]").digest, spec("pairs: [fr-en]").digest}) == 4
    assert same.digest == some.digest
    before, after = (text(f"models: {{a: {{engine: fake, quality: {number}}}}}") for number in (0, 3))
    assert after.models[0].policy.quality == 3
    assert after.models[0].spec.digest == before.models[0].spec.digest


def test_a_difference_tells_what_changed() -> None:
    before = text("models: {a: {engine: fake, languages: [en, fr]}}")
    after = text("models: {a: {engine: fake, pairs: [en-fr, fr-zh_Hans]}}\ntranslation: {pivot: [en]}")
    found = compare(before, after)
    assert [(one.path, one.before, one.after) for one in found.models[0].fields] == [
        ("languages", ["en", "fr"], []),
        ("pairs", [], ["en-fr", "fr-zh_Hans"]),
    ]
    assert [(one.path, one.before, one.after) for one in found.settings] == [
        ("translation.pivot", [], ["en"])
    ]
    assert not found.fixed


@pytest.mark.parametrize(
    ("fields", "slots"),
    [
        ("engine: ctranslate2", 64),
        ("engine: ctranslate2, slots: 2", 2),
        ("engine: transformers, parameters: {translation: true}", 64),
        ("engine: transformers", 1),
        ("engine: fake", 1),
        ("engine: nowhere", 1),
    ],
)
def test_a_model_whose_engine_batches_translations_takes_many_at_once(fields: str, slots: int) -> None:
    types = ["ctranslate2", "transformers", "fake", "nowhere"]
    found = load(None, f"models: {{a: {{{fields}, source: /m}}}}", {}, engine_types=types)
    assert found.models[0].spec.slots == slots
