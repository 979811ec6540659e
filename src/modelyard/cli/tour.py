"""The demo's tour: about twenty seconds in which the server shows what it does, over HTTP as any client.

Made by `modelyard demo`; runs in a thread beside the server and never looks inside it. It ends by itself,
or when the server does. On a terminal it draws progress bars; elsewhere it prints plain lines.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.markup import escape

from modelyard.cli import tables
from modelyard.cli.waiting import Waiting
from modelyard.client import UNIX, Client
from modelyard.errors import ModelyardError

Json = dict[str, Any]

MODELS = 3
CLIENTS = 16
TOKENS = 48
CROWD_TOKENS = 16
_POLL = 0.1
_JOIN = 5.0
_QUESTIONS = (
    "In one sentence: why is the sky blue?",
    "Name three rivers in Europe.",
    "Write one line about the sea.",
)


class _Stopped(Exception):
    """The server is ending: nothing more is shown."""


class Tour:
    """`start` it when the server listens, `stop` it when the server has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, url: str) -> None:
        """Begin, in a thread of its own; returns at once."""
        self._thread = threading.Thread(target=self._run, args=(url,), name="tour", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; its requests have failed by now, because the server is gone."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_JOIN)

    def _run(self, url: str) -> None:
        try:
            with Client(url, os.environ.get("MODELYARD_API_KEY")) as client:
                _Steps(self._console, client, self._stopping).all()
        except _Stopped:
            return
        except ModelyardError as error:
            # A server that is asked to stop refuses before `stop` is called here.
            if not self._stopping.is_set() and error.code not in ("shutting_down", "server_unreachable"):
                self._console.print(f"\n[red]The tour ends here:[/] {escape(str(error))}")


class _Steps:
    """What is shown, in order."""

    def __init__(self, console: Console, client: Client, stopping: threading.Event) -> None:
        self._console = console
        self._client = client
        self._stopping = stopping

    def all(self) -> None:
        models = self._welcome()
        if not models:
            self._say("There is no model that can chat, so there is no tour; the server goes on.")
            return
        self._title("One address, several models" if len(models) > 1 else "One model")
        for model, question in zip(models[:-1] or models, _QUESTIONS, strict=False):
            self._ask(model, question)
        if len(models) > 1:
            self._one_more(models[-1])
        self._crowd(models)
        self._next(models[0]["id"])

    def _welcome(self) -> list[Json]:
        """Say what is there; the models that the tour uses."""
        listed = self._client.models()
        self._say(f"[bold]Modelyard[/] listens on [cyan]{escape(self._client.url)}[/]")
        names = ", ".join(escape(model["id"]) for model in listed)
        self._say(f"It serves {names}." if names else "It serves no model yet: name some under `models:`.")
        return [model for model in listed if _path_of(model) is not None][:MODELS]

    def _ask(self, model: Json, question: str) -> None:
        """One question, its answer as it comes."""
        name = model["id"]
        self._say(f"[bold green]{escape(name)}[/] [dim]{escape(question)}[/]")
        answer = _Answer(self._client, model, question, TOKENS)
        with Waiting(self._console, name) as waiting:
            while (piece := answer.next(_POLL)) == "":
                self._check()
                waiting.update(self._client.ps())
        self._console.print("  ", end="")
        while piece is not None:
            self._check()
            self._console.out(piece.replace("\n", " "), end="", highlight=False)
            self._console.file.flush()
            piece = answer.next(_POLL)
        self._say(f"\n  [dim]first words after {answer.first:.1f} s, all after {answer.total:.1f} s[/]")

    def _one_more(self, model: Json) -> None:
        """The last model may not fit beside the others: show who leaves for it, and why."""
        self._title("And one more")
        began = time.time()
        self._memory("before")
        self._ask(model, _QUESTIONS[-1])
        events = [event for event in self._client.ps()["events"] if event["at"] >= began]
        reasons = [event for event in events if event["kind"] == "leave"]
        for event in reasons:
            self._say(f"  [yellow]swap[/] {escape(event['subject'])} {escape(event['message'])}")
        if not any(event["kind"] == "start" for event in events):
            self._say("  It was in memory already.")
        elif not reasons:
            self._say("  It fits beside the others: nobody had to leave.")
        self._memory("after")

    def _memory(self, when: str) -> None:
        for device in self._client.ps()["devices"]:
            if not device["instances"]:
                continue
            held = ", ".join(use["instance"] for use in device["instances"])
            bar = tables.bar({**device, "total": device["budget"], "foreign": 0})
            self._say(
                f"  {when:<6} {escape(device['id'])} {bar} "
                f"{tables.size(device['reserved'])} of {tables.size(device['budget'])}: {escape(held)}"
            )

    def _crowd(self, models: list[Json]) -> None:
        """Many clients at once, over all models: requests are grouped, so that few swaps serve them all."""
        self._title(f"{CLIENTS} clients at once")
        began, clock = time.time(), time.monotonic()

        def one(number: int) -> float:
            model = models[number % len(models)]
            for _ in _texts(self._client, model, _QUESTIONS[number % len(_QUESTIONS)], CROWD_TOKENS):
                self._check()
            return time.monotonic() - clock

        with ThreadPoolExecutor(CLIENTS) as clients:
            times = sorted(clients.map(one, range(CLIENTS)))
        events = [event for event in self._client.ps()["events"] if event["at"] >= began]
        swaps = sum(event["kind"] == "leave" for event in events)
        self._say(
            f"  {CLIENTS} answers in {times[-1]:.1f} s (the first after {times[0]:.1f} s), "
            f"{swaps} swap{'s' * (swaps != 1)}, nobody turned away"
        )

    def _next(self, model: str) -> None:
        url = self._client.url
        socket = url.removeprefix(UNIX) if url.startswith(UNIX) else ""
        curl, base = (f"curl --unix-socket {socket} http://localhost", "") if socket else (f"curl {url}", url)
        self._title("Your turn")
        self._out(f'  {curl}/generate -d \'{{"model": "{model}", "prompt": "Once upon a time"}}\'')
        if base:
            self._out(
                "\n  from openai import OpenAI\n"
                f'  client = OpenAI(base_url="{base}/v1", api_key="none")\n'
                "  client.chat.completions.create(\n"
                f'      model="{model}", messages=[{{"role": "user", "content": "Hello"}}]\n  )\n'
            )
            self._say(f"  The status page is [cyan]{base}/[/], the API's reference [cyan]{base}/docs[/].")
        self._say("  The server goes on; Ctrl-C ends it.")

    # -- printing -----------------------------------------------------------------------------------------

    def _title(self, text: str) -> None:
        self._say(f"\n[bold]{escape(text)}[/]")

    def _say(self, text: str) -> None:
        self._check()
        self._console.print(text, soft_wrap=True)

    def _out(self, text: str) -> None:
        """Text to be copied: no markup, no wrapping."""
        self._check()
        self._console.out(text, highlight=False)

    def _check(self) -> None:
        if self._stopping.is_set():
            raise _Stopped


class _Answer:
    """An answer that is read in a thread, so that its wait can be shown. `first` and `total` are seconds."""

    def __init__(self, client: Client, model: Json, question: str, tokens: int) -> None:
        self._pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._began = time.monotonic()
        self.first = self.total = 0.0
        texts = _texts(client, model, question, tokens)
        # A daemon: it reads until the server ends, and the tour may have ended before.
        threading.Thread(target=self._read, args=(texts,), name="answer", daemon=True).start()

    def _read(self, texts: Iterable[str]) -> None:
        try:
            for text in texts:
                self._pieces.put(text)
            self._pieces.put(None)
        except BaseException as error:
            self._pieces.put(error)

    def next(self, timeout: float) -> str | None:
        """The next piece, empty when there was none within `timeout` seconds, None at the end. Raises what
        the request raised."""
        try:
            piece = self._pieces.get(timeout=timeout)
        except queue.Empty:
            return ""
        if isinstance(piece, BaseException):
            raise piece
        self.total = time.monotonic() - self._began
        self.first = self.first or self.total
        return piece


def _path_of(model: Json) -> str | None:
    able = model["modelyard"]["capabilities"]
    if "chat" in able:
        return "/v1/chat/completions"
    return "/v1/completions" if "completion" in able else None


def _texts(client: Client, model: Json, question: str, tokens: int) -> Iterable[str]:
    """The pieces of an answer, none of them empty."""
    path = _path_of(model)
    assert path is not None
    body: Json = {"model": model["id"], "max_tokens": tokens, "stream": True}
    if path.endswith("/chat/completions"):
        body["messages"] = [{"role": "user", "content": question}]
    else:
        body["prompt"] = question
    for event in client.stream("POST", path, body):
        for choice in event.get("choices", ()):
            text = choice.get("text") or (choice.get("delta") or {}).get("content")
            if text:
                yield str(text)
