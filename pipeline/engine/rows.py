"""The rows of a stage on the disk: the parts of the units, and the masks of the rows that stay."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine import storage
from pipeline.engine.work import StepFolder

ARROW, PARQUET = "arrow", "parquet"  # endings of the parts: several Arrow files a unit, or one Parquet file


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows that leave a stage.

    Attributes:
        parts: the step that wrote the rows.
        kind: ARROW or PARQUET.
        masks: the step that wrote a mask for each part (0: the row stays); None: all rows stay.
        groups: the number of groups of units for the steps that follow.
    """

    parts: StepFolder
    kind: str = ARROW
    masks: StepFolder | None = None
    groups: int = 1

    def count(self) -> int:
        """The number of rows that stay."""
        if self.masks is not None:
            return sum(row["rows_out"] for _, row in self.masks.manifests() for row in row["ledgers"].values())
        return sum(rows for _, manifest in self.parts.manifests() for rows in _rows_of_parts(manifest))

    def parts_of_group(self, group: int) -> Iterator[tuple[int, int, int]]:
        """Yields (unit, part, rows) for each part in a group of units."""
        for unit, manifest in self.parts.manifests():
            if unit % self.groups == group:
                for part, rows in enumerate(_rows_of_parts(manifest)):
                    yield unit, part, rows

    def masked(self, group: int) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
        """Yields (path of the part, True for each row that stays) for each part in a group of units."""
        for unit, part, rows in self.parts_of_group(group):
            yield self.parts.file(unit, self.kind, part), self._mask(unit, part, rows)

    def tables(self) -> Iterator[pa.Table]:
        """Yields the rows that stay, one table for each part, in the order of unit and part."""
        for unit, manifest in self.parts.manifests():
            if self.kind == PARQUET:
                yield storage.read_table(self.parts.file(unit, PARQUET))
                continue
            for part, rows in enumerate(_rows_of_parts(manifest)):
                table = pa.Table.from_batches(storage.read_batches(self.parts.file(unit, ARROW, part)))
                yield table if self.masks is None else table.filter(pa.array(self._mask(unit, part, rows)))

    def _mask(self, unit: int, part: int, rows: int) -> npt.NDArray[np.bool_]:
        if self.masks is None:
            return np.ones(rows, np.bool_)
        return np.frombuffer(storage.read_bytes(self.masks.file(unit, "mask", part)), np.uint8) == 0

    def to_json(self) -> dict[str, Any]:
        """The entry for info.json. With it a reader of the folder finds the rows without the plan of the run."""
        folders = {"parts": self.parts, "masks": self.masks}
        placed = {
            name: {"path": os.path.relpath(folder.path, folder.root), "fingerprint": folder.fingerprint}
            for name, folder in folders.items()
            if folder is not None
        }
        return {"kind": self.kind, **placed}

    @classmethod
    def from_json(cls, root: str, data: dict[str, Any]) -> Rows:
        """The inverse of `to_json` in the folder `root`."""
        folders = {
            name: StepFolder(os.path.join(root, data[name]["path"]), data[name]["fingerprint"])
            for name in ("parts", "masks")
            if name in data
        }
        return cls(folders["parts"], data["kind"], folders.get("masks"))


def _rows_of_parts(manifest: dict[str, Any]) -> list[int]:
    """The number of rows in each part of a unit."""
    rows = manifest["rows"]
    return rows if isinstance(rows, list) else [rows]
