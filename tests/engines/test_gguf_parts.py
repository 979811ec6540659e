"""The header of a model in several files, and files that are not the parts of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.gguf_parts import split_gguf
from modelyard.engines.gguf import facts, read_header, read_parts
from modelyard.errors import BadGguf
from store.test_quantize import random_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The three parts of a model, and the model itself."""
    split_gguf(random_gguf(tmp_path / "whole.gguf"), tmp_path, 3, "m")
    return tmp_path


def test_the_header_of_all_parts_is_that_of_the_whole(folder: Path) -> None:
    parts = facts(read_parts([folder / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]))
    whole = facts(read_header(folder / "whole.gguf"))
    assert {name: value for name, value in parts.items() if not name.startswith("split.")} == whole


def test_parts_that_do_not_belong_together_are_refused(folder: Path) -> None:
    paths = [folder / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    with pytest.raises(BadGguf, match=r"m-00003.*expected to be part 2 of 3.*split.no 2"):
        read_parts([paths[0], paths[2], paths[1]])
    with pytest.raises(BadGguf, match=r"m-00001.*stands alone.*split.count 3"):
        read_parts(paths[:1])
    with pytest.raises(BadGguf, match=r"expected to be part 1 of 2.*split\.count 1"):
        read_parts([folder / "whole.gguf"] * 2)
    other = folder / "other"
    other.mkdir()
    small = {"token_embd.weight": ((256, 32), 1), "output_norm.weight": ((256,), 0), "a": ((32,), 0)}
    strange = split_gguf(random_gguf(other / "whole.gguf", small), other, 3)
    with pytest.raises(BadGguf, match="hold 7 tensors, and the model has 8"):
        read_parts([*paths[:2], strange[2]])
