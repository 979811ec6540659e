"""A source whose server answers what no server should is refused at registration, saying what that did."""

from __future__ import annotations

import pytest

from gateway.live_yard import live_yard
from gateway.test_registry import refused
from modelyard.compose import catalog
from store.raw_server import raw_server
from store.test_strange_answers import LED, OK, PART, head

ANSWERS = {
    head(LED, Location="http://h:99999/"): "leads to no address that can be asked",
    head(LED, Location="http://\xfc..de/"): "leads to no address that can be asked",
    head(LED): "leads elsewhere without saying where (status 302 without Location)",
    head(LED, Location="/again"): "without an end (8 redirects)",
    head(OK, Content_Length="-5"): "bad Content-Length",
    head(OK, X="a" * 3_000_000): "the connection to 127.0.0.1 failed",
}
OF_PARTS = {head(PART, Content_Range="bytes 5-2/10", Content_Length="1"): "contradicts itself"}


@pytest.mark.parametrize(("scheme", "answers"), [("http", ANSWERS | OF_PARTS), ("ollama+http", ANSWERS)])
async def test_it_is_502(scheme: str, answers: dict[bytes, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ASKING", 1.0)
    sent: list[bytes] = []
    with raw_server(lambda path: sent) as url:
        async with live_yard({}, store={"allow_private": ["127.0.0.0/8"]}) as yard:
            body = {"name": "m", "engine": "llamacpp", "source": f"{scheme}{url[4:]}/tiny/m"}
            for answer, said in answers.items():
                sent[:] = [answer]
                found = await refused(yard, "POST", "/v1/models", body, 502, "source_unreachable")
                assert said in found["message"]
