"""The query list: what an alt-text must contain to be kept, and how often.

    from queries import Options, build, load_queries

    result = build(Options(output="english", wordnet="/usr/share/wordnet"))
    table = load_queries("english/queries.parquet").table  # id, query, source, count, language, flags

The errors of `build` are those of `pipeline.errors`; `load_queries` raises QueryError. Nothing heavy is imported here:
a public name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from queries.build import Result, build
    from queries.load import QueryError, QueryList, load_queries
    from queries.options import Options

# Where each public name is; "" where it is the module itself (`build` is callable, see engine/callable_module.py).
_PUBLIC = {
    "build": "",
    "Options": "options",
    "QueryError": "load",
    "QueryList": "load",
    "Result": "build",
    "load_queries": "load",
}

__all__ = ["Options", "QueryError", "QueryList", "Result", "build", "load_queries"]


def __getattr__(name: str) -> Any:
    """Loads a public name (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PUBLIC[name] or name}")
    globals()[name] = value = getattr(module, name) if _PUBLIC[name] else module
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
