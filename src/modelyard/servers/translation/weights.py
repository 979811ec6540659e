"""The weights of a Hugging Face folder as arrays, without PyTorch: safetensors, and PyTorch's own pickles.

A pickle is read by a machine that knows tensors alone: whatever else it asks for is refused, and nothing in
it is run. Arrays of files that can be mapped lie in the page cache, not in memory.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from modelyard.errors import BadFile

Array = NDArray[Any]
_LONGEST_HEADER = 64 << 20
_SAFETENSORS = {"F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "F64": "<f8", "I64": "<i8", "I32": "<i4"}
_STORAGES = {
    "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16", "DoubleStorage": "<f8",
    "LongStorage": "<i8", "IntStorage": "<i4", "BoolStorage": "?", "ByteStorage": "u1",
}  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read(folder: Path) -> dict[str, Array]:
    """All tensors by their names. Raises BadFile."""
    found: dict[str, Array] = {}
    for path, reader in _files(folder):
        try:
            found |= reader(path)
        except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, struct.error) as error:
            raise BadFile(f"{path}: is damaged, or no file of weights ({error}); fetch it again") from None
        except (pickle.UnpicklingError, zipfile.BadZipFile, AttributeError, RecursionError) as error:
            raise BadFile(
                f"{path}: is no pickle of tensors ({error}); take the model as safetensors"
            ) from None
    return found


def _files(folder: Path) -> Iterator[tuple[Path, Callable[[Path], dict[str, Array]]]]:
    for stem, reader in (("model.safetensors", _safetensors), ("pytorch_model.bin", _pickled)):
        index = folder / f"{stem}.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_bytes()).get("weight_map", {}).values()))
            yield from ((folder / Path(name).name, reader) for name in names)
            return
        if (folder / stem).is_file():
            yield folder / stem, reader
            return
    raise BadFile(f"{folder}: has neither model.safetensors nor pytorch_model.bin; fetch the folder whole")


def _safetensors(path: Path) -> dict[str, Array]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header: Mapping[str, Any] = json.loads(file.read(length))
    data = np.memmap(path, dtype=np.uint8, mode="c", offset=8 + length)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = _typed(data[begin:end], _SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
    return found


def _typed(data: Array, dtype: str) -> Array:
    """Bytes as numbers. NumPy has no bfloat16: those are the upper halves of float32."""
    if dtype == "bfloat16":
        return (data.view("<u2").astype("<u4") << 16).view("<f4")
    return data.view(dtype)


# -- pickles ---------------------------------------------------------------------------------------------


def _pickled(path: Path) -> dict[str, Array]:
    if zipfile.is_zipfile(path):
        return _zipped(path)
    with path.open("rb") as file:
        return _legacy(file)


class _Storage:
    """One block of numbers; where it lies is known when the pickle is read, or after."""

    def __init__(self, dtype: str, data: Array | None = None) -> None:
        self.dtype = dtype
        self.data = data


class _Tensor:
    """A view into a storage."""

    def __init__(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ):
        self._storage, self._offset, self._shape, self._stride = storage, offset, shape, stride

    def array(self) -> Array:
        assert self._storage.data is not None
        data = _typed(self._storage.data, self._storage.dtype)
        last = self._offset + sum((n - 1) * step for n, step in zip(self._shape, self._stride, strict=True))
        if min((self._offset, *self._shape, *self._stride), default=0) < 0 or last >= max(len(data), 1):
            raise ValueError("a tensor outside of its storage")
        strides = [step * data.itemsize for step in self._stride]
        return np.lib.stride_tricks.as_strided(data[self._offset :], self._shape, strides)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], storage: Callable[..., _Storage] | None = None) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _Tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        if self._storage is None:
            raise pickle.UnpicklingError("it asks for a storage where there is none")
        _, dtype, key, _, count, *_ = pid
        return self._storage(str(dtype), str(key), int(count))


def _zipped(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        (main,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = main.removesuffix("data.pkl")
        storages: dict[str, _Storage] = {}

        def storage(dtype: str, key: str, count: int) -> _Storage:
            if key not in storages:
                info = archive.getinfo(f"{folder}data/{key}")
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("compressed weights")
                with archive.open(info) as member:  # past its local header
                    start = member._orig_compress_start  # type: ignore[attr-defined]
                storages[key] = _Storage(dtype, np.memmap(path, np.uint8, "c", start, (info.file_size,)))
            return storages[key]

        with archive.open(main) as file:
            return _arrays(_Unpickler(file, storage).load())


def _legacy(file: IO[bytes]) -> dict[str, Array]:
    """As PyTorch wrote until 2020: three facts, the objects, the names of the storages, and these."""
    if _Unpickler(file).load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("it does not begin as such a file")
    for _ in range(2):
        _Unpickler(file).load()
    storages: dict[str, _Storage] = {}

    def storage(dtype: str, key: str, count: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype))

    objects = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        one = storages[str(key)]
        size = count * (2 if one.dtype == "bfloat16" else np.dtype(one.dtype).itemsize)
        one.data = np.fromfile(file, np.uint8, size)
        if len(one.data) != size:
            raise EOFError("it ends within its weights")
    return _arrays(objects)


def _arrays(objects: Any) -> dict[str, Array]:
    return {str(name): one.array() for name, one in objects.items() if isinstance(one, _Tensor)}
