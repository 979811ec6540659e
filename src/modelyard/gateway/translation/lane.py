"""The translation lanes: LibreTranslate's API, and our fields beside it.

Used by `inference`, which hands over the exchanges of these paths. What is asked for is read by `request`,
cut into pieces of text, which `translating` has models translate, and put together again by `answer`. A key
may come in the body, as LibreTranslate's clients send it: then it is looked at as soon as that is read, and
before anything is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import orjson

from modelyard import languages
from modelyard.config import Translation as Settings
from modelyard.errors import InvalidRequest, MethodNotAllowed
from modelyard.gateway.auth import Gate, priority_of
from modelyard.gateway.exchange import NOBODY, Exchange, Handler
from modelyard.gateway.fields import Fields, refuse
from modelyard.gateway.forms import Form
from modelyard.gateway.http.answers import JSON
from modelyard.gateway.translation.answer import NOTHING, Part, answer_of, beside, translate
from modelyard.gateway.translation.detection import detect, detect_each
from modelyard.gateway.translation.documents import KINDS, document_of
from modelyard.gateway.translation.files import HEADERS, Files
from modelyard.gateway.translation.markup import pieces_of
from modelyard.gateway.translation.paths import (
    DETECT,
    DOWNLOAD,
    LANGUAGES,
    SETTINGS,
    TRANSLATE,
    TRANSLATE_FILE,
    TRANSLATION,
)
from modelyard.gateway.translation.pieces import Pieces
from modelyard.gateway.translation.request import (
    AUTO,
    Asked,
    check_size,
    code_among,
    fields_of,
    problem_of,
    read,
    sent,
    ways_of,
)
from modelyard.gateway.translation.steps import Done, Job
from modelyard.gateway.translation.strangers import Strangers
from modelyard.gateway.translation.translating import Translating

KINDS_BY_PATH = {
    TRANSLATE: "translation",
    TRANSLATION: "translation",
    TRANSLATE_FILE: "translation",
    DETECT: "detect",
}
"""What they are called in metrics."""
MARKUP = 10
"""How many bytes of a document, or of a body, may come on one character of text that may be translated."""


class Lanes:
    """`settings` are those in force."""

    def __init__(self, translating: Translating, gate: Gate, settings: Callable[[], Settings]) -> None:
        self._translating = translating
        self._gate = gate
        self._settings = settings
        self._files = Files()
        self._strangers = Strangers()
        self.posts: Mapping[str, Handler] = {
            TRANSLATE: self._translate,
            TRANSLATION: self._translate,
            DETECT: self._detect,
            TRANSLATE_FILE: self._translate_file,
        }
        self._gets: Mapping[str, Handler] = {LANGUAGES: self._languages, SETTINGS: self._frontend}

    def reader_for(self, method: str, path: str) -> Handler | None:
        """The handler of what is only read here. Raises MethodNotAllowed."""
        handler = self._download if path.startswith(DOWNLOAD) else self._gets.get(path)
        if handler is not None and method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{path} takes GET, not {method}.", allowed="GET")
        return handler

    # -- texts --------------------------------------------------------------------------------------------

    async def _translate(self, exchange: Exchange) -> None:
        value = fields_of(await self._sent(exchange))
        await self._answer(exchange, read(value, self._settings()))

    async def predict(self, exchange: Exchange, model: str, value: Mapping[str, object]) -> None:
        """The same body for one model, which its path names."""
        asked = read(value, self._settings())
        if asked.model not in (None, model):
            raise InvalidRequest(f"`model` is not {model}; leave it out.", param="model")
        asked.model = model
        await self._answer(exchange, asked)

    async def _answer(self, exchange: Exchange, asked: Asked) -> None:
        problems = [problem_of(text) for text in asked.texts]
        texts = ["" if problem else str(text) for text, problem in zip(asked.texts, problems, strict=True)]
        size = sum(map(len, texts)) + asked.glossary.size
        pieces = await beside(size, _pieces, texts, asked)
        _respond(exchange, *await self._translated(exchange, asked, pieces, problems))

    async def _translated(
        self,
        exchange: Exchange,
        asked: Asked,
        pieces: Sequence[Pieces],
        problems: Sequence[str],
    ) -> tuple[dict[str, object], Sequence[Done]]:
        """The answer for these pieces of texts, and how it came about."""
        settings = self._settings()
        model = await self._translating.model(asked.model, settings)
        sources, targets = self._translating.codes(model, settings)
        if asked.source == asked.target:  # any language that is known here: the text stays what it is
            sources = targets = sources | targets
        target = code_among(asked.target, targets, "target")
        detected = asked.source == AUTO
        guesses = await detect_each([one.said for one in pieces], sources) if detected else []
        if detected:
            codes = [guess and guess.language for guess in guesses]
        else:
            codes = [code_among(asked.source, sources, "source")] * len(pieces)
        parts = [Part(*each) for each in zip(pieces, codes, problems, strict=True)]
        job = Job(
            texts=(),
            source="",
            target=target,
            model=model,
            alternatives=asked.alternatives,
            partial=asked.partial,
            pivot=asked.pivot,
            local_only=asked.local_only,
            priority=priority_of(exchange),
        )
        dones = await translate(self._translating, exchange, parts, job, settings)
        return answer_of(asked, parts, guesses, target, dones), dones

    async def _detect(self, exchange: Exchange) -> None:
        given = fields_of(await self._sent(exchange)).get("q")
        text = "\n".join(map(str, given)) if isinstance(given, list) else given
        if not isinstance(text, str) or not text:
            raise InvalidRequest("`q` is missing: the text whose language is asked.", param="q")
        sources, _ = self._translating.codes(None, self._settings())
        found = await detect(text, sources) or [NOTHING]
        _respond(exchange, [guess._asdict() for guess in found])

    # -- documents ----------------------------------------------------------------------------------------

    async def _translate_file(self, exchange: Exchange) -> None:
        form = await self._sent(exchange)
        file = form.files.get("file") if isinstance(form, Form) else None
        if file is None or not file.name:
            raise InvalidRequest(
                "`file` is missing: a part of multipart/form-data with a `filename`.", param="file"
            )
        settings, asked = self._settings(), ways_of(Fields(fields_of(form)))
        most = settings.max_chars * MARKUP
        if len(file.data) > most:
            refuse("file", f"is {len(file.data):,} bytes large; {most:,} are the most")
        pieces = await asyncio.to_thread(document_of, file.name, file.data, asked.glossary)
        check_size([pieces.said], "file", settings)
        body, dones = await self._translated(exchange, asked, [pieces], [""])
        name, _, kind = file.name.rpartition(".")
        key = self._files.put(f"{name}_{asked.target}.{kind}", str(body.pop("translatedText")).encode())
        _respond(exchange, {"translatedFileUrl": _address(exchange, DOWNLOAD + key), **body}, dones)

    async def _download(self, exchange: Exchange) -> None:
        name, data = self._files.get(exchange.path.removeprefix(DOWNLOAD))
        saved = (b"content-disposition", b'attachment; filename="%b"' % name.encode())
        exchange.respond(200, [*HEADERS, saved], data)

    # -- what there is --------------------------------------------------------------------------------------

    async def _languages(self, exchange: Exchange) -> None:
        if exchange.headers.get(b"content-length") in (None, b"0"):
            self._gate.admit_with(exchange, None)
        else:  # some clients send a form with what they only read
            await self._sent(exchange)
        _respond(exchange, self._translating.languages(self._settings()))

    async def _frontend(self, exchange: Exchange) -> None:
        """What LibreTranslate's pages ask first."""
        settings, keyed = self._settings(), self._gate.asks
        _, targets = self._translating.codes(None, settings)
        target = "en" if "en" in targets or not targets else min(targets)
        answer = {
            "charLimit": settings.max_chars,
            "frontendTimeout": 500,
            "apiKeys": keyed,
            "keyRequired": keyed,
            "suggestions": False,
            "filesTranslation": True,
            "supportedFilesFormat": list(KINDS),
            "language": {
                "source": {"code": AUTO, "name": "Auto Detect"},
                "target": {"code": target, "name": languages.name(target)},
            },
        }
        _respond(exchange, answer)

    async def _sent(self, exchange: Exchange) -> Form | dict[str, object]:
        """The body, of one who may ask: a stranger is not even told what is wrong with it."""
        if exchange.caller is NOBODY:
            body = await self._strangers.body(exchange, self._settings().max_chars * MARKUP)
        else:
            body = await exchange.body()
        try:
            given = sent(body, exchange.headers.get(b"content-type"))
            key = fields_of(given).get("api_key")
        except InvalidRequest:
            self._gate.admit_with(exchange, None)
            raise
        self._gate.admit_with(exchange, key)
        return given


def _pieces(texts: Sequence[str], asked: Asked) -> list[Pieces]:
    return [pieces_of(text, asked.glossary, html=asked.html) for text in texts]


def _address(exchange: Exchange, path: str) -> str:
    """Where the client finds a path: at the host that it called."""
    host = (exchange.headers.get(b"host") or b"localhost").decode("latin-1")
    outside = exchange.headers.get(b"x-forwarded-proto") == b"https"  # a proxy ends the TLS
    return f"{'https' if outside else 'http'}://{host}{path}"


def _respond(exchange: Exchange, body: object, dones: Sequence[Done] = ()) -> None:
    headers = dones[-1].headers if dones else []
    exchange.respond(200, [JSON, *headers], orjson.dumps(body))
