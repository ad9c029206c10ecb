"""Writes the rows of a stage to one Parquet file, in whichever form the stage keeps them. Does not import Beam."""

from __future__ import annotations

import os
from typing import Any

import pyarrow.parquet as pq

from pipeline.engine import storage
from pipeline.engine.hashing import as_array
from pipeline.engine.rows import Rows
from pipeline.engine.work import StageFolder
from pipeline.schema import DEDUPED, MATCHED, PAIRS, SELECTED, fill_texts, readable

SCHEMAS = {"gather": PAIRS, "match": MATCHED, "dedup": DEDUPED, "balance": SELECTED}


class NoRows(ValueError):
    """The stage is not complete, or its rows were not kept."""


def write_rows(out: str, stage: str, to: str) -> int:
    """Writes the rows that leave `stage`. Returns their number.

    Args:
        out: a run's folder.
        stage: gather (only after a run with `--stages gather`), match, dedup or balance.
        to: path of the Parquet file.

    Raises:
        NoRows: the stage has no rows to write. The message gives the reason.
    """
    if stage not in SCHEMAS:
        raise NoRows(f"the rows of {stage!r} cannot be written: choose one of {', '.join(SCHEMAS)}")
    info = StageFolder(out, stage).info()
    if info is None:
        raise NoRows(f"the stage {stage!r} is not complete in {out!r}: run the build first")
    found = _rows(out, stage, info)
    names = input_names(out)
    schema = readable(SCHEMAS[stage].empty_table(), names).schema
    rows = 0
    with (
        storage.temporary(to) as path,
        pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_page_checksum=True) as writer,
    ):
        for table in found.tables():
            if stage in ("dedup", "balance"):
                texts = fill_texts(*(as_array(table[name]) for name in ("text", "texts")))
                table = table.set_column(table.column_names.index("texts"), "texts", texts)
            table = readable(table.select(SCHEMAS[stage].names), names).cast(schema)
            writer.write_table(table)
            rows += table.num_rows
    return rows


def input_names(out: str) -> list[str]:
    """The name of each input of a run, by its number. The number of an input that was taken out has the name ""."""
    inputs = {item["unit"]: item["name"] for item in storage.read_list(os.path.join(out, "inputs.json"))}
    return [inputs.get(unit, "") for unit in range(1 + max(inputs, default=-1))]


def _rows(out: str, stage: str, info: dict[str, Any]) -> Rows:
    """Where the rows of the stage lie."""
    if "rows" not in info or storage.CHECKSUM not in info:
        raise NoRows(f"{out!r} was made by an older version: run the build again with --redo gather")
    rows = Rows.from_json(out, info["rows"])
    if not rows.parts.manifests():
        raise NoRows(
            f"the rows of {stage!r} were not kept: the next stage took them in the same pass "
            f"(to keep them, run with --stages {stage})"
        )
    return rows
