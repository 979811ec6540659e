"""The pages in a real browser, which may talk to nobody but the server that it was sent to."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.async_api import ConsoleMessage, Page, async_playwright, expect

from gateway.live_yard import LiveYard, fake, live_yard
from gateway.test_sleep import DEVICES as SLEEPERS
from gateway.test_sleep import sleeper

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        CHROMIUM is None, reason="there is no Chromium on PATH (Debian: apt install chromium)"
    ),
]

WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 380, "height": 800}
OTHER = "other-instruct-2507-8b-q4_k_m"
MODELS = {"quick": fake(aliases=["fast"]), OTHER: fake(), "third": fake()}
KEYS = [
    {"name": "user", "key": "u" * 20, "scopes": ["inference"]},
    {"name": "operator", "key": "o" * 20, "scopes": ["admin"]},
]


@dataclass
class Visit:
    """A page in a browser, with what it complained of and the hosts that it wanted."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def watch(self) -> None:
        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.complaints.append(message.text)

        self.page.on("console", on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    async def fits(self, viewport: dict[str, int]) -> bool:
        """Whether a window of this size shows the page, and all in its open tables, without scrolling
        sideways."""
        await self.page.set_viewport_size(viewport)  # type: ignore[arg-type]
        parts = "[document.documentElement, ...document.querySelectorAll('.scroll')]"
        fit = f"{parts}.every((part) => part.scrollWidth <= part.clientWidth)"
        return bool(await self.page.evaluate(fit))


@asynccontextmanager
async def visit(
    path: str, models: Mapping[str, Any] = MODELS, **settings: Any
) -> AsyncIterator[tuple[Visit, LiveYard, httpx.AsyncClient]]:
    """A yard on a port, a browser that opened a path of it, and another client."""
    server = {"unix": None, "host": "127.0.0.1", "port": 0}
    async with live_yard(models, server=server, **settings) as yard:
        base = f"http://{yard.yard.server.address}"
        async with (
            httpx.AsyncClient(base_url=base, timeout=20) as client,
            async_playwright() as playwright,
            await playwright.chromium.launch(executable_path=CHROMIUM) as browser,
        ):
            visited = Visit(await browser.new_page(viewport=WIDE), base)  # type: ignore[arg-type]
            visited.watch()
            await visited.page.goto(base + path)
            yield visited, yard, client
            assert visited.hosts == {urlsplit(base).netloc}


async def test_the_page_shows_what_happens() -> None:
    async with visit("/") as (seen, _, client):
        page = seen.page
        for model in MODELS:
            await expect(page.locator("#models tr", has_text=model)).to_contain_text("idle")
        await expect(page.locator("#instances")).to_contain_text("None.")
        await page.evaluate("window.kept = true")

        assert (await client.post("/admin/models/quick/load")).status_code == 200
        await expect(page.locator("#models tr", has_text="quick")).to_contain_text("loaded")
        await expect(page.locator("#instances tr", has_text="quick-1")).to_contain_text("ready")
        await expect(page.locator("#events tr", has_text="ready")).to_contain_text("quick-1")
        await expect(page.locator("#devices")).to_contain_text("quick-1")
        await expect(page.locator("#summary")).to_contain_text(re.compile("^ready"))

        answer = await client.post("/generate", json={"model": OTHER, "prompt": "hi", "max_tokens": 2})
        assert answer.status_code == 200
        await expect(page.locator("#instances tr", has_text=f"{OTHER}-2")).to_contain_text("0 of 1")
        assert await page.evaluate("window.kept"), "it was not loaded anew"
        assert await seen.fits(WIDE)
        assert await seen.fits(NARROW)
        assert seen.complaints == []


async def test_it_shows_who_sleeps_and_what_is_closed() -> None:
    async with visit("/", {"a": sleeper(), "b": sleeper()}, devices=SLEEPERS) as (seen, _, client):
        page = seen.page
        for model in "ab":
            answer = await client.post("/generate", json={"model": model, "prompt": "hi", "max_tokens": 2})
            assert answer.status_code == 200
        slept, awake = (page.locator("#instances tr", has_text=name) for name in ("a-1", "b-2"))
        await expect(slept.locator("td:nth-child(2)")).to_have_text("asleep (asleep)")
        await expect(slept).to_contain_text(re.compile(r"gpu0 .*, ram .*; gave back gpu0 [3-4]\.\d MB"))
        await expect(awake).not_to_contain_text("gave back")
        closed = page.locator("#devices .bad")
        await expect(closed).to_have_text(["", ""])

        order = {"reason": "to be exchanged"}
        assert (await client.post("/admin/devices/gpu0/fence", json=order)).status_code == 200
        await expect(page.locator("#devices .device", has_text="gpu0").locator(".bad")).to_have_text(
            "closed (fenced: to be exchanged)"
        )
        await expect(page.locator("#instances")).to_contain_text("None.")
        assert await seen.fits(WIDE)
        assert await seen.fits(NARROW)
        assert seen.complaints == []


async def test_it_asks_for_a_key_and_works_with_it() -> None:
    async with visit("/", keys=KEYS) as (seen, _, _):
        page, key, show = seen.page, seen.page.get_by_label("needs a key"), seen.page.get_by_text("Show")
        await expect(key).to_be_focused()
        await expect(page.locator("#main")).to_be_hidden()
        for wrong, answer in (("nonsense", "The API key is wrong."), ("u" * 20, "no scope 'admin'")):
            await key.fill(wrong)
            await show.click()
            await expect(page.get_by_role("alert")).to_contain_text(answer)
            await expect(page.locator("#main")).to_be_hidden()
        assert await seen.fits(NARROW)
        await key.fill("o" * 20)
        await show.click()
        await expect(page.locator("#models tr", has_text="quick")).to_contain_text("idle")
        await expect(key).to_be_hidden()
        await page.reload()
        await expect(page.locator("#models tr", has_text="quick")).to_contain_text("idle")
        refused = [text for text in seen.complaints if re.search("status of 40[13]", text)]
        assert seen.complaints == refused, "a browser itself reports every refusal"
        assert len(refused) == 3


async def test_it_says_when_the_server_is_gone() -> None:
    async with visit("/") as (seen, yard, _):
        await expect(seen.page.locator("#main")).to_be_visible()
        await yard.yard.server.close_now()
        await expect(seen.page.locator("#summary")).to_contain_text("does not answer")


async def test_the_reference_lists_every_endpoint() -> None:
    async with visit("/docs", keys=KEYS) as (seen, _, client):
        page = seen.page
        for path, operations in (await client.get("/openapi.json")).json()["paths"].items():
            for method in operations:
                row = page.locator(f'[id="{method}{path}"]')
                await expect(row.locator("summary")).to_contain_text(path)
        intro = await page.locator("#intro").text_content() or ""
        assert [bool(line) for line in intro.split("\n")] == [True, False, True], "a line is a paragraph"
        chat = page.locator('[id="post/v1/chat/completions"]')
        await expect(chat.locator("summary")).to_contain_text("key with inference")
        await chat.locator("summary").click()
        await expect(chat).to_contain_text("messages")
        await expect(chat).to_contain_text("queue_full")
        await expect(chat.locator("pre").first).to_contain_text(f"{seen.base}/v1/chat/completions")
        assert await seen.fits(WIDE)
        assert await seen.fits(NARROW)

        await page.locator('[id="get/admin/status"] summary').click()
        await page.locator('[id="get/admin/status"]').get_by_role("link", name="Status").click()
        await expect(page.locator("#Status")).to_contain_text("shutting_down")
        assert seen.complaints == []
