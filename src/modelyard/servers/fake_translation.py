"""What the fake engine translates to: `[fr] text`, in the shape of LibreTranslate's API.

Called by `servers.fake_api`. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelyard.servers import fake_text
from modelyard.servers.fake_script import Script


def expected_translation(text: str, target: str) -> str:
    """What the fake engine makes of a text; white space alone stays."""
    return f"[{target}] {text}" if text.strip() else text


def translated(body: Mapping[str, object], pairs: Sequence[str], refused: str) -> dict[str, object]:
    """The answer to a request. `pairs` are those that it serves, all of them if there are none; a text that
    holds `refused` fails. Raises ValueError that says what is wrong with the request."""
    texts = body.get("q")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError('"q" must be a list of strings')
    source, target = body.get("source"), body.get("target")
    if not isinstance(source, str) or not isinstance(target, str):
        raise ValueError('"source" and "target" must be strings')
    pair = "-".join(code.replace("-", "_") for code in (source, target))
    if pairs and pair not in pairs:
        raise ValueError(f"{pair} is not served; there are {', '.join(pairs)}")
    bad = {str(i): "the text is refused" for i, text in enumerate(texts) if refused and refused in text}
    if bad and not body.get("partial"):
        raise ValueError(f"q[{next(iter(bad))}]: the text is refused")
    answer: dict[str, object] = {
        "translatedText": [expected_translation(text, target) for text in texts],
        "usage": _usage(texts),
    }
    if bad:
        answer["errors"] = bad
    if isinstance(more := body.get("alternatives"), int) and more > 0:
        answer["alternatives"] = [
            [f"{expected_translation(text, target)} ({n + 2})" for n in range(more)] for text in texts
        ]
    return answer


def languages(pairs: Sequence[str]) -> list[dict[str, object]]:
    """LibreTranslate's list, of these pairs."""
    targets: dict[str, list[str]] = {}
    for pair in pairs:
        source, _, target = pair.partition("-")
        targets.setdefault(source, []).append(target)
    return [{"code": code, "name": code, "targets": each} for code, each in targets.items()]


def _usage(texts: Sequence[str]) -> dict[str, int]:
    counted = sum(len(fake_text.token_ids(text)) for text in texts)
    return {"segments": len(texts), "input_tokens": counted, "output_tokens": counted}


def seconds(answer: object, script: Script) -> float:
    """How long a computation takes: only translations write tokens."""
    usage = answer.get("usage", {}) if isinstance(answer, dict) else {}
    speed, tokens = script.tokens_per_second, usage.get("output_tokens", 0)
    return script.first_token_time + tokens / speed if speed and tokens else 0.0
