from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from servers.translation import random_models

MAKERS: dict[str, Callable[[Path], Path]] = {
    "m2m100": random_models.m2m100,
    "nllb": random_models.nllb,
    "marian": random_models.marian,
    "group": random_models.group,
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family, as Hugging Face has it."""
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="session")
def converted(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, for CTranslate2."""
    pytest.importorskip("ctranslate2")
    from modelyard.servers.translation.convert import convert

    root = tmp_path_factory.mktemp("converted")
    for name, folder in models.items():
        (root / name).mkdir()
        convert(folder, root / name)
    return {name: root / name for name in models}
