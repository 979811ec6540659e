"""A real LibreTranslate behind a server of ours, and beside it: the same requests, the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.libretranslate import ABSENT, MODELS, LibreTranslate, libretranslate
from gateway.live_yard import LiveYard, live_yard
from gateway.translation.translators import ask, refused, translated
from waiting import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(ABSENT), reason=ABSENT),
]
TEXTS = ["The small dog sees the red house.", "The red house.", "My tree is big."]
MARKED = "<p>The <b>red</b> house.</p>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("libretranslate")


@pytest.fixture(scope="module")
def there(folder: Path) -> Iterator[LibreTranslate]:
    with libretranslate(folder) as server:
        yield server


def elsewhere(server: LibreTranslate, **parameters: str) -> dict[str, Any]:
    return {"engine": "libretranslate", "parameters": {"url": server.url, **parameters}}


def here() -> dict[str, Any]:
    return {"engine": "ctranslate2", "source": str(MODELS / "en-fr"), "devices": ["ram"]}


async def known(yard: LiveYard) -> None:
    """Wait until it was asked for its languages."""

    async def are() -> bool:
        return bool((await yard.http.get("/languages")).json())

    await until(are)


async def itself(server: LibreTranslate, path: str, body: object) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        return await client.post(path, json=body)


async def test_it_translates_for_us_what_it_translates_itself(there: LibreTranslate) -> None:
    async with live_yard({"there": elsewhere(there)}) as yard:
        await known(yard)
        listed = {one["code"]: one["targets"] for one in (await yard.http.get("/languages")).json()}
        assert listed == {"en": ["de", "fr"], "fr": ["de"], "de": []}
        for source, target in (("en", "fr"), ("en", "de")):
            asked = {"q": TEXTS, "source": source, "target": target, "alternatives": 2}
            said = await translated(yard, TEXTS, source, target, alternatives=2)
            itself_said = (await itself(there, "/translate", asked)).json()
            assert {name: said[name] for name in itself_said} == itself_said
            assert said["model"] == "there"
        assert (await translated(yard, TEXTS[1]))["translatedText"] == "La maison rouge."
        said = await translated(yard, MARKED, format="html")
        assert said["translatedText"] == "<p>La maison <b>rouge</b>.</p>"


ASKED: list[tuple[str, dict[str, object]]] = [
    ("/translate", {}),
    ("/translate", {"q": "The dog."}),
    ("/translate", {"q": "The dog.", "source": "en"}),
    ("/translate", {"q": "The dog.", "source": "xx", "target": "fr"}),
    ("/translate", {"q": "The dog.", "source": "en", "target": "xx"}),
    ("/translate", {"q": "The dog.", "source": "en", "target": "fr", "format": "pdf"}),
    ("/translate", {"q": "The dog.", "source": "en", "target": "fr"}),
    ("/translate", {"q": "The dog.", "source": "en", "target": "fr", "alternatives": 1}),
    ("/translate", {"q": TEXTS, "source": "en", "target": "fr"}),
    ("/translate", {"q": TEXTS, "source": "en", "target": "fr", "alternatives": 1}),
    ("/translate", {"q": "The dog sees the house.", "source": "auto", "target": "fr"}),
    ("/translate", {"q": TEXTS, "source": "auto", "target": "fr"}),
    ("/translate", {"q": "Le chien voit la maison.", "source": "auto", "target": "fr"}),
    ("/translate", {"q": "Der Hund.", "source": "de", "target": "de"}),
    ("/detect", {}),
    ("/detect", {"q": ""}),
    ("/detect", {"q": "The dog sees the house."}),
]


@pytest.mark.parametrize("as_form", [False, True], ids=["json", "form"])
async def test_a_client_gets_from_us_what_it_gets_from_it(there: LibreTranslate, as_form: bool) -> None:
    async with (
        live_yard({"there": elsewhere(there)}) as yard,
        httpx.AsyncClient(base_url=there.url, timeout=60) as client,
    ):
        await known(yard)
        for path, body in ASKED:
            if as_form and isinstance(body.get("q"), list):
                continue
            given: dict[str, Any] = {"data" if as_form else "json": body}
            its, ours = await client.post(path, **given), await yard.http.post(path, **given)
            assert ours.status_code == its.status_code, (path, body, ours.text, its.text)
            assert holds(shape(ours.json()), shape(its.json())), (path, body, ours.text, its.text)


async def test_documents_come_back_as_from_it(there: LibreTranslate) -> None:
    async with (
        live_yard({"there": elsewhere(there)}) as yard,
        httpx.AsyncClient(base_url=there.url, timeout=60) as client,
    ):
        await known(yard)
        for file in (("a.txt", "The red house.\n"), ("a.html", MARKED), ("a.xyz", "The red house.")):
            given: dict[str, Any] = {"files": {"file": file}, "data": {"source": "en", "target": "fr"}}
            its, ours = [await one.post("/translate_file", **given) for one in (client, yard.http)]
            assert ours.status_code == its.status_code, (ours.text, its.text)
            assert holds(shape(ours.json()), shape(its.json()))
            if its.status_code != 200:
                continue
            saved = []
            for one, answer in ((client, its), (yard.http, ours)):
                path = httpx.URL(answer.json()["translatedFileUrl"]).path
                saved.append((await one.get(path)).headers["content-disposition"].replace('"', ""))
            assert saved[0] == saved[1]


def shape(answer: object) -> object:
    if isinstance(answer, dict):
        return {name: shape(value) for name, value in answer.items()}
    if isinstance(answer, list):
        return [shape(value) for value in answer]
    return "number" if isinstance(answer, int | float) else type(answer).__name__


def holds(ours: object, its: object) -> bool:
    """Whether there is in ours what is in its, in the same place."""
    if isinstance(its, dict):
        return isinstance(ours, dict) and all(
            name in ours and holds(ours[name], one) for name, one in its.items()
        )
    if isinstance(its, list):
        return isinstance(ours, list) and len(ours) >= len(its) and all(map(holds, ours, its))
    return ours == its


async def test_its_limits_and_its_end_are_named(folder: Path) -> None:
    with libretranslate(folder, "--char-limit", "40", "--req-limit", "6") as narrow:
        models = {"there": elsewhere(narrow), "kept": here()}
        async with live_yard({"there": models["there"]}) as yard:
            await known(yard)
            assert refused(await ask(yard, "x" * 41))[0] == 400
            statuses = {(await ask(yard, "The dog.")).status_code for _ in range(8)}
            assert statuses == {200, 429}
        async with live_yard(models, translation={"fallback": {"model": "kept"}}) as yard:
            await known(yard)
            narrow.kill()
            said = await asyncio.gather(
                *(translated(yard, "The black horse is in the city.") for _ in range(8))
            )
            right = ("Le cheval noir est dans la ville.", "kept")
            assert {(one["translatedText"], one["model"]) for one in said} == {right}
            # Nobody but it translates this pair.
            assert refused(await ask(yard, "Le chien.", "fr", "de"))[:2] == (503, "load_failed")
