"""The section `translation`, and what a model is said to translate. Used by `build`."""

from __future__ import annotations

from collections.abc import Collection
from string import Formatter

from modelyard.config.problems import Refuse, near_miss
from modelyard.config.schema import ModelSection
from modelyard.config.translation_schema import TranslationSection
from modelyard.config.values import PROMPT, Translation
from modelyard.core.languages import Pairs, pair_of

_FIELDS = {"source", "target"}


def pairs_setting(section: ModelSection, path: str, refuse: Refuse) -> Pairs:
    """What a model's `languages` and `pairs` say."""
    languages = frozenset(section.languages)
    if not section.pairs:
        if len(languages) == 1:
            refuse(f"{path}.languages", "is one language alone: name another, or write `pairs`")
        return Pairs(among=languages)
    listed, among, used = set(), frozenset[str](), False
    for index, text in enumerate(section.pairs):
        if text == "auto":
            refuse(f"{path}.pairs[{index}]", "is not a pair of languages, e.g. en-fr")
            continue
        source, target = pair_of(text)
        if "*" in (source, target):
            used = True
            if len(languages) < 2:
                refuse(f"{path}.pairs[{index}]", "has a `*`: say under `languages` which these are")
        if (source, target) == ("*", "*"):
            among = languages
            continue
        if source == target:
            refuse(f"{path}.pairs[{index}]", "is one language twice")
        sources = languages if source == "*" else {source}
        targets = languages if target == "*" else {target}
        listed |= {(one, other) for one in sources for other in targets if one != other}
    if languages and not used:
        refuse(f"{path}.languages", "is of no use beside `pairs` without a `*`: leave it out")
    return Pairs(frozenset(listed), among)


def translation_setting(section: TranslationSection, models: Collection[str], refuse: Refuse) -> Translation:
    """The section with its defaults; `models` are the names that there are."""
    path, auto = "translation", section.preload == ["auto"]
    preload = []
    for index, text in enumerate([] if auto else section.preload):
        if text == "auto" or "*" in text:
            refuse(f"{path}.preload[{index}]", "is not a pair of languages, e.g. en-fr; `auto` stands alone")
        else:
            preload.append(pair_of(text))
    llm, last = section.llm, section.fallback
    if llm is not None:
        _known(llm.model, models, f"{path}.llm.model", refuse)
        if llm.prompt is not None and (wrong := _wrong(llm.prompt)):
            refuse(f"{path}.llm.prompt", wrong)
    if last is not None and last.model is None and last.text is None:
        refuse(f"{path}.fallback", "needs a `model`, a `text`, or both")
    if last is not None and last.model is not None:
        _known(last.model, models, f"{path}.fallback.model", refuse)
    return Translation(
        pivot=tuple(dict.fromkeys(section.pivot)),
        llm=llm.model if llm is not None else "",
        prompt=(llm.prompt if llm is not None else None) or PROMPT,
        fallback=(last.model if last is not None else None) or "",
        fixed=last.text if last is not None else None,
        cache=section.cache or 0,
        preload=tuple(dict.fromkeys(preload)),
        preload_auto=auto,
        max_texts=section.max_texts,
        max_chars=section.max_chars,
        local_only=section.local_only,
        spill_after=section.spill_after,
    )


def _known(name: str, models: Collection[str], path: str, refuse: Refuse) -> None:
    """A name that no model of the file has, and that looks like one of these, was mistyped; others may be
    registered while it serves."""
    if name not in models and (hint := near_miss(name, models)):
        refuse(path, f"there is no model '{name}'{hint}")


def _wrong(prompt: str) -> str:
    """What is wrong with a prompt; empty when nothing is."""
    try:
        named = {
            f"{name}{'!' * bool(conversion)}{conversion or ''}{':' * bool(form)}{form}"
            for _, name, form, conversion in Formatter().parse(prompt)
            if name is not None
        }
    except ValueError:
        return "has a single { or }; write {{ or }} for the character itself"
    if other := sorted(named - _FIELDS):
        return f"has {{{other[0]}}}; only {{source}} and {{target}} are filled in"
    return "" if "target" in named else "does not say which language to translate to: it needs {target}"
