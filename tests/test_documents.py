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
from modelyard.gateway.app import registry_router
from modelyard.gateway.cache import cache_router
from modelyard.gateway.listing import listing_router
from modelyard.gateway.reference import document
from modelyard.importing import llama_swap, written
from modelyard.telemetry.metrics import DECLARED

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
WRITTEN = [page for page in PAGES if page.parent.name != "reference"]
PAGE = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
SERVED = {"/", "/docs", "/openapi.json"}
KNOWN = {"Anthropic", "Ollama", "Prometheus", "Retry", "After", "Unix"}  # in diagrams


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
    names = ("APP_KEY", "OPS_KEY", "MINIO_USER", "MINIO_PASSWORD", "FAR_KEY")
    keys = {**{name: name.lower() * 3 for name in names}, "HOME": str(tmp_path)}
    for text in blocks(page, "yaml"):
        loaded = config.load(None, text, environ=keys)
        assert len(loaded.models) == len(yaml.safe_load(text).get("models", ()))


@PAGE
def test_imports_make_what_is_shown(page: Path, tmp_path: Path) -> None:
    """A configuration of llama-swap is followed by what the import makes of it."""
    pairs = re.findall(
        r"^```yaml llama-swap\n(.*?)^```.*?^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(pairs) == len(blocks(page, "yaml llama-swap"))
    for before, after in pairs:
        (tmp_path / "config.yaml").write_text(before)
        imported = llama_swap.read(tmp_path / "config.yaml", {}, elsewhere=True)
        text = written.text_of(imported, tmp_path / "modelyard.yaml", {}, elsewhere=True)
        assert re.sub(r"\A(#.*\n)*?(#\n|\n)", "", text) == after


@PAGE
def test_diagrams_name_what_there_is(page: Path) -> None:
    """Files by their path's end, folders, and whatever begins with a capital: a class."""
    source = ROOT / "src" / "modelyard"
    code = "\n".join(file.read_text() for file in source.rglob("*.py"))
    for diagram in blocks(page, "mermaid"):
        for name in re.findall(r"[a-z_][a-z_/]*\.py\b", diagram):
            assert any(str(file).endswith(f"/{name}") for file in source.rglob("*.py")), name
        for name in re.findall(r"\b([a-z]+)/[\s:]", diagram):
            assert any(folder.is_dir() for folder in source.rglob(name)), name
        keywords = {"Note"}
        for name in set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)*\b", diagram)) - keywords - KNOWN:
            assert re.search(rf"^class {name}\b", code, re.MULTILINE), name


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
            command = group.commands[name]
            if words := rest.split() if hasattr(command, "commands") else []:
                assert words[0] in command.commands, span
                command = command.commands[words[0]]
            options = {option for one in command.params for option in one.opts}
            assert set(re.findall(r" (--?[a-z]+)", rest)) <= options | {"--help"}, span


@PAGE
def test_endpoints_exist(page: Path) -> None:
    nothing: Any = None
    routers = (
        listing_router(*[nothing] * 3),
        registry_router(*[nothing] * 5),
        cache_router(*[nothing] * 2),
        admin_router(*[nothing] * 6),
    )
    known = SERVED | set(document(routers, keys=False)["paths"])
    for span in spans(page):
        for path in re.findall(
            r"(?:^|GET |POST |:8080)(/(?:v1|admin|health|ready|metrics|docs)\b[\w/{}.-]*)", span
        ):
            assert any(other.startswith(f"{path}/") or _fits(path, other) for other in known), span


def _fits(path: str, template: str) -> bool:
    """Whether a path is one of a template such as `/v1/models/{name}`."""
    return re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(template)), path) is not None


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
