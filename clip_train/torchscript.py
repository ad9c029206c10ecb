"""Reads TorchScript archives, OpenAI's `ViT-B-32.pt`: a zip with a `data.pkl`. No code of an archive is run.

The unpickler takes every class for a plain holder of attributes, and refuses any name that weights do not need.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_train.errors import TrainError

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Module(dict):  # type: ignore[type-arg]
    """Replaces every class of the archive. It keeps the attributes and has no behaviour."""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, dict) else {})


class _TensorReader(pickle.Unpickler):
    """Unpickles modules as dictionaries and tensors as tensors, and refuses every other name."""

    def __init__(self, data: bytes, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(data))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _STORAGES:
            return name
        if module == "torch.jit._pickle":  # typed lists and the like: the content is enough
            return lambda *values: values[0] if values else None
        if module.startswith("__torch__"):
            return type(name, (_Module,), {})
        raise pickle.UnpicklingError(f"it needs {module}.{name}, which weights do not need")

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, _ = pid
        if key not in self._storages:
            data = self._archive.read(f"{self._root}/data/{key}")
            self._storages[key] = torch.frombuffer(bytearray(data), dtype=_STORAGES[kind])
        return self._storages[key]


def read_torchscript(file: str | Path) -> dict[str, Tensor]:
    """All tensors of a TorchScript archive by name. No code of the archive is run."""
    try:
        with zipfile.ZipFile(file) as archive:
            root = archive.namelist()[0].split("/")[0]
            top = _TensorReader(archive.read(f"{root}/data.pkl"), archive, root).load()
    except (pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ValueError, RuntimeError, EOFError) as error:
        raise TrainError(f"{file} cannot be read as a TorchScript archive: {error}") from error
    tensors: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", top)]
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.items() if isinstance(module, dict) else []:
            if isinstance(value, Tensor):
                tensors[prefix + name] = value
            elif isinstance(value, dict):
                waiting.append((f"{prefix}{name}.", value))
    return tensors
