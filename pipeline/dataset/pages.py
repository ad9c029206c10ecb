"""The templates of the pages of a published folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline.engine.display import sanitize, size

if TYPE_CHECKING:
    import jinja2

FOLDER = os.path.join(os.path.dirname(__file__), "templates")


def template(name: str) -> jinja2.Template:
    """A template with the filters `plain`, `size` and `pairs`. HTML is escaped."""
    import jinja2  # takes 0.1 s; `build --help` must not wait for it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": sanitize, "size": size, "count": count}
    return environment.get_template(name)


def count(number: int, noun: str) -> str:
    """A number and its noun: 1 pair, 2,000 pairs."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"
