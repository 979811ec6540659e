"""What we convert, cut into tokens and translate is what PyTorch, Transformers and CTranslate2's own
converter make of the same models: real architectures of each family, with random weights."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from e2e.heavy import PYTHON, absent

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(absent(PYTHON)), reason=absent(PYTHON)),
]
TESTS = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("translation_peers.py")
TRAINED = sorted((TESTS.parent / "examples" / "translation" / "models").glob("*/model.safetensors"))
FAMILIES = ("m2m100", "nllb", "saved", "marian", "group")


def ran(*argv: object) -> str:
    environ = {
        **os.environ,
        "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'examples'}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    found = subprocess.run(
        ["nice", str(PYTHON), *map(str, argv)],
        env=environ, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return found.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each family, with the tokenizer's files as Transformers writes them, and `plain`."""
    root = tmp_path_factory.mktemp("models")
    ran(SCRIPT, "make", root)
    return root


@pytest.fixture(scope="module")
def differences(folders: Path) -> dict[str, list[str]]:
    """What each check found in each folder."""
    each = ran(SCRIPT, "back_ends,library,converter", *(folders / name for name in FAMILIES))
    plain = ran(SCRIPT, "back_ends,converter,pickles", folders / "plain")
    return {**json.loads(each), **json.loads(plain)}


@pytest.mark.parametrize("family", [*FAMILIES, "plain"])
def test_both_back_ends_translate_alike(differences: dict[str, list[str]], family: str) -> None:
    assert differences[f"{family} back_ends"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_has_the_same_tokens_and_translations(
    differences: dict[str, list[str]], family: str
) -> None:
    assert differences[f"{family} library"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_ctranslate2_converts_itself_translates_alike(
    differences: dict[str, list[str]], family: str
) -> None:
    assert differences[f"{family} converter"] == []


def test_where_nothing_names_its_marks_only_we_convert_it(differences: dict[str, list[str]]) -> None:
    said = "refused: Source vocabulary 0 has size 107 but the model expected a vocabulary of size 207"
    assert differences["plain converter"] == [said]


def test_files_that_pytorch_writes_are_read(differences: dict[str, list[str]]) -> None:
    assert differences["plain pickles"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_keeps_the_contract_of_back_ends(folders: Path, family: str) -> None:
    assert "9 of 9" in ran("-m", "servers.translation.contract", "transformers", folders / family)


@pytest.mark.skipif(not TRAINED, reason="examples/translation/models has no trained model")
def test_trained_models_translate_alike() -> None:
    """Not as CTranslate2's own converter has it: that takes the weights of padding, which begins a Marian
    model's output, for zeros."""
    found = json.loads(ran(SCRIPT, "back_ends,library", *(path.parent for path in TRAINED)))
    assert {name: what for name, what in found.items() if what} == {}
