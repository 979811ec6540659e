"""Models of the fake engine that translate, and requests to them."""

from __future__ import annotations

from typing import Any

import httpx

from gateway.live_yard import LiveYard, fake


def translator(*pairs: str, **fields: Any) -> dict[str, Any]:
    """A model of the fake engine that translates these; a text with BAD in it is refused."""
    parameters = {"apis": ["translate"], "pairs": list(pairs), "refused_text": "BAD"}
    return fake(pairs=list(pairs), parameters={**parameters, **fields.pop("parameters", {})}, **fields)


async def ask(
    yard: LiveYard, q: object, source: str = "en", target: str = "fr", **more: Any
) -> httpx.Response:
    body = {"q": q, "source": source, "target": target, **more}
    return await yard.http.post("/translate", json=body)


async def translated(yard: LiveYard, q: object, source: str = "en", target: str = "fr", **more: Any) -> Any:
    """The answer to a request that is in order."""
    answer = await ask(yard, q, source, target, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and field of a refusal, which is in LibreTranslate's shape."""
    body = answer.json()
    assert set(body) == {"error", "code", "param", "type"}
    assert isinstance(body["error"], str)
    return answer.status_code, body["code"], body["param"]
