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
from modelyard.core.types import Address, Cause, Need, Placement, Share, Spec
from modelyard.engines import translating
from modelyard.engines.adapter import Adapter
from modelyard.engines.base import TRANSLATE, Attach, Call, Exit, Files, Profile
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


class LibreTranslateEngine(Adapter):
    """See the module's text and `engines.base.Engine`."""

    type: ClassVar[str] = "libretranslate"
    health: ClassVar[str] = translating.LANGUAGES
    verified: ClassVar[Literal["real", "golden"]] = "golden"
    # Where requests go, and what is read of this machine's disk.
    trusted: ClassVar[frozenset[str]] = frozenset({"url", "ca"})

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        found = _TABLE.problems(spec.parameters)
        if "url" not in spec.parameters:
            found.append(("parameters.url", "is missing: say where the server is"))
        if spec.source:
            found.append(("source", "is of no use: the server has its models already"))
        return found + translating.warm_up_problems(spec)

    def need(self, spec: Spec, files: Files) -> Need:
        return Need((Share("ram", 0),))

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

    def elsewhere(self, spec: Spec) -> bool:
        return True

    def languages(self, spec: Spec) -> Call | None:
        return None if spec.pairs else _LANGUAGES

    def read_languages(self, body: bytes) -> Pairs:
        return translating.read_languages(body)

    def translation(self, spec: Spec, fields: Mapping[str, object]) -> Mapping[str, object]:
        known = {name: fields[name] for name in translating.FIELDS if name in fields}
        key = spec.parameters.get("key")
        return {**known, "api_key": key} if key else known

    def cause(self, exit: Exit, log_tail: str) -> Cause:
        return Cause.EXITED

    def refused(self, spec: Spec, status: int) -> tuple[Cause, str] | None:
        where = spec.parameters["url"]
        if status in (401, 403):
            said = "is not taken" if "key" in spec.parameters else "is missing"
            return Cause.BAD_ARGUMENTS, f"parameters.key {said} by {where}"
        if status in (404, 405):
            return Cause.BAD_ARGUMENTS, f"{where} has no LibreTranslate's API (parameters.url)"
        if status == 400:
            return Cause.BAD_MODEL, (
                "it wants a key (parameters.key), or does not translate what it was asked: say its `pairs`, "
                "or parameters.generate: false has it start without a first translation"
            )
        if 300 <= status < 400:
            return Cause.BAD_ARGUMENTS, "parameters.url leads elsewhere, and is not followed: name that place"
        if status == 429 or status >= 500:
            return Cause.LAUNCH, ""  # it may well take the next one
        return None
