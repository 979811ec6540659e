"""Our server over CTranslate2, as a process: small models with random weights, and what it answers."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from modelyard.servers.translation import packed
from modelyard.servers.translation.room import _field
from servers.live import Live, running
from servers.translation import random_models
from waiting import until

pytest.importorskip("ctranslate2")


@pytest.fixture(scope="module")
def m2m100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m2m100")
    packed.pack(random_models.m2m100(folder / "model"), folder / "packed", "int8")
    return folder / "packed"


@asynccontextmanager
async def server(path: Path, **more: object) -> AsyncIterator[Live]:
    def argv(socket: str) -> list[str]:
        told = {"address": f"unix:{socket}", "path": str(path), "threads": 1, **more}
        return [sys.executable, "-m", "modelyard.servers.ctranslate2", json.dumps(told)]

    async with running(argv) as live:
        await live.healthy()
        yield live


async def translated(live: Live, **body: object) -> object:
    answer = await live.client.post("/translate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["translatedText"]


async def stats(live: Live) -> dict[str, float]:
    return (await live.client.get("/stats")).json()  # type: ignore[no-any-return]


async def test_it_translates_what_many_ask_in_few_batches(m2m100: Path) -> None:
    texts = [f"the {word} house" for word in ("red", "old", "small", "green")] * 4
    async with server(m2m100, max_wait_ms=200) as live:
        alone = [await translated(live, q=text, source="en", target="fr") for text in texts[:4]]
        before = await stats(live)
        together = await asyncio.gather(
            *(translated(live, q=text, source="en", target="fr") for text in texts),
            translated(live, q=texts[:3], source="en", target="de"),
        )
        after = await stats(live)
    assert together[:16] == alone * 4
    assert isinstance(together[16], list)
    assert len(together[16]) == 3
    assert after["segments"] - before["segments"] == 19
    assert after["batches"] - before["batches"] < 19 / 2  # how many depends on when each arrives
    assert after["waiting"] == after["processing"] == after["batch"] == 0
    assert after["padded"] >= after["tokens"] > 0


async def test_texts_keep_their_shape(m2m100: Path) -> None:
    text = "\n  the red house.\n\n\tthe old tree.  \n"
    async with server(m2m100) as live:
        whole = await translated(live, q=text, source="en", target="fr")
        parts = await translated(live, q=["the red house.", "the old tree."], source="en", target="fr")
        assert isinstance(parts, list)
        assert whole == f"\n  {parts[0]}\n\n\t{parts[1]}  \n"
        assert await translated(live, q=["", " \n"], source="en", target="fr") == ["", " \n"]
        assert await translated(live, q="same", source="en", target="en") == "same"
        answer = (await live.client.post("/translate", json={"q": [], "source": "en", "target": "fr"})).json()
        assert answer == {
            "translatedText": [],
            "usage": {"segments": 0, "input_tokens": 0, "output_tokens": 0},
        }


async def test_what_it_answers_beside_the_text(m2m100: Path) -> None:
    async with server(m2m100) as live:
        body = {"q": ["the dog", "two cats"], "source": "en", "target": "fr", "alternatives": 2}
        answer = (await live.client.post("/translate", json=body)).json()
        assert [len(found) for found in answer["alternatives"]] == [2, 2]
        assert answer["usage"]["segments"] == 2
        assert min(answer["usage"].values()) > 0
        languages = {row["code"]: row for row in (await live.client.get("/languages")).json()}
        assert languages["fr"]["name"] == "French"
        assert "en" in languages["fr"]["targets"]
        assert "fr" not in languages["fr"]["targets"]
        assert await translated(live, q="a") == await translated(live, q="a", source="af", target="am")


async def test_an_answer_is_bounded(m2m100: Path) -> None:
    body = {"q": "the red house likes two old dogs", "source": "en", "target": "fr"}
    async with server(m2m100, max_output=16) as live:
        usage = (await live.client.post("/translate", json=body)).json()["usage"]
    assert usage["output_tokens"] <= 16


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("no", 400, "no JSON"),
        ("[]", 400, "JSON object"),
        ('{"q": 1, "source": "en", "target": "fr"}', 400, "`q` must be"),
        ('{"q": ["a", 2], "source": "en", "target": "fr"}', 400, "q[1]: is no text"),
        ('{"q": "\\ud800", "source": "en", "target": "fr"}', 400, "half a character"),
        ('{"q": "a", "source": "en", "target": "xx"}', 400, "no language of this model"),
        ('{"q": "a", "source": "frr", "target": "en"}', 400, "did you mean fr"),
        ('{"q": "a", "source": "en"}', 400, "`target`: None"),
        ('{"q": "a", "source": "en", "target": "fr", "alternatives": 99}', 400, "from 0 to 10"),
    ],
)
async def test_what_it_refuses(server_of_all: Live, body: str, status: int, said: str) -> None:
    answer = await server_of_all.client.post("/translate", content=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]
    assert answer.json()["code"] in {"invalid_request", "unsupported_language"}


@pytest.fixture
async def server_of_all(m2m100: Path) -> AsyncIterator[Live]:
    async with server(m2m100) as live:
        yield live


async def test_codes_as_others_write_them(server_of_all: Live) -> None:
    plain = await translated(server_of_all, q="a dog", source="en", target="zh")
    assert plain == await translated(server_of_all, q="a dog", source="eng", target="zh-CN")
    plain = await translated(server_of_all, q="a dog", source="en", target="pt")
    assert plain == await translated(server_of_all, q="a dog", source="en_GB", target="pt_BR")


async def test_a_bad_text_fails_alone_if_that_is_asked(server_of_all: Live) -> None:
    body = {"q": ["a dog", 7, "a cat"], "source": "en", "target": "fr", "partial": True}
    answer = (await server_of_all.client.post("/translate", json=body)).json()
    assert answer["errors"] == {"1": "is no text"}
    good = await translated(server_of_all, q=["a dog", "a cat"], source="en", target="fr")
    assert isinstance(good, list)
    assert answer["translatedText"] == [good[0], "", good[1]]


async def test_who_leaves_is_left_out(m2m100: Path) -> None:
    async with server(m2m100, max_wait_ms=60_000) as live:
        asking = asyncio.create_task(translated(live, q="a dog", source="en", target="fr"))

        async def waits(count: int) -> bool:
            return (await stats(live))["waiting"] == count

        await until(lambda: waits(1))
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: waits(0))
        assert (await stats(live))["batches"] == 0


async def test_it_loads_a_folder_too_and_ends_when_told(tmp_path: Path) -> None:
    random_models.marian(tmp_path / "hf")
    packed.pack(tmp_path / "hf", tmp_path / "packed", "int8")
    (tmp_path / "folder").mkdir()
    packed.unpack(tmp_path / "packed", tmp_path / "folder")
    async with server(tmp_path / "folder", replicas=2) as live:
        assert await translated(live, q="the dog", source="en", target="fr")
        refused = await live.client.post("/translate", json={"q": "a", "source": "fr", "target": "en"})
        assert refused.status_code == 400
        live.process.terminate()
        assert await live.exited() == 0


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ({"path": "/nowhere"}, 1, "failed to load model"),
        ({"path": __file__}, 1, "failed to load model"),
        ({"compute_type": "float16"}, 1, "there is no type 'float16'"),
        ({"device": "cuda"}, 1, "there is no device"),
        ({"beam": 1}, 2, "there is no such parameter"),
        ({"replicas": "1"}, 2, "is no int"),
    ],
)
async def test_what_it_cannot_start_with(m2m100: Path, more: dict[str, object], code: int, said: str) -> None:
    def argv(socket: str) -> list[str]:
        told = {"address": f"unix:{socket}", "path": str(m2m100), **more}
        return [sys.executable, "-m", "modelyard.servers.ctranslate2", json.dumps(told)]

    async with running(argv) as live:
        assert await live.exited() == code
        assert said in live.log


async def test_more_than_ever_waits_at_once_is_refused_for_good(m2m100: Path) -> None:
    async with server(m2m100) as live:
        body = {"q": "a\n" * 100_001, "source": "en", "target": "fr"}
        answer = await live.client.post("/translate", json=body)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_long")
        assert "100,001 sentences; 100,000 are the most" in answer.json()["error"]


async def test_without_memory_it_ends_at_once_and_answers_nothing(m2m100: Path) -> None:
    """CTranslate2 says so, or is gone itself: whoever asked asks another process."""
    async with server(m2m100, max_batch_tokens=1_000_000, beam_size=5) as live:
        body = {"q": ["the red house is old"] * 300, "source": "en", "target": "fr"}
        assert (await live.client.post("/translate", json=body)).status_code == 200
        most = _field(f"/proc/{live.process.pid}/status", "VmSize:") + 60_000_000
        resource.prlimit(live.process.pid, resource.RLIMIT_AS, (most, most))
        body["q"] = ["the red house is old"] * 10_000
        with pytest.raises(httpx.TransportError):
            await live.client.post("/translate", json=body)
        code = await live.exited()
        assert code == -signal.SIGSEGV or (code == 1 and "has failed: out of memory: " in live.log)
