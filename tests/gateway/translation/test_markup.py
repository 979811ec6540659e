"""Marks within a sentence: it is translated as one, and they go around what became of their words."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from html import escape, unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.translation.documents import document_of
from modelyard.gateway.translation.markup import pieces_of
from modelyard.gateway.translation.pieces import Glossary
from modelyard.gateway.translation.runs import MOST_MARKS

NONE = Glossary({})
TAG = re.compile(r"<[^<>]*>")
FRENCH = {
    "I love you": "Je t'aime",
    "love": "aime",
    "I see the red house.": "Je vois la maison rouge.",
    "red": "rouge",
    "red house": "maison rouge",
    "the red house": "La maison rouge.",
    "house": "maison",
    "The cat sees the cat.": "Le chat voit le chat.",
    "cat": "chat",
    "See here or here": "Voyez ici ou ici",
    "here": "ici",
    "Run make all now": "Lancez make all maintenant",
    "Run make it now": "Faites-le maintenant",
    "a < b & c": "a < b & c",
    "b": "b",
    "We are one": "Nous sommes un",
    "one": "une",
    "I like it.": "J'aime.",
    "like": "aim",
    "252 very red dogs": "252 chiens très rouges",
    "very red": "très rouge",
}


def translated(html: str, said: Mapping[str, str] = FRENCH, glossary: Glossary = NONE) -> str:
    """By a model that knows some texts, and puts others into brackets."""
    pieces = pieces_of(html, glossary, html=True)
    return pieces.filled([said.get(text, f"[{text}]") for text in pieces.texts])


@pytest.mark.parametrize(
    ("html", "right"),
    [
        ("<p>I <b>love</b> you</p>", "<p>Je t'<b>aime</b></p>"),
        ("I see the <b>red</b> house.", "Je vois la maison <b>rouge</b>."),
        (
            "I see <a href='x>y'>the <i>red</i> house</a>.",
            "Je vois <a href='x>y'>la maison <i>rouge</i></a>.",
        ),
        ("I see the <i>red</i> <b>house</b>.", "Je vois la <b>maison</b> <i>rouge</i>."),
        ("<b>I see the red house.</b>", "<b>Je vois la maison rouge.</b>"),
        ("<i><b>I see</b> the red house.</i>", "<i><b>[I see]</b> [the red house.]</i>"),
        ("The cat sees the <b>cat</b>.", "Le chat voit le <b>chat</b>."),
        ("The <b>cat</b> sees the cat.", "Le <b>chat</b> voit le chat."),
        ("See <a href=1>here</a> or <a href=2>here</a>", "Voyez <a href=1>ici</a> ou <a href=2>ici</a>"),
        ("Run <code>make all</code> now", "Lancez <code>make all</code> maintenant"),
        ("252 <b>very red</b> dogs", "252 chiens <b>très rouges</b>"),
        ("a &lt; <b>b</b> &amp; c", "a &lt; <b>b</b> &amp; c"),
        (" <span>\nI <b>love\n</b>you </span>\n", " <span> Je t'<b>aime</b> </span>\n"),
        ("I see the <B CLASS=x>red</b\n> house.", "Je vois la maison <B CLASS=x>rouge</b\n>."),
    ],
)
def test_they_go_around_what_became_of_their_words(html: str, right: str) -> None:
    assert translated(html) == right


@pytest.mark.parametrize(
    ("html", "right"),
    [
        pytest.param("We are <b>one</b>", "[We are] <b>une</b>", id="not there"),
        pytest.param("I <b>like</b> it.", "[I] <b>aim</b> [it.]", id="within another word"),
        pytest.param(
            "Run <code>make it</code> now", "[Run] <code>make it</code> [now]", id="code is changed"
        ),
        pytest.param("I lo<b>ve</b> you", "[I lo]<b>[ve]</b> [you]", id="a part of a word"),
        pytest.param("I <b>love you", "[I] <b>[love you]", id="not closed"),
        pytest.param("I <b>love</i> you", "[I] <b>aime</i> [you]", id="another closed"),
        pytest.param("I love</b> you", "[I love]</b> [you]", id="not opened"),
        pytest.param("I <b><i>love</b></i> you", "[I] <b><i>aime</b></i> [you]", id="crossed"),
        pytest.param("I <b></b>love you", "[I] <b></b>[love you]", id="around nothing"),
        pytest.param("I <b>love<br>you</b>", "[I] <b>aime<br>[you]</b>", id="over a line's end"),
    ],
)
def test_where_that_is_not_sure_each_text_stands_for_itself(html: str, right: str) -> None:
    assert translated(html) == right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("# I **love** you\n", "# Je t'**aime**\n"),
        ("- I see the _red_ house.\n", "- Je vois la maison _rouge_.\n"),
        ("I see [the *red* house](http://a/b).", "Je vois [la maison *rouge*](http://a/b)."),
        ("Run `make all` now", "Lancez `make all` maintenant"),
        ("**I love you**", "**Je t'aime**"),
        ("We are **one**", "[We are] **une**"),
        ("I *love you", "[I] *[love you]"),
        ("I *love **you*", "[I] *aime **[you]*"),
    ],
)
def test_those_of_markdown_do_so_too(text: str, right: str) -> None:
    pieces = document_of("a.md", text.encode(), NONE)
    assert pieces.filled([FRENCH.get(text, f"[{text}]") for text in pieces.texts]) == right


def test_a_glossary_cuts_a_sentence() -> None:
    glossary = Glossary({"red": "ROUGE"})
    assert translated("I see the <b>red</b> house.", glossary=glossary) == "[I see the] <b>ROUGE</b> [house.]"


def test_no_text_takes_long() -> None:
    words = "aaaa " * 5000
    for html in (
        f"{words}<b>aaaa aaaa</b> {words}",
        f"<b>{words}</b><i>{words}</i>" * 2,
        "".join(f"<b>{'aaab ' * 6}</b> {'aaac ' * 200}" for _ in range(100)),
        "<b>a" * 20_000,
        "<b>a</b>" * 20_000,
        "<b>" * 20_000 + "a" + "</b>" * 20_000,
        "\n \n" * 50_000 + "<b>a",
        "a " * 50_000 + "<b>a</b> " * MOST_MARKS,
        "a" * 100_000 + " <b>a</b>" * MOST_MARKS,
    ):
        start = time.perf_counter()
        pieces = pieces_of(html, NONE, html=True)
        pieces.filled([text.replace("aaab", "aaaaaaaab") for text in pieces.texts])
        assert time.perf_counter() - start < 3.0


@pytest.mark.parametrize("html", ["<p>a\xa0</p>", "<p><b>x</b> a\u2003</p>", "\xa0a", "<p>\xa0<b>a</b> </p>"])
def test_white_space_that_html_keeps_is_there_once(html: str) -> None:
    pieces = pieces_of(html, NONE, html=True)
    assert unescape(pieces.filled(pieces.texts)) == html


def test_little_is_translated_twice() -> None:
    many = "".join(f"<b>w{n}</b> " for n in range(MOST_MARKS + 1))
    assert len(pieces_of(many, NONE, html=True).texts) == MOST_MARKS + 1
    deep = "<b>some words " * 10 + "</b>" * 10
    texts = pieces_of(deep + "at the end", NONE, html=True).texts
    assert sum(map(len, texts)) < 3 * len(deep)
    assert pieces_of("I <b>love</b> you", NONE, html=True).said == "I love you"
    same = pieces_of("<td>yes</td><td><b>yes</b> or <i>no</i></td><td>no</td>", NONE, html=True)
    assert sorted(same.texts) == ["no", "or", "yes", "yes or no"]


WORDS = st.sampled_from(
    ["one", "two ", " three", "four. ", "&amp; five", " &lt;six&gt; ", "7", " ", "\n", "東京", ", "]
)
NAMES = st.sampled_from(["b", "i", "a href='x'", "span", "em"])


def _element(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda name, text: f"<{name}>{text}</{name.split()[0]}>", NAMES, inner)


RUNS = st.recursive(
    WORDS, lambda inner: st.lists(inner | _element(inner), max_size=5).map("".join), max_leaves=15
)
BLOCKS = st.lists(
    RUNS | st.sampled_from(["<p>", "</p>", "<br>", "</b>", "<i>", "<!-- <b> -->"]), max_size=6
).map("".join)
MODELS = st.sampled_from(
    [
        lambda text: text,
        str.upper,
        lambda text: " ".join(reversed(text.split())),
        lambda text: f"{text}.",
        lambda text: " ".join(text.split()[1:]) or "?",
        lambda text: f"[{text}]",
    ]
)


@given(BLOCKS, MODELS)
def test_nothing_is_lost(html: str, model: object) -> None:
    assert callable(model)
    pieces = pieces_of(html, NONE, html=True)
    said = pieces.filled([model(text) for text in pieces.texts])
    assert Counter(TAG.findall(said)) == Counter(TAG.findall(html))
    assert _nesting(said) == _nesting(html)


@given(RUNS, MODELS)
def test_without_its_tags_it_is_the_translation_of_one_or_of_each(html: str, model: object) -> None:
    assert callable(model)
    pieces = pieces_of(html, NONE, html=True)
    said = "".join(unescape(TAG.sub("", pieces.filled([model(text) for text in pieces.texts]))).split())
    whole = " ".join(unescape(TAG.sub("", html)).split())
    each = [
        model(text) if any(map(str.isalnum, text)) else text
        for text in (" ".join(unescape(part).split()) for part in TAG.split(html))
    ]
    as_one = model(whole) if any(map(str.isalnum, whole)) else whole
    assert said in ("".join(as_one.split()), "".join("".join(each).split()))


def _nesting(html: str) -> bool:
    """Whether each element that begins ends where it may."""
    stack = []
    for close, name in re.findall(r"<(/?)(\w+)", html):
        if not close:
            stack.append(name)
        elif not stack or stack.pop() != name:
            return False
    return not stack


def test_what_a_model_says_is_no_markup() -> None:
    said = {"I love you": "<script>aime</script>", "love": "aime"}
    assert translated("I <b>love</b> you", said) == f"{escape('<script>')}<b>aime</b>{escape('</script>')}"
