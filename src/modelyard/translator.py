"""`modelyard.Translator`: the class of `servers.translation`, which takes models by their names as well.

Used by programs. What has to be fetched or converted first is, once, in the store that a server with the same
configuration uses.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import structlog

from modelyard.config import load
from modelyard.errors import CannotLoad, InvalidRequest
from modelyard.servers.translation import families, packed, translator
from modelyard.servers.translation.backends import BEAM_SIZE, chosen
from modelyard.servers.translation.checks import check_settings
from modelyard.store import Derived, Progress, Store, StoredFile, Terms, sources_of
from modelyard.store.derived import CONVERTED
from modelyard.telemetry import log_output

T = TypeVar("T")

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Translator(translator.Translator):
    __doc__ = (
        (translator.Translator.__doc__ or "")
        + """
    Here `model` may also be a name on the Hugging Face Hub (`facebook/m2m100_418M`), or any source that
    a configuration can name. It is fetched to the store of the configuration's data folder, and a folder as
    Hugging Face has it is converted there for CTranslate2, once for each type: that takes seconds, and memory
    for all weights. One that has changed since is converted again. Raises the errors of the store as well
    (errors.StoreError), and ConfigErrors.
    """
    )

    def __init__(
        self,
        model: str | Path,
        device: str = "auto",
        dtype: str | None = None,
        batch_tokens: int | None = None,
        *,
        engine: str | None = None,
        beam_size: int = BEAM_SIZE,
    ) -> None:
        def open(folder: Path, name: str | None) -> None:
            translator.Translator.__init__(
                self, folder, device, dtype, batch_tokens, engine=name, beam_size=beam_size
            )

        check_settings(
            model=model,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            engine=engine,
            beam_size=beam_size,
        )
        if not structlog.is_configured():
            log_output.configure(quiet=True)
        source = _source(model)
        if engine is None:
            engine = "ctranslate2" if find_spec("ctranslate2") or not find_spec("torch") else "transformers"
        folder = Path(source)
        if folder.is_dir() and ((folder / families.CONVERTED).is_file() or engine != "ctranslate2"):
            open(folder, engine)
        elif engine != "ctranslate2":
            open(_run(_fetched(source, "")).path, engine)
        else:
            if folder.is_dir():
                families.read(folder)
            file = _run(_fetched(source, CONVERTED + _type(device, dtype)))
            with TemporaryDirectory(prefix="modelyard-") as name:
                packed.unpack(file.path, Path(name))
                open(Path(name), engine)


def _source(model: str | Path) -> str:
    """A source of the store: a folder, or what a name means."""
    text, folder = str(model), Path(model).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    if "://" in text:
        return text
    if isinstance(model, str) and _NAME.fullmatch(text) and not text.startswith("."):
        return f"hf://{text}"
    raise InvalidRequest(
        f"model: {text} is no folder here, and no name on the Hugging Face Hub, such as facebook/m2m100_418M",
        param="model",
    )


def _type(device: str, dtype: str | None) -> str:
    """What the weights are kept as for this device."""
    try:
        import ctranslate2  # noqa: PLC0415 - heavy, and it may be absent
    except ImportError as error:
        raise CannotLoad(
            f"{error}; run `pip install 'modelyard[translation]'` for this interpreter"
        ) from None
    if dtype is None:
        device = chosen(device, ctranslate2.get_cuda_device_count())
        return families.USUAL_TYPES.get(device.partition(":")[0], "float32")
    return dtype if dtype in families.TYPES else "float32"


async def _fetched(source: str, type: str) -> StoredFile:
    """The folder of a source, or the file that is made of it, fetched and made if need be."""

    def tell(step: Progress) -> None:
        pass

    config = load(None)
    root = config.server.data_dir
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Nothing in a pickle is run, neither when it is converted nor by Transformers: tensors alone are read.
    terms = Terms("", allow_pickle=True)
    origins, quota = sources_of(config.store), config.store.quota
    # Whoever trains a model in place wants to see what became of it.
    with closing(Store(root / "store", origins, quota=quota, current=True)) as store:
        derived = Derived(store)
        parent = store.sets.known(source, terms)
        if type and parent is not None and (made := derived.cached(parent, type)) is not None:
            return made
        user = f"translator of {source}"
        stored = await store.sets.fetch(source, terms, user, tell)
        if not type:
            return stored
        store.hold(user, [stored])
        return await derived.make(stored, type, tell)


def _run(what: Coroutine[object, object, T]) -> T:
    """Whether or not an event loop runs in this thread, as it does in a notebook."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, what).result()
