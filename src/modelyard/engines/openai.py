"""The adapter of servers elsewhere that speak OpenAI's API: nothing is started, and no memory is taken.

`url` is where its API is, with or without the `/v1` that its paths begin with, `key` what it wants from us,
and `model` what it calls the model (default: the name here). `slots` of the model bounds how many requests it
is sent at once. What it says of a key or a model that it does not take is found out at the first generation;
where that costs too much, or is not understood, `generate: false` leaves it out.

A model whose `languages` or `pairs` are said translates, as another Modelyard does: at `/translate`, beside
`url`. It does nothing else, unless `apis` says so; `model`, where it is set, goes with each request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from modelyard.core.types import Address, Cause, Placement, Spec
from modelyard.engines import openai_http, translating
from modelyard.engines.base import TRANSLATE, Attach, Call, Files, Profile
from modelyard.engines.elsewhere import Elsewhere
from modelyard.engines.openai_http import APIS
from modelyard.engines.options import Option, Table, path, some_of, text, truth, url, visible, whole

_MODELS = "/v1/models"


_TABLE = Table(
    "openai",
    (
        Option("url", url("https://api.example.com/v1", "; a key is the parameter `key`")),
        Option("key", visible),
        Option("model", text),
        Option("ca", path),
        Option("apis", some_of(*APIS)),
        Option("context", whole(1)),
        Option("generate", truth),
    ),
)


class OpenAiEngine(Elsewhere):
    """See the module's text and `engines.base.Engine`."""

    type: ClassVar[str] = "openai"
    table: ClassVar[Table] = _TABLE
    health: ClassVar[str] = _MODELS
    verified: ClassVar[Literal["real", "golden"]] = "real"

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        found = super().problems(spec, profile)
        return found or openai_http.warm_up_problems(spec, self.paths(spec))

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Attach:
        key = spec.parameters.get("key")
        headers = (("authorization", f"Bearer {key}"),) if key else ()
        url = str(spec.parameters["url"]).rstrip("/").removesuffix("/v1")
        return Attach(url, headers, ca=str(spec.parameters.get("ca", "")))

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        if spec.parameters.get("generate") is False and not (spec.warm_up.prompts or spec.warm_up.prefixes):
            return (Call("GET", _MODELS),)
        paths = self.paths(spec)
        if paths == {TRANSLATE}:
            return translating.warm_up(spec, self.translation)
        return openai_http.warm_up(replace(spec, model=self.model_name(spec)), paths - {TRANSLATE})

    def paths(self, spec: Spec) -> frozenset[str]:
        apis = spec.parameters.get("apis", () if spec.pairs else ("chat", "completions"))
        said = frozenset(APIS[api] for api in apis) if isinstance(apis, list | tuple) else frozenset()
        return said | {TRANSLATE} if spec.pairs else said

    def translation(self, spec: Spec, fields: Mapping[str, object]) -> Mapping[str, object]:
        model = spec.parameters.get("model")
        # Two servers that help each other out would send a text to and fro.
        return {**fields, "local_only": True} | ({"model": model} if model else {})

    def model_name(self, spec: Spec) -> str:
        return str(spec.parameters.get("model", spec.model))

    def refused(self, spec: Spec, status: int) -> tuple[Cause, str] | None:
        if status == 404:
            return Cause.BAD_MODEL, (
                f"{spec.parameters['url']} has no model {self.model_name(spec)!r} (parameters.model is its "
                "name there), or its API is elsewhere (parameters.url)"
            )
        if status == 400 and self.paths(spec) == {TRANSLATE}:
            return Cause.BAD_MODEL, (
                f"{spec.parameters['url']} has to translate its `pairs` itself: what one server sends "
                "another goes no further, so that two that name each other send nothing in a loop"
            )
        if status in (400, 422):
            return Cause.BAD_MODEL, "parameters.generate: false has it start without a first generation"
        return super().refused(spec, status)
