"""Routes of translations: who is asked for a pair, and in which order."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.languages import Pairs
from modelyard.core.routing import MOST, Candidate, Kind, Route, Rules, Step, routes
from modelyard.languages import near

CODES = ("en", "fr", "de", "zh", "zh-Hans")
codes = st.sampled_from(CODES)
ORDER = [Kind.DIRECT, Kind.PIVOT, Kind.LLM, Kind.FALLBACK, Kind.FIXED]
some_pairs = st.builds(
    Pairs,
    st.frozensets(st.tuples(codes, codes).filter(lambda pair: pair[0] != pair[1]), max_size=6),
    st.frozensets(codes, max_size=3),
)
seconds = st.sampled_from((0.0, 1.0, 5.0, 60.0, float("inf")))


@st.composite
def candidates_(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for number in range(draw(st.integers(0, 5))):
        ready = draw(st.booleans())
        found.append(
            Candidate(
                f"m{number}",
                draw(some_pairs),
                quality=draw(st.integers(0, 2)),
                ready=ready,
                load_seconds=0.0 if ready else draw(seconds),
                wait=draw(seconds),
                local=draw(st.booleans()),
                cost=draw(st.sampled_from((0.0, 1.0, 20.0))),
            )
        )
    return found


rules_ = st.builds(
    Rules,
    pivots=st.lists(codes, unique=True, max_size=2).map(tuple),
    spill_after=st.sampled_from((0.0, 4.0, 10.0)),
    local_only=st.booleans(),
    llm=st.sampled_from(("", "llm")),
    fallback=st.none() | st.builds(Candidate, st.just("last"), some_pairs, local=st.booleans()),
    fixed=st.sampled_from((None, "", "not now")),
)
ends = st.tuples(codes, codes).filter(lambda pair: pair[0] != pair[1])


def means(code: str, other: str) -> bool:
    return code.partition("-")[0] == other.partition("-")[0]


def models(found: list[Route], kind: Kind = Kind.DIRECT) -> list[str]:
    return ["+".join(step.model for step in route.steps) for route in found if route.kind is kind]


def en_fr(model: str, **fields: object) -> Candidate:
    return replace(Candidate(model, Pairs(frozenset({("en", "fr")})), ready=True), **fields)  # type: ignore[arg-type]


def absent(model: str, seconds: float = 1.0, **fields: object) -> Candidate:
    return en_fr(model, **{"ready": False, "load_seconds": seconds, **fields})


# -- whatever there is ------------------------------------------------------------------------------------


@given(candidates_(), ends, rules_)
def test_each_step_is_of_a_model_that_translates_it(
    candidates: list[Candidate], pair: tuple[str, str], rules: Rules
) -> None:
    known = {each.model: each for each in candidates}
    if rules.fallback is not None:
        known["last"] = rules.fallback
    for route in routes(candidates, *pair, rules):
        if route.kind in (Kind.LLM, Kind.FIXED):
            continue
        assert means(route.steps[0].source, pair[0])
        assert means(route.steps[-1].target, pair[1])
        for step in route.steps:
            assert (step.source, step.target) in known[step.model].pairs
            assert known[step.model].local or not rules.local_only
        for one, other in pairwise(route.steps):
            assert any(means(one.target, pivot) and means(other.source, pivot) for pivot in rules.pivots)


@given(candidates_(), ends, rules_)
def test_every_model_that_can_is_tried_once_and_what_was_configured_comes_behind(
    candidates: list[Candidate], pair: tuple[str, str], rules: Rules
) -> None:
    found = routes(candidates, *pair, rules)
    places = [ORDER.index(route.kind) for route in found]
    assert places == sorted(places)
    assert len({(route.kind, route.steps) for route in found}) == len(found)
    able = [each for each in candidates if each.pairs.find(*pair)]
    usable = [each.model for each in able if each.local or not rules.local_only]
    assert sorted(models(found)) == sorted(usable)
    assert len(models(found, Kind.PIVOT)) <= MOST
    assert [route.steps for route in found if route.kind is Kind.LLM] == (
        [(Step("llm", *pair),)] if rules.llm else []
    )
    last = rules.fallback
    may = last is not None and last.pairs.find(*pair) is not None and (last.local or not rules.local_only)
    assert models(found, Kind.FALLBACK) == (["last"] if may else [])
    assert [route.text for route in found if route.kind is Kind.FIXED] == (
        [] if rules.fixed is None else [rules.fixed]
    )


@given(candidates_(), ends, rules_, st.randoms())
def test_the_order_of_the_catalog_does_not_matter(
    candidates: list[Candidate], pair: tuple[str, str], rules: Rules, random: Random
) -> None:
    found = routes(candidates, *pair, rules)
    random.shuffle(candidates)
    assert routes(candidates, *pair, rules) == found


@given(candidates_(), ends, rules_)
def test_the_first_is_the_one_that_the_rules_name(
    candidates: list[Candidate], pair: tuple[str, str], rules: Rules
) -> None:
    """The order in words, from the strongest rule to the weakest: each keeps the best of those left."""
    left = [
        each
        for each in candidates
        if each.pairs.find(*pair) is not None and (each.local or not rules.local_only)
    ]
    if not left:
        return
    left = [each for each in left if each.wait <= rules.spill_after] or left
    left = [each for each in left if each.local] or left
    if left[0].local:
        left = [each for each in left if each.ready] or left
    best = max(each.quality for each in left)
    left = [each for each in left if each.quality == best]
    if not left[0].local:
        left = [each for each in left if each.cost == min(one.cost for one in left)]
    soonest = min(each.load_seconds + each.wait for each in left)
    left = [each for each in left if each.load_seconds + each.wait == soonest]
    assert models(routes(candidates, *pair, rules))[0] == min(each.model for each in left)


@given(candidates_(), ends, rules_, st.integers(0, 4))
def test_who_becomes_ready_is_never_tried_later(
    candidates: list[Candidate], pair: tuple[str, str], rules: Rules, which: int
) -> None:
    if which >= len(candidates):
        return
    name = candidates[which].model
    before = models(routes(candidates, *pair, rules))
    candidates[which] = replace(candidates[which], ready=True, load_seconds=0.0, wait=0.0)
    after = models(routes(candidates, *pair, rules))
    assert name not in before or after.index(name) <= before.index(name)


@given(candidates_(), ends, rules_)
def test_a_pivot_is_none_of_the_languages_and_the_worse_step_decides(
    candidates: list[Candidate], pair: tuple[str, str], rules: Rules
) -> None:
    known = {each.model: each for each in candidates}
    found = [route for route in routes(candidates, *pair, rules) if route.kind is Kind.PIVOT]
    for route in found:
        assert not set(near(route.steps[0].target, frozenset(pair)))
    worst = [
        max(
            (each.wait > rules.spill_after, not each.local, each.local and not each.ready)
            for each in (known[step.model] for step in route.steps)
        )
        for route in found
    ]
    assert worst == sorted(worst)


# -- one rule at a time -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(en_fr("z"), absent("a", quality=5, seconds=0.1), id="ready before better"),
        pytest.param(en_fr("z", quality=1), en_fr("a"), id="better"),
        pytest.param(en_fr("z", quality=1, wait=9.0), en_fr("a"), id="better before sooner"),
        pytest.param(absent("z", quality=1, seconds=60.0), absent("a"), id="better before cheaper to load"),
        pytest.param(absent("z", seconds=1.0), absent("a", seconds=2.0), id="cheapest to load"),
        pytest.param(
            absent("z", seconds=1.0), absent("a", seconds=0.5, wait=1.0), id="load and wait together"
        ),
        pytest.param(en_fr("z"), en_fr("a", wait=1.0), id="the shorter queue"),
        pytest.param(absent("z", seconds=90.0), en_fr("a", local=False, quality=9), id="local first"),
        pytest.param(en_fr("z", local=False), en_fr("a", wait=10.1), id="full"),
        pytest.param(en_fr("z", wait=10.0), en_fr("a", local=False), id="not full yet"),
        pytest.param(absent("z", seconds=90.0), en_fr("a", wait=11.0), id="rather load than wait long"),
        pytest.param(
            en_fr("z", wait=11.0), en_fr("a", wait=11.0, local=False), id="local first when all are full"
        ),
        pytest.param(
            en_fr("z", local=False, cost=1.0, wait=3.0),
            en_fr("a", local=False, cost=2.0),
            id="the cheaper one elsewhere",
        ),
        pytest.param(
            en_fr("z", local=False, cost=2.0, quality=1),
            en_fr("a", local=False, cost=1.0),
            id="better before cheaper elsewhere",
        ),
        pytest.param(
            absent("z", seconds=0.5, local=False),
            en_fr("a", local=False, wait=1.0),
            id="ready is the same there",
        ),
        pytest.param(en_fr("z", cost=5.0), en_fr("a", wait=1.0), id="price of local ones is no matter"),
        pytest.param(en_fr("a"), en_fr("z"), id="by name at last"),
    ],
)
def test_who_goes_first(first: Candidate, second: Candidate) -> None:
    for given_ in ([first, second], [second, first]):
        assert models(routes(given_, "en", "fr", Rules())) == [first.model, second.model]


def one(model: str, pair: str, **fields: object) -> Candidate:
    source, target = pair.split(">")
    return en_fr(model, pairs=Pairs(frozenset({(source, target)})), **fields)


def test_a_third_language_only_if_it_is_allowed() -> None:
    candidates = [one("a", "de>en"), one("b", "en>fr"), one("c", "de>it"), one("d", "it>fr")]
    assert routes(candidates, "de", "fr", Rules()) == []
    found = routes(candidates, "de", "fr", Rules(pivots=("en",)))
    assert found == [Route(Kind.PIVOT, (Step("a", "de", "en"), Step("b", "en", "fr")))]
    assert models(routes(candidates, "de", "fr", Rules(pivots=("it", "en"))), Kind.PIVOT) == ["c+d", "a+b"]
    assert routes(candidates, "de", "en", Rules(pivots=("en", "de"))) == [
        Route(Kind.DIRECT, (Step("a", "de", "en"),))
    ]


@pytest.mark.parametrize("step", [0, 1])
def test_the_preferred_language_unless_another_needs_no_load(step: int) -> None:
    better = one("c", "de>it", quality=5), one("d", "it>fr", quality=5)
    candidates = [one("a", "de>en"), one("b", "en>fr"), *better]
    rules = Rules(pivots=("en", "it", "EN"))
    assert models(routes(candidates, "de", "fr", rules), Kind.PIVOT) == ["a+b", "c+d"]
    candidates[step] = replace(candidates[step], ready=False, load_seconds=1.0)
    assert models(routes(candidates, "de", "fr", rules), Kind.PIVOT) == ["c+d", "a+b"]


def test_the_worse_of_two_steps_decides() -> None:
    first = one("a", "de>en", quality=5), one("b", "de>en", quality=4)
    second = one("c", "en>fr", quality=3), one("d", "en>fr")
    found = routes([*first, *second], "de", "fr", Rules(pivots=("en",)))
    assert models(found, Kind.PIVOT) == ["a+c", "b+c", "a+d", "b+d"]


def test_direct_goes_before_a_third_language_whatever_it_takes() -> None:
    both = one("m", "de>en"), one("n", "en>fr"), absent("x", 90.0, pairs=Pairs(frozenset({("de", "fr")})))
    assert [route.kind for route in routes(both, "de", "fr", Rules(pivots=("en",)))] == [
        Kind.DIRECT,
        Kind.PIVOT,
    ]


def test_models_are_asked_in_their_own_codes() -> None:
    far = Candidate("far", Pairs(among=frozenset({"en", "zh-Hans", "pt-BR"})), local=False)
    near_ = Candidate("near", Pairs(among=frozenset({"en", "zh", "pt"})))
    assert routes([far, near_], "pt_BR", "zh", Rules()) == [
        Route(Kind.DIRECT, (Step("near", "pt", "zh"),)),
        Route(Kind.DIRECT, (Step("far", "pt-BR", "zh-Hans"),)),
    ]
    found = routes([far, near_], "zh-CN", "pt", Rules(pivots=("EN",)))
    assert found[-1].steps[0].target == "en"


def test_of_many_ways_over_a_third_language_few_are_kept() -> None:
    many = [
        one(f"{letter}{number}", pair)
        for letter, pair in (("a", "de>en"), ("b", "en>fr"))
        for number in range(9)
    ]
    found = routes(many, "de", "fr", Rules(pivots=("en",)))
    assert models(found, Kind.PIVOT)[0] == "a0+b0"
    assert len(found) == MOST
