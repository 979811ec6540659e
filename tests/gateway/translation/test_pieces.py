"""Texts and documents as pieces: nothing is lost, what is markup stays, what is text is translated."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import InvalidRequest
from modelyard.gateway.forms import Form, media_of, multipart, urlencoded
from modelyard.gateway.translation.documents import KINDS, document_of
from modelyard.gateway.translation.markup import pieces_of
from modelyard.gateway.translation.pieces import Glossary, Pieces

BLANKS = re.compile(r"[ \t\r\n\f]+")
NONE = Glossary({})
ODD = st.text(alphabet="ab1 <>&;\"'/!-[]()`*_#|:\\{}~.,\n\r\t\xa0é=", max_size=60)
MARKUP = st.lists(
    st.sampled_from(
        [
            *(
                "<p>",
                "</p>",
                "<b class='x'>",
                "</b>",
                "<br/>",
                "<!-- c -->",
                "<script>",
                "</script>",
                "<a href=",
            ),
            *(
                '"',
                "'",
                ">",
                "<",
                "one",
                " two ",
                "&amp;",
                "&nbsp;",
                "&#233;",
                "\n",
                "3",
                "<style>",
                "</STYLE >",
            ),
            *(
                "# ",
                "- ",
                "> ",
                "```",
                "`",
                "**",
                "[",
                "](x)",
                "| ",
                "---",
                "    ",
                "1. ",
                "\n\n",
                "http://a/b ",
            ),
            *("1\n", "00:00:01,000 --> 00:00:02,000\n", "{\\an8}"),
        ]
    ),
    max_size=25,
).map("".join)


def marked(pieces: Pieces) -> str:
    return pieces.filled([f"[{text}]" for text in pieces.texts])


class TestWhole:
    @given(ODD | MARKUP)
    def test_a_text_comes_back(self, text: str) -> None:
        pieces = pieces_of(text, NONE, html=False)
        assert pieces.filled(pieces.texts) == text

    @given(ODD | MARKUP)
    def test_html_means_what_it_meant(self, text: str) -> None:
        pieces = pieces_of(text, NONE, html=True)
        again = pieces.filled(pieces.texts)
        assert BLANKS.sub("", unescape(again)) == BLANKS.sub("", unescape(text))
        assert pieces_of(again, NONE, html=True).texts == pieces.texts

    @given(ODD | MARKUP, st.sampled_from([kind for kind in KINDS if "ht" not in kind]))
    def test_a_document_comes_back(self, text: str, kind: str) -> None:
        pieces = document_of(f"a{kind}", text.encode(), NONE)
        assert pieces.filled(pieces.texts) == text

    @given(ODD | MARKUP, st.booleans())
    def test_no_piece_is_blank_or_has_white_space_around_it(self, text: str, html: bool) -> None:
        for piece in pieces_of(text, NONE, html=html).texts:
            assert piece == piece.strip()
            assert any(letter.isalnum() for letter in piece)


class TestHtml:
    @pytest.mark.parametrize(
        ("text", "right"),
        [
            ("one", "[one]"),
            ("<p>one</p> two", "<p>[one]</p> [two]"),
            ("<p>one <b>two", "<p>[one] <b>[two]"),
            ("one <b", "[one] <b"),
            ("one <a href='x>y'>two</a", "[one] <a href='x>y'>[two]</a"),
            ('<a href="x>one</a>', '<a href="x>[one]</a>'),
            ("a < b & c", "[a &lt; b &amp; c]"),
            ("&lt;b&gt; &eacute;t&eacute;", "[&lt;b&gt; \u00e9t\u00e9]"),
            ("&nbsp;one&nbsp;", "&nbsp;[one]&nbsp;"),
            ("&copy; &mdash;", "&copy; &mdash;"),
            ("<script>one < two</script>three", "<script>one < two</script>[three]"),
            ("<SCRIPT src=x>one</Script >two", "<SCRIPT src=x>one</Script >[two]"),
            ("<style>one", "<style>one"),
            ("<scripted>one</scripted>", "<scripted>[one]</scripted>"),
            ("<!-- one <b> -->two<!-- three", "<!-- one <b> -->[two]<!-- three"),
            ("<!doctype html>one<![CDATA[two]]>", "<!doctype html>[one]<![CDATA[two]]>"),
            ("<code>a = b</code> one", "[<code>a = b</code> one]"),
            ("<p>\n  one\n  two\n</p>", "<p>\n  [one two]\n</p>"),
            ("<pre>one\n  two</pre>\none\ntwo", "<pre>[one\n  two]</pre>\n[one two]"),
            pytest.param(f"one &#{'9' * 5000};", f"[one &amp;#{'9' * 5000};]", id="no character's number"),
        ],
    )
    def test_markup_stays(self, text: str, right: str) -> None:
        assert marked(pieces_of(text, NONE, html=True)) == right

    @pytest.mark.parametrize(
        "text",
        [
            *("<a" * 100_000, '<a "' * 50_000, "<a '\"" * 50_000, "<!--" * 50_000, "<script>" * 30_000),
            *("<" * 200_000, "<script" * 30_000, "&" * 200_000, " " * 200_000 + "a" + " " * 200_000),
            *("a" + "`" * 200_000, "".join("`" * count + "a" for count in range(600))),
        ],
    )
    def test_no_text_takes_long(self, text: str) -> None:
        start = time.perf_counter()
        pieces_of(text, NONE, html=True)
        document_of("a.md", text.encode(), NONE)
        document_of("a.srt", text.encode(), NONE)
        assert time.perf_counter() - start < 5.0


class TestMarkdown:
    @pytest.mark.parametrize(
        ("text", "right"),
        [
            ("# one\n\ntwo\n", "# [one]\n\n[two]\n"),
            ("- one\n  * two\n12. three\n- [ ] four", "- [one]\n  * [two]\n12. [three]\n- [ ] [four]"),
            ("> > one\n", "> > [one]\n"),
            ("one `two three` four", "[one `two three` four]"),
            ("one `?` four", "[one] `?` [four]"),
            ("``a ` b`` one", "[``a ` b`` one]"),
            ("one[^2] two ![three](a.png) four", "[one][^[2]] [two] ![[three]](a.png) [four]"),
            ("```py\none\n```\ntwo", "```py\none\n```\n[two]"),
            ("~~~\none\n```\n~~~\ntwo", "~~~\none\n```\n~~~\n[two]"),
            ("one\n\n    code\n    more\n\ntwo", "[one]\n\n    code\n    more\n\n[two]"),
            ("- one\n\n    two\n", "- [one]\n\n    [two]\n"),
            ("[one](http://x/y 'z') ![two](a.png)", "[[one]](http://x/y 'z') ![[two]](a.png)"),
            ('[one](/a "b") [two][three]', '[[one](/a "b") [two][three]]'),
            ("see https://a.b/c?d=e now", "[see] https://a.b/c?d=e [now]"),
            ("**one** _two_ snake_case", "[**one** _two_ snake_case]"),
            ("| one | two |\n|---|:--|\n| 3 | - |", "| [one] | [two] |\n|---|:--|\n| [3] | - |"),
            ("[id]: http://a/b one\n---\n***", "[id]: http://a/b one\n---\n***"),
            ("---\ntitle: one\n---\ntwo", "---\ntitle: one\n---\n[two]"),
            ("one\n---\ntwo", "[one]\n---\n[two]"),
            ("<div>one</div> <http://a/b>", "<div>[one]</div> <http://a/b>"),
        ],
    )
    def test_markup_stays(self, text: str, right: str) -> None:
        assert marked(document_of("a.md", text.encode(), NONE)) == right


class TestGlossary:
    @pytest.mark.parametrize(
        ("terms", "text", "right"),
        [
            ({"Yard": "Hof"}, "a Yard b", "[a] Hof [b]"),
            ({"Yard": "Hof"}, "Yard", "Hof"),
            ({"Yard": "Hof"}, "Yards yard", "[Yards yard]"),
            ({"a": "1", "a b": "2"}, "x a b a", "[x] 2 1"),
            ({"c++": "c++", ".": "!"}, "use c++ ok.", "[use] c++ [ok]!"),
            ({"a": ""}, "a b", " [b]"),
        ],
    )
    def test_terms_stand_as_they_are_given(self, terms: dict[str, str], text: str, right: str) -> None:
        assert marked(pieces_of(text, Glossary(terms), html=False)) == right

    def test_many_terms_are_found_soon(self) -> None:
        terms = Glossary({f"term{number}": "x" for number in range(500)})
        start = time.perf_counter()
        pieces = pieces_of("a" * 200_000 + " term499", terms, html=False)
        assert time.perf_counter() - start < 0.5
        assert pieces.filled(["b"]) == "b x"

    def test_a_term_is_no_markup(self) -> None:
        assert marked(pieces_of("one <b>two", Glossary({"one": "<i>"}), html=True)) == "&lt;i&gt; <b>[two]"


class TestForms:
    def test_urlencoded(self) -> None:
        form = urlencoded(b"q=a+b%26c&q=%C3%A9&&flag&x=1=2")
        assert form.fields == {"q": ["a b&c", "\u00e9"], "flag": [""], "x": ["1=2"]}
        with pytest.raises(InvalidRequest, match="more than 2000"):
            urlencoded(b"a=1&" * 3000)

    def test_multipart(self) -> None:
        body = (
            b'preamble\r\n--B\r\nContent-Disposition: form-data; name="q"\r\n\r\none\r\ntwo\r\n--B\r\n'
            b'content-disposition: form-data; name=file; filename="\xc3\xa9 b.txt"\r\nContent-Type: a/b\r\n'
            b"\r\n\x00\r\n--X\r\n\r\n--B--\r\n"
        )
        form = multipart(body, "B")
        assert form.fields == {"q": ["one\r\ntwo"]}
        assert (form.files["file"].name, form.files["file"].data) == ("\u00e9 b.txt", b"\x00\r\n--X\r\n")
        with pytest.raises(InvalidRequest, match="more than 2000"):
            multipart(b"\r\n--B" * 3000, "B")

    @pytest.mark.parametrize(
        ("head", "right"),
        [
            (None, ("", "")),
            (b"application/JSON; charset=utf-8", ("application/json", "")),
            (b'multipart/form-data; boundary="a b"', ("multipart/form-data", "a b")),
            (b"multipart/form-data; BOUNDARY=x", ("multipart/form-data", "x")),
            (b"\xff;=;;", ("\u00ff", "")),
        ],
    )
    def test_content_types(self, head: bytes | None, right: tuple[str, str]) -> None:
        assert media_of(head) == right

    @given(st.binary(max_size=200), st.sampled_from(["", "B", "--"]))
    def test_whatever_is_sent_is_read_or_refused(self, body: bytes, boundary: str) -> None:
        with suppress(InvalidRequest):
            assert isinstance(urlencoded(body), Form)
        with suppress(InvalidRequest):
            assert isinstance(multipart(b"--B\r\n" + body + b"\r\n--B--", boundary), Form)
