"""The rows of a stage as one Parquet file, whatever form the stage keeps them in. No Beam."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine import files
from pipeline.engine.work import StepFolder, Work
from pipeline.schema import MATCHED, PAIRS, SELECTED, readable

SCHEMAS = {"gather": PAIRS, "match": MATCHED, "dedup": MATCHED, "balance": SELECTED}


class NoRows(ValueError):
    """The stage is not done, or its rows were not kept."""


def write_rows(out: str, stage: str, to: str) -> int:
    """Writes the rows as they stand after `stage`; returns how many there are.

    Args:
        out: a run's folder.
        stage: gather (where the run was `--stages gather`), match, dedup or balance.
        to: path of the Parquet file.

    Raises:
        NoRows: with the reason.
    """
    if stage not in SCHEMAS:
        raise NoRows(f"the rows of {stage!r} cannot be written: choose one of {', '.join(SCHEMAS)}")
    info = Work(out).info(stage)
    if info is None:
        raise NoRows(f"the stage {stage!r} is not done in {out!r}")
    names = sorted({item["name"] for item in files.read_json(os.path.join(out, "inputs.json"))})
    schema = readable(SCHEMAS[stage].empty_table(), names).schema
    rows = 0
    with (
        files.temporary(to) as path,
        pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_page_checksum=True) as writer,
    ):
        for table in _tables(out, stage):
            table = readable(table.select(SCHEMAS[stage].names), names).cast(schema)
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _tables(out: str, stage: str) -> Iterator[pa.Table]:
    work = Work(out)
    plan = {name: (work.info(name) or {}).get("plan", "") for name in SCHEMAS}
    if stage == "balance":
        folder = StepFolder(os.path.join(work.stage("balance"), "rows"), plan["balance"])
        for unit, _ in folder.manifests():
            yield files.read_table(folder.file(unit, "parquet"))
        return
    parts = StepFolder(
        os.path.join(work.stage("gather" if stage == "gather" else "match"), "parts"),
        plan[stage if stage != "dedup" else "match"],
    )
    masks = StepFolder(os.path.join(work.stage("dedup"), "masks"), plan["dedup"])
    if not parts.manifests():
        raise NoRows(
            f"the rows of {stage!r} were not kept: they went on to the next stage in the same pass "
            f"(run with --stages {stage})"
        )
    for unit, manifest in parts.manifests():
        for part in range(manifest["parts"]):
            table = pa.Table.from_batches(files.read_batches(parts.file(unit, "arrow", part)))
            if stage == "dedup":
                table = table.filter(pa.array(np.fromfile(masks.file(unit, "mask", part), np.uint8) == 0))
            yield table
