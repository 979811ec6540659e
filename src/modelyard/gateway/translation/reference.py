"""The translation lanes in the reference: their routes and shapes, which serve and check nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from modelyard.engines.base import TRANSLATE
from modelyard.gateway.translation.paths import (
    DETECT,
    DOWNLOAD,
    LANGUAGES,
    SETTINGS,
    TRANSLATE_FILE,
    TRANSLATION,
)

DOWNLOADED = f"{DOWNLOAD}{{file}}"
PATHS = (TRANSLATE, TRANSLATION, TRANSLATE_FILE, DETECT, LANGUAGES, SETTINGS, DOWNLOADED)
Lane = Callable[..., dict[str, Any]]


class Translate(BaseModel):
    """LibreTranslate's fields, and ours; fields of other names are passed over. The same as a form
    (`application/x-www-form-urlencoded` or `multipart/form-data`), where `q` may come several times."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"q": ["The sun shines.", "It rains."], "source": "en", "target": "fr"}]
        }
    )

    q: str | list[str] | None = Field(default=None, description="A text, or a list; also `text`, `texts`.")
    source: str | None = Field(default=None, description="A language's code; `auto` or none: it is detected.")
    target: str | None = Field(default=None, description="A language's code.")
    pair: str | None = Field(default=None, description="Both in one, as `en-fr`.")
    format: Literal["text", "html"] = Field(default="text", description="html: markup stays as it is.")
    alternatives: int = Field(default=0, ge=0, le=10, description="Other translations of each text.")
    api_key: str | None = Field(default=None, description="A key, instead of one in a header.")
    model: str | None = Field(
        default=None, description="A model's name or alias; default: the best there is."
    )
    glossary: dict[str, str] | None = Field(
        default=None, description="What stands for a word, whatever the model says; the text is cut there."
    )
    pivot: str | Literal[False] | None = Field(
        default=None, description="The language to go over, of those configured; false: over none."
    )
    partial: bool = Field(default=False, description="A text that cannot be translated fails alone.")
    local_only: bool = Field(default=False, description="By no model elsewhere.")


class Detection(BaseModel):
    language: str
    confidence: float = Field(description="0 to 100.")


class TranslationUsage(BaseModel):
    segments: int
    input_tokens: int
    output_tokens: int


class Told(BaseModel):
    """How it was translated; where texts differ in it, a list with one for each."""

    pair: str | list[str | None] | None
    model: str | list[str | None] | None = Field(
        description="null: nothing had to be translated; of two steps `one > other`."
    )
    route: str | list[str | None] | None = Field(
        description="direct, pivot, llm (a language model was told to translate), fallback (a model kept for "
        "when no other can), or fixed (no translation: a text that is configured for that)."
    )
    pivot: str | list[str | None] | None = Field(default=None, description="The language it went over.")
    usage: TranslationUsage


class Translated(Told):
    """LibreTranslate's fields, then ours. One text is answered with one, a list with a list."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "translatedText": ["Le soleil brille.", "Il pleut."],
                    "pair": "en-fr",
                    "model": "opus-en-fr",
                    "route": "direct",
                    "pivot": None,
                    "usage": {"segments": 2, "input_tokens": 9, "output_tokens": 11},
                }
            ]
        }
    )

    translatedText: str | list[str | None] | None = Field(description="null for a text of `errors`.")
    detectedLanguage: Detection | list[Detection] | None = Field(
        default=None, description="Only when it was asked for."
    )
    alternatives: list[Any] | None = Field(default=None, description="Only when they were asked for.")
    errors: dict[str, str] | None = Field(
        default=None, description="With `partial`: what is wrong, by the place of the text, from 0."
    )


class TranslatedFile(Told):
    translatedFileUrl: str = Field(
        description="Where it can be fetched for half an hour.",
        examples=["http://localhost:8080/download_file/k3J9Qm.notes.md"],
    )


class Detect(BaseModel):
    q: str = Field(description="A text.", examples=["Il pleut."])
    api_key: str | None = None


class ServedBy(BaseModel):
    model: str
    loaded: bool


class Language(BaseModel):
    code: str = Field(examples=["en"])
    name: str = Field(examples=["English"])
    targets: list[str] = Field(description="What it is translated to.", examples=[["de", "fr"]])
    models: list[ServedBy] = Field(description="Which models translate from it.")


class FrontendSettings(BaseModel):
    model_config = ConfigDict(extra="allow")

    charLimit: int
    keyRequired: bool
    filesTranslation: bool
    supportedFilesFormat: list[str]


_FILE = {
    "type": "object",
    "required": ["file", "target"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "txt, md, srt or html, in UTF-8."},
        **{
            name: {"type": "string", "description": f"As of `/translate`{kind}."}
            for name, kind in (
                *(("source", ""), ("target", ""), ("model", ""), ("glossary", ": a JSON object")),
                *(("pivot", ""), ("local_only", ": true or false"), ("api_key", "")),
            )
        },
    },
}


def add_translation(router: APIRouter, lane: Lane, priority: Any) -> None:
    """`lane` says what a route of these answers beside its own text; `priority` is the header's type."""
    says = {**lane(), "tags": ["translation"]}
    tag: dict[str, Any] = {"tags": ["translation"]}

    async def translate(body: Translate, priority: Any = None) -> None:
        """A text, or several, in another language. Long texts are cut into sentences by the model's engine;
        white space and line breaks stay."""

    translate.__annotations__["priority"] = priority
    for path in (TRANSLATE, TRANSLATION):
        router.add_api_route(path, translate, methods=["POST"], response_model=Translated, **says)

    @router.post(
        TRANSLATE_FILE,
        response_model=TranslatedFile,
        openapi_extra={
            "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FILE}}}
        },
        **says,
    )
    async def translate_file() -> None:
        """A document in another language, its markup as it was."""

    @router.post(DETECT, response_model=list[Detection], **says)
    async def detect(body: Detect) -> None:
        """Which language a text may be in, the likeliest first, of those that are translated here."""

    @router.get(LANGUAGES, response_model=list[Language], **tag)
    async def languages() -> None:
        """What is translated to what, and by which models."""

    @router.get(SETTINGS, response_model=FrontendSettings, **tag)
    async def settings() -> None:
        """What LibreTranslate's pages ask first."""

    @router.get(
        DOWNLOADED,
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}},
        **tag,
    )
    async def download(file: str) -> None:
        """A document that `/translate_file` made. Its address cannot be guessed, and needs no key."""
