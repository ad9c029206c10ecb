"""Which pairs show an evaluation image: by the bytes of the file, or by the hashes of near-duplicates (`similar`).
`evaluation_embeddings` finds more of them.

A picture shows an evaluation image, or its mirror image, if the perceptual hashes are within the distance and either
the mean colours or all looks agree. So grey, brighter and slightly cropped copies of photographs are found, too.

The hashes of all evaluation images are an index that each worker holds: about 700 bytes an image. All pairs of a
picture of the set and an evaluation image within the distance are found, by blocks of the hash as in `similar`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.sample_json import hex_strings
from pipeline.engine import hashing, storage
from pipeline.engine.hashing import Words
from pipeline.engine.work import StepFolder
from pipeline.schema import CONTAMINATION
from pipeline.stages import similar
from pipeline.stages.evaluation_images import as_words, read_hashes
from pipeline.stages.picture_hashes import COLOUR_SIDE, SHADE_SIDE, Hashes, Places

MOST_IMAGES = 16  # evaluation images that are noted for a pair, the nearest ones
BYTES, PICTURE, EMBEDDING = "bytes", "picture", "embedding"  # how a pair was found
PAIRS_AT_ONCE = 1 << 20  # candidates that are compared together
FOUND = pa.schema([pa.field("uid", pa.binary(16), False), *(field for field in CONTAMINATION if field.name != "key")])


@dataclasses.dataclass(frozen=True)
class Contamination:
    """What KeepFetched needs to look for evaluation images.

    Attributes:
        hashes: the step that hashed them.
        distance: hashes of alike pictures differ in at most so many bits.
    """

    hashes: StepFolder
    distance: int

    def find(self, rows: pa.Table) -> pa.Table:
        """FOUND: the rows of FETCHED that show an evaluation image, with at most MOST_IMAGES images each."""
        return load_index(self.hashes, self.distance).find(rows)


@dataclasses.dataclass(frozen=True)
class Index:
    """The evaluation images under each block of their hash.

    Attributes:
        images: HASHED.
        looks: of all images, and then of the mirror images of those that have one.
        image: the place in `images` of each of the looks.
        distance: see Contamination.
        blocks: for each block: the values, ascending, and the place in `looks` of each.
        files: the words of the sha256, ascending, and the place of the image of each.
    """

    images: pa.Table
    looks: Hashes
    image: Places
    distance: int
    blocks: tuple[tuple[Words, Places], ...]
    files: tuple[Words, Places]

    @classmethod
    def of(cls, images: pa.Table, distance: int) -> Index:
        """The index of HASHED rows."""
        looks, mirrored = _looks(images), np.flatnonzero(images["mirrored"].is_valid().to_numpy())
        image = np.concatenate([np.arange(images.num_rows), mirrored])
        looks = looks.take(image)
        looks.phash[images.num_rows :] = images["mirrored"].drop_null().to_numpy()
        for cells, side, numbers in ((looks.colours, COLOUR_SIDE, 3), (looks.shades, SHADE_SIDE, 1)):
            rows = cells[images.num_rows :].reshape(len(mirrored), side, side, numbers)
            rows[:] = rows[:, :, ::-1].copy()
        contrast = np.flatnonzero(similar.has_contrast(looks.colours))
        blocks = []
        for block in range(distance + 1):
            values = _block_values(looks.phash[contrast], block, distance)
            order = np.argsort(values, kind="stable")
            blocks.append((values[order], contrast[order]))
        words = as_words(hashing.as_array(images["sha256"]))
        order = np.argsort(words, kind="stable")
        return cls(images, looks, image, distance, tuple(blocks), (words[order], order))

    def find(self, rows: pa.Table) -> pa.Table:
        """See Contamination.find."""
        pairs = [self._by_bytes(rows), *self._by_picture(rows)]
        row, image, distance = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
        if not len(row):
            return FOUND.empty_table()
        order = np.lexsort((image, distance, row))  # an image that agrees by its bytes comes first: -1
        row, image, distance = row[order], image[order], distance[order]
        _, first = np.unique(np.stack([row, image]), axis=1, return_index=True)
        keep = np.sort(first)
        row, image, distance = row[keep], image[keep], distance[keep]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        near = rank < MOST_IMAGES
        row, image, distance = row[near], image[near], distance[near]
        known = self.images.take(pa.array(image))
        kinds = pc.if_else(pa.array(distance < 0), BYTES, PICTURE)
        straight = np.bitwise_count(rows["phash"].to_numpy()[row] ^ known["phash"].to_numpy())
        bits = np.where(distance < 0, straight, distance).astype(np.uint8)
        cosine = pa.nulls(len(row), pa.float32())
        columns = [rows["uid"].take(pa.array(row)), known["set"], known["image"], kinds, pa.array(bits), cosine]
        return pa.Table.from_arrays(columns, schema=FOUND)

    def _by_bytes(self, rows: pa.Table) -> tuple[Places, Places, npt.NDArray[np.int64]]:
        """Places of rows and images with equal files, and -1 for each pair."""
        digests = hashing.as_array(rows["image_sha256"])
        row, image = next(_expand(*self.files, as_words(digests), most=None))
        known = hashing.as_array(self.images["sha256"]).take(pa.array(image))
        same = pc.equal(digests.take(pa.array(row)), known).to_numpy(zero_copy_only=False)
        return row[same], image[same], np.full(int(same.sum()), -1)

    def _by_picture(self, rows: pa.Table) -> Iterator[tuple[Places, Places, npt.NDArray[np.int64]]]:
        """Places of rows and images that are alike, and the distance of each pair. A pair may come several times."""
        looks = _looks(rows)
        contrast = np.flatnonzero(similar.has_contrast(looks.colours))
        for block, (values, places) in enumerate(self.blocks):
            asked = _block_values(looks.phash[contrast], block, self.distance)
            for place, known in _expand(values, places, asked, most=PAIRS_AT_ONCE):
                row = contrast[place]
                distance = np.bitwise_count(looks.phash[row] ^ self.looks.phash[known])
                near = np.flatnonzero(distance <= self.distance)
                some, others = looks.take(row[near]), self.looks.take(known[near])
                near = near[similar.colours_agree(some.colours, others.colours) | similar.looks_agree(some, others)]
                yield row[near], self.image[known[near]], distance[near].astype(np.int64)


def _expand(values: Words, places: Places, asked: Words, *, most: int | None) -> Iterator[tuple[Places, Places]]:
    """(place in `asked`, place of an image) for each image with an equal value, in pieces of about `most` pairs."""
    low, high = (np.searchsorted(values, asked, side) for side in ("left", "right"))
    count = high - low
    ends = np.cumsum(count)
    start = 0
    while True:
        before = int(ends[start - 1]) if start else 0
        stop = len(asked) if most is None else max(start + 1, int(np.searchsorted(ends, before + most, "right")))
        some = count[start:stop]
        row = np.repeat(np.arange(start, min(stop, len(asked))), some)
        within = np.arange(len(row)) - np.repeat(np.cumsum(some) - some, some)
        yield row, places[np.repeat(low[start:stop], some) + within]
        start = stop
        if start >= len(asked):
            return


def _block_values(phash: Words, block: int, distance: int) -> Words:
    return similar.block_values(phash, np.full(len(phash), block, np.uint8), distance)


def _looks(table: pa.Table) -> Hashes:
    """The hashes of FETCHED or HASHED rows, under one block."""
    colours, shades = _cells(table["colours"]), _cells(table["shades"])
    phash, grain = (table[name].to_numpy() for name in ("phash", "grain"))
    return Hashes(np.zeros(len(table), np.uint8), phash, colours, shades, grain)


def _cells(column: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    array = hashing.as_array(column)
    data = np.frombuffer(array.buffers()[1] or b"", np.uint8).reshape(-1, array.type.byte_width)
    return data[array.offset : array.offset + len(array)]


@functools.lru_cache(maxsize=1)
def load_index(hashes: StepFolder, distance: int) -> Index:
    """The index, once for each worker."""
    return Index.of(read_hashes(hashes), distance)


def first_of_each(found: pa.Table) -> pa.Table:
    """FOUND with the first of the rows that name the same pair and image."""
    if not found.num_rows:
        return found
    numbered = found.select(["uid", "set", "image"]).append_column("row", pa.array(np.arange(found.num_rows)))
    first = numbered.group_by(["uid", "set", "image"]).aggregate([("row", "min")])["row_min"]
    return found.take(pa.array(np.sort(first.to_numpy())))


def merge_found(parts: StepFolder) -> pa.Table:
    """CONTAMINATION: what all units of KeepFetched found, sorted by key, set and image."""
    tables = [storage.read_table(parts.file(unit, "contaminated")).cast(FOUND) for unit, _ in parts.manifests()]
    table = pa.concat_tables([FOUND.empty_table(), *tables]).combine_chunks()
    table = table.set_column(0, CONTAMINATION.field("key"), [hex_strings(table["uid"])])
    order = [("key", "ascending"), ("set", "ascending"), ("image", "ascending"), ("distance", "ascending")]
    return table.sort_by(order).cast(CONTAMINATION)
