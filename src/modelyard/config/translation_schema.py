"""The shape of the section `translation`. Used by `schema`."""

from __future__ import annotations

from pydantic import Field

from modelyard.config.quantities import Duration, Flag, PositiveCount, PositiveSize
from modelyard.config.shapes import Languages, Name, PairNames, Section, Text


class LlmSection(Section):
    """A language model that is told to translate."""

    model: Name = Field(description="A model that chats.")
    prompt: Text | None = Field(
        default=None, description="What it is told; `{source}` and `{target}` are the languages."
    )


class FallbackSection(Section):
    """What is left when no model can translate in time."""

    model: Name | None = Field(default=None, description="A model that is kept for this.")
    text: Text | None = Field(default=None, description="The answer itself, marked as such.")


class TranslationSection(Section):
    """How texts are translated, whichever model does."""

    pivot: Languages = Field(
        default_factory=list,
        description="Languages that a translation may go over where no model has the pair. Default: none.",
    )
    llm: LlmSection | None = Field(default=None, description="A language model, where no other can.")
    fallback: FallbackSection | None = Field(default=None, description="When no model can in time.")
    cache: PositiveSize | None = Field(
        default=None, description="Keep so many bytes of recent translations. Default: none."
    )
    preload: PairNames = Field(
        default_factory=list,
        description="Pairs to have a model in memory for at start; or `auto`: the pairs asked for most.",
    )
    max_texts: PositiveCount = Field(default=256, description="Texts in one request.")
    max_chars: PositiveCount = Field(default=100_000, description="Characters in one request.")
    local_only: Flag = Field(default=False, description="No text leaves this machine to be translated.")
    spill_after: Duration = Field(
        default=10.0,
        description="Wait behind others after which the next model is taken, one elsewhere, too.",
    )
