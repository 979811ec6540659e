"""What the documents say, against the code: links, commands, configurations, endpoints, metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from modelyard import cli, config
from modelyard.gateway.admin import admin_router
from modelyard.gateway.listing import listing_router
from modelyard.gateway.reference import document
from modelyard.telemetry.metrics import DECLARED

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
WRITTEN = [page for page in PAGES if page.parent.name != "reference"]
PAGE = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
SERVED = {"/", "/docs", "/openapi.json"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def spans(page: Path) -> Iterator[str]:
    """What stands between backticks in a line, and the lines of consoles."""
    text = page.read_text()
    for block in blocks(page, "console"):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or "NNNN" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in anchors, target


@PAGE
def test_configurations_load(page: Path, tmp_path: Path) -> None:
    keys = {"APP_KEY": "a" * 20, "OPS_KEY": "o" * 20, "HOME": str(tmp_path)}
    for text in blocks(page, "yaml"):
        loaded = config.load(None, text, environ=keys)
        assert len(loaded.models) == len(yaml.safe_load(text).get("models", ()))


@PAGE
def test_python_is_python(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")


@PAGE
def test_commands_exist(page: Path) -> None:
    group: Any = typer.main.get_command(cli.app)
    for span in spans(page):
        for name, rest in re.findall(r"(?:^|\$ )modelyard ([a-z]+)(.*)", span):
            assert name in group.commands, span
            options = {option for one in group.commands[name].params for option in one.opts}
            assert set(re.findall(r" (--?[a-z]+)", rest)) <= options | {"--help"}, span


@PAGE
def test_endpoints_exist(page: Path) -> None:
    nothing: Any = None
    routers = (listing_router(nothing, nothing, nothing), admin_router(nothing, nothing, nothing))
    known = SERVED | set(document(routers, keys=False)["paths"])
    for span in spans(page):
        for path in re.findall(
            r"(?:^|GET |POST |:8080)(/(?:v1|admin|health|ready|metrics|docs)\b[\w/{}.]*)", span
        ):
            assert any(other == path or other.startswith(f"{path}/") for other in known), span


@PAGE
def test_metrics_exist(page: Path) -> None:
    names = {one.name for one in DECLARED}
    for span in spans(page):
        assert set(re.findall(r"\bmodelyard_[a-z_]+", span)) <= names, span


@PAGE
def test_make_can_make_it(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for span in spans(page):
        assert set(re.findall(r"(?:^|\$ )make ([a-z0-9]+)", span)) <= targets, span
