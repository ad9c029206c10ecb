"""Evaluation images by their embeddings: --decontaminate-embeddings. It finds crops and mirrored copies, too.

A table is as those of --embeddings, by the same model. Its column key (or uid, id, file_name, filename, path) has the
names of the images in their set. FindEvaluated compares each pair that has an embedding with the images whose
embeddings share a cell with it (`near_vectors`): those with a cosine of at least --decontaminate-threshold show them.
KeepFetched drops these pairs and all that look like them by their hashes. Without the latter a duplicate, which has no
embedding where the table was made of a published set, would take the place of the pair that fell.

    evaluation-embeddings/00000.names      set and image of each vector
    evaluation-embeddings/00000.vectors, .sieve, .centres     as those of `embeddings`
    evaluation-embeddings/00000.cells      EVALUATED: the vectors under each of their cells, by cell
    evaluated/UNIT.found, UNIT.hashes      FOUND of a unit of the fetch, and HASHED: the pictures of these pairs
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import checks, hashing, storage
from pipeline.engine.cli import UsageError
from pipeline.engine.options import show
from pipeline.engine.work import StepFolder, digest_of
from pipeline.schema import CONTAMINATION
from pipeline.stages import embeddings, near_vectors
from pipeline.stages.contamination import EMBEDDING, FOUND, MOST_IMAGES
from pipeline.stages.contamination import Index as Pictures
from pipeline.stages.embeddings import Tables
from pipeline.stages.evaluation_images import HASHED, NAME_COLUMNS, read_hashes, split_name
from pipeline.stages.near_vectors import Floats, Vectors
from pipeline.stages.picture_hashes import Places
from pipeline.stages.user_files import UserFiles

FLAG = "--decontaminate-embeddings"
NAMES = pa.schema([CONTAMINATION.field("set"), CONTAMINATION.field("image")])
EVALUATED = pa.schema([pa.field("cell", pa.int64(), False), pa.field("vector", pa.int64(), False)])
ROWS = 4096  # of the set that are compared at a time


def parse_names(path: str, column: pa.Array) -> list[str]:
    """The names of images.

    Raises:
        UsageError: the column has no texts or whole numbers, or an empty cell.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    good = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    if column.null_count or not good:
        raise TABLES.files.refusal(path, f"the names of images are of type {kind}: must be texts, without empty cells")
    return [str(value) for value in column.to_pylist()]


TABLES = Tables(UserFiles(FLAG), NAME_COLUMNS, parse_names, lambda names, row: show(names[row]))


@dataclasses.dataclass(frozen=True)
class Shape:
    """The size of all tables together.

    Attributes:
        width: of an embedding.
        images: set -> the number of its images.
    """

    width: int
    images: dict[str, int]


def paths_of(values: Sequence[str]) -> list[str]:
    """The paths in values of the option, [NAME=]TABLE."""
    return [split_name(value)[1] for value in values]


def check_source(value: str) -> None:
    """Refuses a value that is no readable file."""
    checks.readable_file(split_name(value)[1])


def check(values: Sequence[str]) -> Shape:
    """Reads all tables.

    Raises:
        UsageError: see `embeddings.check`; or two images of a set have one name.
    """
    return _check(tuple(values), TABLES.files.states(paths_of(values)))


@functools.lru_cache(maxsize=1)
def _check(values: tuple[str, ...], states: Any) -> Shape:
    del states
    width, images = max(width for _, width in TABLES.checked(paths_of(values))), dict[str, int]()
    known = set[tuple[str, str]]()
    for value in values:
        name, path = split_name(value)
        for names, _ in TABLES.batches(path):
            for image in names:
                if (name, image) in known:
                    raise TABLES.files.refusal(path, f"the image {show(image)} of the set {show(name)} comes twice")
                known.add((name, image))
            images[name] = images.get(name, 0) + len(names)
    return Shape(width, images)


def check_widths(values: Sequence[str], width: int) -> None:
    """Refuses tables of another width than that of --embeddings."""
    found = check(values).width
    if found != width:
        raise UsageError(
            f"{FLAG} {show(values[0])}: has embeddings of {found:,} numbers, and --embeddings of {width:,}: both must "
            "be by the same model"
        )


def write(values: Sequence[str], folder: StepFolder, cosine: float) -> None:
    """Writes the arrays that `load` maps. The order of the tables does not count."""
    sets, images, vectors = list[str](), list[str](), list[Vectors]()
    for value in values:
        name, path = split_name(value)
        for names, floats in TABLES.batches(path):
            sets += [name] * len(names)
            images += names
            vectors.append(near_vectors.rounded(floats))
    order = sorted(range(len(images)), key=lambda row: (sets[row], images[row]))
    whole = np.concatenate(vectors)[order]
    sieve = near_vectors.projected(whole)
    cells = near_vectors.cells_for(len(whole))
    sample = np.arange(len(whole))[:: max(1, len(whole) // (near_vectors.SAMPLE_PER_CELL * cells))]
    centres = near_vectors.centroids(sieve[sample], cells)
    row, cell, _ = near_vectors.cells_of(sieve, centres, cosine)
    by_cell = np.lexsort((row, cell))
    named = pa.table([[sets[at] for at in order], [images[at] for at in order]], schema=NAMES)
    storage.write_table(folder.file(0, "names"), named)
    storage.write_table(folder.file(0, "cells"), pa.table([cell[by_cell], row[by_cell]], schema=EVALUATED))
    storage.save_array(folder.file(0, "vectors"), whole)
    storage.save_array(folder.file(0, "sieve"), sieve.astype(np.int16))
    storage.save_array(folder.file(0, "centres"), centres)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What is needed to look for evaluation images by embeddings.

    Attributes:
        folder: where `write` put the arrays of the evaluation images.
        embeddings: those of the set.
        cosine: the least cosine of a pair and an image that it shows.
        found: where FindEvaluated puts what it finds.
        distance: hashes of pictures that look alike differ in at most so many bits.
    """

    folder: StepFolder
    embeddings: StepFolder
    cosine: float
    found: StepFolder
    distance: int

    def find(self, rows: pa.Table) -> pa.Table:
        """FOUND: the rows of FETCHED that FindEvaluated found, and those that look like one that it found."""
        found, alike = _load_found(self.found, self.distance)
        own = found.filter(pc.is_in(found["uid"], value_set=hashing.as_array(rows["uid"])))
        return pa.concat_tables([own, alike.find(rows)])

    def write(self, unit: int, rows: pa.Table) -> int:
        """Writes what `search` finds among some rows of FETCHED, and their hashes. Returns the number of rows."""
        found = self.search(rows)
        shown = rows.take(pc.index_in(found["uid"], value_set=hashing.as_array(rows["uid"])))
        looks = (shown[name] for name in ("image_sha256", "phash", "colours", "shades", "grain"))
        columns = [found["set"], found["image"], *looks, pa.nulls(found.num_rows, pa.uint64())]
        storage.write_table(self.found.file(unit, "found"), found)
        storage.write_table(self.found.file(unit, "hashes"), pa.Table.from_arrays(columns, schema=HASHED))
        return found.num_rows

    def search(self, rows: pa.Table) -> pa.Table:
        """FOUND: the rows of FETCHED that show an evaluation image, with at most MOST_IMAGES images each."""
        own, known = embeddings.load(self.embeddings), load(self.folder)
        place = own.places_of(rows["uid"])
        asked = np.flatnonzero(place >= 0)
        pieces = [FOUND.empty_table()]
        for start in range(0, len(asked), ROWS):
            some = asked[start : start + ROWS]
            row, image, cosine = known.near(own.vectors[place[some]], own.sieve[place[some]], self.cosine)
            own.release()
            row = some[row]
            near = np.arange(len(row)) - np.searchsorted(row, row) < MOST_IMAGES
            row, image, cosine = row[near], image[near], cosine[near]
            named = known.names.take(pa.array(image))
            same = pa.array([EMBEDDING] * len(row), pa.string()), pa.nulls(len(row), pa.uint8())
            columns = [rows["uid"].take(pa.array(row)), *named.columns, *same, pa.array(cosine.astype(np.float32))]
            pieces.append(pa.Table.from_arrays(columns, schema=FOUND))
        return pa.concat_tables(pieces)


@functools.lru_cache(maxsize=1)
def _load_found(folder: StepFolder, distance: int) -> tuple[pa.Table, Pictures]:
    """What all units of FindEvaluated found, once for each worker."""
    tables = [storage.read_table(folder.file(unit, "found")).cast(FOUND) for unit, _ in folder.manifests()]
    return pa.concat_tables([FOUND.empty_table(), *tables]).combine_chunks(), Pictures.of(read_hashes(folder), distance)


@dataclasses.dataclass(frozen=True)
class Index:
    """The arrays of `write`, mapped, and NAMES."""

    names: pa.Table
    vectors: Vectors
    sieve: Vectors
    centres: Floats
    cell: Places
    vector: Places

    def near(self, vectors: Vectors, sieve: Vectors, cosine: float) -> tuple[Places, Places, npt.NDArray[np.float64]]:
        """(row, image, cosine) of all near pairs of some vectors and the images, by row, the nearest first."""
        row, cell, _ = near_vectors.cells_of(sieve.astype(np.float32), self.centres, cosine)
        order = np.lexsort((row, cell))
        row, cell = row[order], cell[order]
        found = [(row[:0], row[:0])]
        for start, end in _runs(cell):
            low, high = np.searchsorted(self.cell, [cell[start], cell[start] + 1])
            found += self._of_cell(sieve, row[start:end], self.vector[low:high], cosine, vectors.shape[1])
        pairs = np.unique(np.stack([np.concatenate(side) for side in zip(*found, strict=True)]), axis=1)
        step = max(1, near_vectors.PIECE // vectors.shape[1])
        cosines = np.zeros(pairs.shape[1])
        for at in range(0, pairs.shape[1], step):
            (some, one), (others, other) = (np.unique(side[at : at + step], return_inverse=True) for side in pairs)
            asked, known = (side.astype(np.float32) for side in (vectors[some], self.vectors[others]))
            cosines[at : at + step] = near_vectors.cosines(asked, one, known, other)
        row, image = pairs[:, cosines >= cosine]
        cosines = cosines[cosines >= cosine]
        order = np.lexsort((image, -cosines, row))
        return row[order], image[order], cosines[order]

    def _of_cell(
        self, sieve: Vectors, rows: Places, images: Places, cosine: float, width: int
    ) -> Iterator[tuple[Places, Places]]:
        """The pairs of a cell whose projections are near enough."""
        if not len(images):
            return
        known = self.sieve[images].astype(np.float32).T
        bound = near_vectors.sieve_bound(cosine, sieve.shape[1], width) * near_vectors.SCALE**2
        step = max(1, near_vectors.COMPARED // len(images))
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            one, other = np.nonzero(sieve[some].astype(np.float32) @ known >= bound)
            yield some[one], images[other]


def _runs(cell: Places) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of equal numbers."""
    starts = np.flatnonzero(np.diff(cell, prepend=-1)).tolist()
    yield from zip(starts, [*starts[1:], len(cell)], strict=True)


@functools.lru_cache(maxsize=1)
def load(folder: StepFolder) -> Index:
    """Maps the arrays, once for each worker."""
    arrays = (storage.map_array(folder.file(0, name)) for name in ("vectors", "sieve", "centres"))
    cells = storage.read_table(folder.file(0, "cells"))
    places = (cells[name].to_numpy() for name in EVALUATED.names)
    return Index(storage.read_table(folder.file(0, "names")).cast(NAMES), *arrays, *places)


def described(values: Sequence[str]) -> list[dict[str, str]]:
    """The tables as the manifest of a set shows them: the names of their sets, and digests of their content."""
    names, paths = zip(*map(split_name, values), strict=True)
    return TABLES.files.described(paths, names)


def digest(values: Sequence[str]) -> str:
    """Stands for the tables in a fingerprint: their names and contents, in no order."""
    named = sorted([split_name(value)[0], str(TABLES.files.digest([split_name(value)[1]]))] for value in values)
    return digest_of(named)
