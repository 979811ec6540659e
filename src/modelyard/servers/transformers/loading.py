"""Loads a model as its parameters say. Called once, in a thread: to import Transformers takes seconds."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from modelyard.servers.transformers.asks import Sampling
from modelyard.servers.transformers.batching import Batching
from modelyard.servers.transformers.embedding import Embedding
from modelyard.servers.transformers.generation import Model, Sleeper
from modelyard.servers.transformers.host_weights import HostWeights
from modelyard.servers.transformers.parameters import Parameters
from modelyard.servers.transformers.speculation import Speculation
from modelyard.servers.transformers.vectors import Vectors
from modelyard.servers.transformers.weights import GpuWeights


def load(parameters: Parameters) -> Model:
    """The model, ready to serve. Raises what the libraries raise, and ValueError."""
    if parameters.threads:
        torch.set_num_threads(parameters.threads)
    if parameters.device != "cpu" and not torch.cuda.is_available():
        raise ValueError("no GPU is visible to PyTorch: install its build for this machine's GPUs")
    kind = transformers.AutoModel if parameters.embedding else transformers.AutoModelForCausalLM
    model, sleeper = _placed(kind, parameters.path, parameters)
    tokenizer = transformers.AutoTokenizer.from_pretrained(parameters.path)
    words = Tokenizer(tokenizer, model)
    if parameters.embedding:
        vectors = Vectors(model, tokenizer, _pooling(parameters))
        return Model(words, sleeper, embedder=Embedding(vectors.forward, parameters))
    if parameters.speculates:
        draft = None
        if parameters.draft:
            draft, _ = _placed(transformers.AutoModelForCausalLM, parameters.draft, parameters)
        sleeper = sleeper if draft is None else Fixed()
        return Model(words, sleeper, generator=Speculation(model, draft, parameters))
    generator = Batching(model, parameters)
    generator.open()
    return Model(words, sleeper, generator=generator)


class Fixed:
    """Weights that stay where they are: those that were quantized at the load have state of other kinds."""

    level = ""

    def sleep(self) -> tuple[int, float]:
        raise NotImplementedError

    wake = sleep


class Tokenizer:
    """See `generation.Words`."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.chats = bool(tokenizer.chat_template)
        self.vocabulary = model.get_input_embeddings().num_embeddings
        own = model.generation_config if model.can_generate() else transformers.GenerationConfig()
        ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.defaults = Sampling(
            temperature=1.0 if own.temperature is None else own.temperature,
            top_k=(own.top_k or 0) if own.do_sample else 0,
            top_p=1.0 if own.top_p is None else own.top_p,
        )
        self._tokenizer = tokenizer
        base = transformers.PreTrainedTokenizerBase
        owners = (tokenizer.apply_chat_template, base.apply_chat_template)
        self._arguments = frozenset(name for one in owners for name in inspect.signature(one).parameters)

    def encode(self, text: str, special: bool = True) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=special))
        except Exception as error:  # whatever the library raises belongs to this text
            raise ValueError(f"the model's tokenizer refuses this text: {error}") from None

    def chat(self, messages: Sequence[Mapping[str, object]], more: Mapping[str, object]) -> list[int]:
        if taken := sorted(self._arguments & more.keys()):
            raise ValueError(f"`chat_template_kwargs`: `{taken[0]}` is not the template's, and cannot be set")
        given = {**more, "tokenize": True, "return_dict": False, "add_generation_prompt": True}
        try:
            return list(self._tokenizer.apply_chat_template(list(messages), **given))
        except Exception as error:  # a template is a program, and may raise anything
            raise ValueError(f"the model's chat template refuses these messages: {error}") from None

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=not special))


def _placed(kind: Any, path: str, parameters: Parameters) -> tuple[Any, Sleeper]:
    """A model on its device. Weights that are used as they lie in the files are read from there once."""
    device = "cpu" if parameters.device == "cpu" else "cuda:0"
    given = {
        "dtype": _dtype(path, parameters),
        "attn_implementation": parameters.attention,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    if parameters.quantization:
        quantization = _quantization(parameters.quantization)
        model = kind.from_pretrained(path, **given, quantization_config=quantization, device_map={"": device})
        return model.eval(), Fixed()
    model = kind.from_pretrained(path, **given).eval()
    if getattr(model.config, "quantization_config", None) is not None:
        return model.to(device), Fixed()
    on_host = device == "cpu"
    return model, HostWeights(model, parameters.sleep_folder) if on_host else GpuWeights(model, device)


def _dtype(path: str, parameters: Parameters) -> Any:
    if parameters.dtype != "auto":
        return getattr(torch, parameters.dtype)
    if parameters.device == "cpu":
        return torch.float32
    own = transformers.AutoConfig.from_pretrained(path, local_files_only=True).dtype
    return torch.float16 if own is torch.float16 or not torch.cuda.is_bf16_supported() else torch.bfloat16


def _quantization(name: str) -> Any:
    if name == "bnb-4bit":
        return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    if name == "bnb-8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if name == "fp8":
        return transformers.FineGrainedFP8Config()
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig  # noqa: PLC0415 - only then

    return transformers.TorchAoConfig(
        Int8WeightOnlyConfig() if name == "torchao-int8" else Int4WeightOnlyConfig()
    )


def _pooling(parameters: Parameters) -> str:
    """What is asked for, or what the model's folder says (as Sentence Transformers writes it), or mean."""
    if parameters.pooling:
        return parameters.pooling
    try:
        own = json.loads((Path(parameters.path) / "1_Pooling" / "config.json").read_text())
    except (OSError, ValueError):
        return "mean"
    if own.get("pooling_mode_cls_token"):
        return "cls"
    return "last" if own.get("pooling_mode_lasttoken") else "mean"
