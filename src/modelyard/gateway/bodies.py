"""What the lanes take and answer: shapes for their description in `reference`, which check nothing."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Asked(BaseModel):
    """The fields that Modelyard reads; every other one goes to the engine as it was sent."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(
        default=None,
        description="A model's name or alias, or `name@digest`; may be left out where there is one.",
    )


class Streaming(Asked):
    stream: bool = Field(default=False, description="Answer with server-sent events, `[DONE]` at the end.")


class Chat(Streaming):
    messages: list[dict[str, Any]]


class Completion(Streaming):
    prompt: str | list[Any]


class Embedding(Asked):
    input: str | list[Any]


class Rerank(Asked):
    query: str
    documents: list[str]


class ResponseAsked(Streaming):
    input: str | list[Any]


class Tokenize(Asked):
    content: str


class Detokenize(Asked):
    tokens: list[int]


class Predict(Streaming):
    """The body of the endpoint that is meant, without `model`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "hello"}]}]}
    )


class Generate(Streaming):
    """Any field but these and those that the model's engine has beyond them is refused by its name."""

    prompt: str
    max_tokens: int = Field(default=256, ge=1)
    load: bool = Field(default=True, description="false: 409 rather than load a model that is not running.")
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | list[Any] | None = None
    user: str | None = Field(default=None, description="Ignored.")


class Message(Asked):
    """A request of Anthropic's Messages API. Each field is honoured, or refused by its name."""

    model_config = ConfigDict(extra="forbid")

    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = Field(default=None, description="Where the chat template knows it.")
    output_config: dict[str, Any] | None = Field(default=None, description="`format`; `effort` is ignored.")
    context_management: dict[str, Any] | None = Field(default=None, description="To keep all thinking only.")
    metadata: dict[str, Any] | None = Field(default=None, description="Ignored.")
    service_tier: str | None = Field(default=None, description="Ignored.")
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


class MessageAsked(Message):
    max_tokens: int = Field(ge=1)
    stream: bool = Field(default=False, description="Answer with the events of Anthropic's API.")


class OllamaAsked(BaseModel):
    """A request of Ollama's API. Each field is honoured, refused by its name, or ignored as
    docs/how-to/clients.md says."""

    model: str = Field(description="A model's name or alias, with `:latest` or without.")


class OllamaStreaming(OllamaAsked):
    stream: bool = Field(default=True, description="Answer with lines of JSON (`application/x-ndjson`).")


class OllamaKept(OllamaAsked):
    keep_alive: float | str | None = Field(
        default=None,
        description="How long the model's instances stay from now on when idle; below zero: for ever.",
    )
    options: dict[str, Any] | None = None


class OllamaGeneration(OllamaStreaming, OllamaKept):
    format: str | dict[str, Any] | None = Field(default=None, description="`json`, or a JSON schema.")
    think: bool | str | None = Field(default=None, description="Where the chat template knows it.")


class OllamaChat(OllamaGeneration):
    messages: list[dict[str, Any]] = Field(default=[], description="None: the model is only loaded.")
    tools: list[dict[str, Any]] | None = None


class OllamaGenerate(OllamaGeneration):
    prompt: str = Field(default="", description="Empty: the model is only loaded.")
    system: str | None = None
    images: list[str] | None = None
    raw: bool = Field(default=False, description="The prompt as it is, without the chat template.")


class OllamaEmbed(OllamaKept):
    input: str | list[str]
    dimensions: int | None = None


class OllamaEmbeddings(OllamaKept):
    prompt: str


class Counted(BaseModel):
    input_tokens: int


class Usage(BaseModel):
    model_config = ConfigDict(extra="allow")

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Generated(BaseModel):
    """What was generated; as a stream, each event holds the next piece of `text`."""

    text: str
    model: str
    usage: Usage | None = None


class EngineAnswer(BaseModel):
    """The engine's own answer, in the shape of its API."""

    model_config = ConfigDict(extra="allow")
