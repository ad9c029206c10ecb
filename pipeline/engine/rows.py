"""The rows of a stage on the disk: the parts of the units, the masks of the rows that stay, and their new values."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine import storage
from pipeline.engine.work import StepFolder

Masked: TypeAlias = tuple[pa.RecordBatch, npt.NDArray[np.bool_]]  # a batch, and True for each row that stays
ARROW, PARQUET = "arrow", "parquet"  # endings of the parts: several Arrow files a unit, or one Parquet file


class Overlay:
    """New values for a few rows of a part. A column that the part lacks is null in all other rows.

    Args:
        values: the column `row` (place in the part, ascending, each once) and the columns with new values.
    """

    def __init__(self, values: pa.RecordBatch) -> None:
        self._rows = values["row"].to_numpy()
        self._values = values.select([name for name in values.schema.names if name != "row"])

    @classmethod
    def read(cls, path: str) -> Overlay:
        """Reads what `storage.writing_batches` wrote: one batch, which may be empty."""
        (values,) = storage.read_batches(path)
        return cls(values)

    def over(self, batch: pa.RecordBatch, first: int, columns: list[str] | None = None) -> pa.RecordBatch:
        """The batch with the new values.

        Args:
            batch: the rows of the part from number `first` on.
            first: see above.
            columns: of the result; None: those of the batch, and those that the part lacks.
        """
        low, high = np.searchsorted(self._rows, [first, first + batch.num_rows]).tolist()
        wanted = self._values.schema.names if columns is None else set(columns) & set(self._values.schema.names)
        found = dict(zip(batch.schema.names, batch.columns, strict=True))
        found |= {name: pa.nulls(batch.num_rows, self._values[name].type) for name in wanted if name not in found}
        if high > low:
            place = np.arange(batch.num_rows)
            place[self._rows[low:high] - first] = batch.num_rows + np.arange(high - low)
            for name in wanted:
                new = self._values[name].slice(low, high - low)
                found[name] = pa.concat_arrays([found[name], new]).take(pa.array(place))
        return pa.RecordBatch.from_pydict(found)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows that leave a stage.

    Attributes:
        parts: the step that wrote the rows.
        kind: ARROW or PARQUET.
        masks: the step that wrote a mask for each part (0: the row stays); None: all rows stay.
        groups: the number of groups of units for the steps that follow.
        overlays: the step that wrote an `Overlay` for each part; None: the parts hold all values.
        units: of the parts, about, as far as the plan knows; 0: it does not.
        above: the step that wrote another `Overlay` for each part, over the first one; None: there is none.
    """

    parts: StepFolder
    kind: str = ARROW
    masks: StepFolder | None = None
    groups: int = 1
    overlays: StepFolder | None = None
    units: int = 0
    above: StepFolder | None = None

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

    def masked(self, group: int, columns: list[str] | None = None) -> Iterator[Iterator[Masked]]:
        """For each part in a group of units, yields its batches, each with True for each row that stays.

        Args:
            group: of units.
            columns: of the batches; None: all.
        """
        for unit, part, rows in self.parts_of_group(group):
            yield self._batches(unit, part, rows, columns)

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yields the rows that stay, one table for each part, in the order of unit and part.

        Args:
            columns: of the tables; None: all.
        """
        for unit, manifest in self.parts.manifests():
            if self.kind == PARQUET:
                yield storage.read_table(self.parts.file(unit, PARQUET), columns)
                continue
            for part, rows in enumerate(_rows_of_parts(manifest)):
                kept = [batch.filter(pa.array(keep)) for batch, keep in self._batches(unit, part, rows, columns)]
                yield pa.Table.from_batches(kept)

    def _batches(self, unit: int, part: int, rows: int, columns: list[str] | None = None) -> Iterator[Masked]:
        keep, first = self._mask(unit, part, rows), 0
        path, folders = self.parts.file(unit, ARROW, part), (self.overlays, self.above)
        overlays = [Overlay.read(folder.file(unit, "overlay", part)) for folder in folders if folder is not None]
        for batch in storage.read_batches(path, _columns_of(path, columns) if overlays else columns):
            inside = keep[first : first + batch.num_rows]
            for overlay in overlays:
                batch = overlay.over(batch, first, columns)
            yield batch if columns is None else batch.select(columns), inside
            first += len(inside)

    def _mask(self, unit: int, part: int, rows: int) -> npt.NDArray[np.bool_]:
        if self.masks is None:
            return np.ones(rows, np.bool_)
        return np.frombuffer(storage.read_bytes(self.masks.file(unit, "mask", part)), np.uint8) == 0

    def to_json(self) -> dict[str, Any]:
        """The entry for info.json. With it a reader of the folder finds the rows without the plan of the run."""
        folders = {"parts": self.parts, "masks": self.masks, "overlays": self.overlays, "above": self.above}
        placed = {
            name: {"path": os.path.relpath(folder.path, folder.root), "fingerprint": folder.fingerprint}
            for name, folder in folders.items()
            if folder is not None
        }
        return {"kind": self.kind, **placed}

    @classmethod
    def from_json(cls, root: str, data: dict[str, Any]) -> Rows:
        """The inverse of `to_json` in the folder `root`."""
        folders: dict[str, Any] = {
            name: StepFolder(os.path.join(root, data[name]["path"]), data[name]["fingerprint"])
            for name in ("parts", "masks", "overlays", "above")
            if name in data
        }
        return cls(folders.pop("parts"), data["kind"], **folders)


def _columns_of(path: str, columns: list[str] | None) -> list[str] | None:
    """Those of some columns that a part has itself. It is at least one, so that its number of rows is known."""
    if columns is None:
        return None
    names = storage.batch_names(path)
    return [name for name in columns if name in names] or names[:1]


def _rows_of_parts(manifest: dict[str, Any]) -> list[int]:
    """The number of rows in each part of a unit."""
    rows = manifest["rows"]
    return rows if isinstance(rows, list) else [rows]
