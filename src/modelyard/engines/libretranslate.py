"""The adapter of LibreTranslate elsewhere, and of what speaks its API: nothing is started, and no memory is
taken.

`url` is where its API is, and `key` what it wants from us, which goes into the body of each request. What it
translates is what the model's `languages` and `pairs` say, else what it tells itself when it is used first;
`slots` of the model bounds how many requests it is sent at once. Whether it takes the key is found out by a
first translation, of English to English where no pairs are said; `generate: false` leaves that out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from modelyard.core.languages import Pairs
from modelyard.core.types import Address, Cause, Placement, Spec
from modelyard.engines import translating
from modelyard.engines.base import TRANSLATE, Attach, Call, Files, Profile
from modelyard.engines.elsewhere import Elsewhere
from modelyard.engines.options import Option, Table, path, truth, url, visible

_LANGUAGES = Call("GET", translating.LANGUAGES)
_TABLE = Table(
    "libretranslate",
    (
        Option("url", url("https://translate.example.com", "; a key is the parameter `key`")),
        Option("key", visible),
        Option("ca", path),
        Option("generate", truth),
    ),
)


class LibreTranslateEngine(Elsewhere):
    """See the module's text and `engines.base.Engine`."""

    type: ClassVar[str] = "libretranslate"
    table: ClassVar[Table] = _TABLE
    health: ClassVar[str] = translating.LANGUAGES
    verified: ClassVar[Literal["real", "golden"]] = "golden"

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        return super().problems(spec, profile) + translating.warm_up_problems(spec)

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Attach:
        return Attach(str(spec.parameters["url"]), ca=str(spec.parameters.get("ca", "")))

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        if spec.parameters.get("generate") is False and not spec.warm_up.prompts:
            return (_LANGUAGES,)
        return translating.warm_up(spec, self.translation)

    def paths(self, spec: Spec) -> frozenset[str]:
        return frozenset({TRANSLATE})

    def languages(self, spec: Spec) -> Call | None:
        return None if spec.pairs else _LANGUAGES

    def read_languages(self, body: bytes) -> Pairs:
        return translating.read_languages(body)

    def translation(self, spec: Spec, fields: Mapping[str, object]) -> Mapping[str, object]:
        known = {name: fields[name] for name in translating.FIELDS if name in fields}
        known["local_only"] = (
            True  # where it is a Modelyard: two that name each other would send it in a loop
        )
        key = spec.parameters.get("key")
        return {**known, "api_key": key} if key else known

    def refused(self, spec: Spec, status: int) -> tuple[Cause, str] | None:
        if status in (404, 405):
            return (
                Cause.BAD_ARGUMENTS,
                f"{spec.parameters['url']} has no LibreTranslate's API (parameters.url)",
            )
        if status == 400:
            return Cause.BAD_MODEL, (
                "it wants a key (parameters.key), or does not translate what it was asked: say its `pairs`, "
                "or parameters.generate: false has it start without a first translation"
            )
        return super().refused(spec, status)
