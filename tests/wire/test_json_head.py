"""The head of a JSON body: what is refused, and that renaming changes the name and nothing else."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import InvalidRequest
from modelyard.wire.json_head import parse, replace_model


def test_parse() -> None:
    head = parse(b'{"model": "m", "stream": true, "n": 1}')
    assert (head.model, head.stream, head.value["n"]) == ("m", True, 1)
    assert parse(b'{"model": null, "stream": null}').model is None
    assert parse(b"{}").stream is False


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body is empty"),
        (b" \n", "body is empty"),
        (b'{"a": 1,\n  "b": }', "not valid JSON at line 2, column"),
        (b'{"a": "\xff"}', "not UTF-8: byte 8 is wrong"),
        (b'{"a": NaN}', "not valid JSON at line 1"),
        (b"[" * 5000, "not valid JSON at line 1"),
        (b"[1]", "JSON array"),
        (b"null", "JSON null"),
        (b'{"model": 7}', "`model` is a JSON number"),
        (b'{"model": {}}', "`model` is a JSON object"),
        (b'{"stream": "yes"}', "`stream` is a JSON string"),
        (b'{"stream": 1}', "`stream` is a JSON number"),
    ],
)
def test_bad_bodies_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        parse(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a","x":1}', b'{"model":"N","x":1}'),
        (b' { "model" : "a" , "x":1}\n', b' { "model" : "N" , "x":1}\n'),
        (b'{"x":{"model":"b"},"model":"a"}', b'{"x":{"model":"b"},"model":"N"}'),
        (b'{"model":"a","x":[{"model":"b"}]}', b'{"model":"N","x":[{"model":"b"}]}'),
        (b'{"x":"\\"model\\":\\"b\\"","model":"a"}', b'{"x":"\\"model\\":\\"b\\"","model":"N"}'),
        (b'{"x":"}{\\\\","model":"a"}', b'{"x":"}{\\\\","model":"N"}'),
        (b'{"x":"model","model":"model"}', b'{"x":"model","model":"N"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"N"}'),
        (b'{"\\u006Dodel":"a","model":"b"}', b'{"\\u006Dodel":"N","model":"N"}'),
        (b'{"model":"a","model":"b"}', b'{"model":"N","model":"N"}'),
        (b'{"model":"a\\"b\\\\"}', b'{"model":"N"}'),
        (b'{"model":null}', b'{"model":"N"}'),
        (b'{"model":1,"model":"b"}', b'{"model":"N","model":"N"}'),
        (b'{"model":{"model":"c"},"model":"b"}', b'{"model":{"model":"c"},"model":"N"}'),
    ],
)
def test_replace_model(body: bytes, expected: bytes) -> None:
    assert replace_model(body, "N") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b" { }", b' {"model":"N" }'),
        (b'{"x":{"model":"a"}}', b'{"model":"N","x":{"model":"a"}}'),
        (b'{"x":"model"}', b'{"model":"N","x":"model"}'),
        (b'{"x":"\\"model\\":\\"a\\""}', b'{"model":"N","x":"\\"model\\":\\"a\\""}'),
    ],
)
def test_a_model_is_put_in_where_none_is_named(body: bytes, expected: bytes) -> None:
    assert replace_model(body, "N") == expected
    assert parse(expected).model == "N"


_TEXT = st.one_of(
    st.text(max_size=8), st.sampled_from(["model", '"model":', '\\"model":"x"', "{", "}", "\\", '"'])
)
_KEY = st.one_of(st.sampled_from(["model", "x", "models", "\\model"]), _TEXT)
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), _TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEY, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(_KEY, _JSON, max_size=4), _TEXT, _TEXT, st.booleans(), st.sampled_from([None, 1]))
def test_replacing_equals_a_round_trip(
    value: dict[str, object], model: str, name: str, ascii_only: bool, indent: int | None
) -> None:
    value["model"] = model
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8")
    replaced = replace_model(body, name)
    assert orjson.loads(replaced) == value | {"model": name}
    assert replace_model(replaced, model) == replace_model(body, model)
