"""From web archives to balanced image-text shards.

    from pipeline import Options, build, open_set

    result = build(Options(input=("pairs.parquet",), output="OUT"))
    for table in open_set("OUT").rows(["key", "text"]):
        ...

The way of the data, one file a stage: gather -> match -> dedup -> balance -> fetch -> dedup_images -> publish.
docs/architecture.md shows the folders and every table between the stages.

Nothing heavy is imported here: a public name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline import errors as errors
    from pipeline.build import build
    from pipeline.dataset.open_set import OpenSet, Sample, open_set
    from pipeline.options import Options
    from pipeline.result import Result

__version__ = "0.2.0"

# Where each public name is; "" where it is the module itself (`build` is callable, see engine/callable_module.py).
_PUBLIC = {
    "build": "",
    "errors": "",
    "OpenSet": "dataset.open_set",
    "Options": "options",
    "Result": "result",
    "Sample": "dataset.open_set",
    "open_set": "dataset.open_set",
}

__all__ = ["OpenSet", "Options", "Result", "Sample", "build", "errors", "open_set"]


def __getattr__(name: str) -> Any:
    """Loads a public name (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PUBLIC[name] or name}")
    globals()[name] = value = getattr(module, name) if _PUBLIC[name] else module
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
