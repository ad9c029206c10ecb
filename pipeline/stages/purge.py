"""Takes pairs out of the folders of the stages, as if gather had dropped them. `pipeline.forget` uses it.

    parts and keys of gather, match, dedup-images                rewritten without the rows
    masks and new values of dedup, balance, dedup-images         rewritten without the rows
    rows of the fetch, rejected rows                             rewritten without the rows
    raw images of the fetch                                      the bytes become zeros in place
    buckets that a done stage no longer needs                    emptied: they hold copies of the rows
    a stage that was interrupted                                 removed; of the fetch only the touched units

The ledgers follow: a row counts as dropped in gather, with the reason `forgotten`, and in no later stage. Thresholds
and counts of queries stay: nothing moves up. The digest in gather's info.json stays where match took the rows in the
same pass, because the hashes of gather's rows were not kept.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.journal import Change
from pipeline.engine.merging import MERGED
from pipeline.engine.rows import Overlay
from pipeline.engine.work import file_of
from pipeline.schema import SELECTED, STAGES
from pipeline.stages import fetched_rules
from pipeline.stages.row_pass import KEYS, ROW_HASH
from pipeline.stages.selection import DUPLICATE_REASONS, JOINED
from pipeline.text import image_variants

FORGOTTEN = "forgotten"  # the reason of such rows in the ledger of gather
PARTS = {
    "gather": "gather",
    "match": "match",
    "dedup-images": "dedup-images",
}  # stage with parts -> whose rows they are
# Stage with masks -> the stage with the parts.
MASKS = {"dedup": "match", "balance": "match", "dedup-images": "dedup-images"}
JOINS = ("dedup", "dedup-images")  # those that put texts of other pairs over rows
# The reason behind each code of a mask. Whoever adds a reason to a mask adds it here.
EARLIER = 1  # in a mask of balance: the row did not come in
REASONS = {
    "dedup": DUPLICATE_REASONS,
    "balance": ("", "", "over_cap"),
    "dedup-images": ("", "same_pair", "same_image", "near_duplicate"),
}
LOST_REASON = {"balance": "over_cap", "publish": "over_cap"}
# Bucket files that only later steps of the same stage read.
EMPTIED = (
    *("dedup/cut-texts", "dedup/drops", "dedup/taken", "balance/band", "fetch/hosts"),
    *("dedup-images/cut-texts", "dedup-images/drops", "dedup-images/hashes", "dedup-images/similar"),
    *(
        "dedup-images/clusters",
        "dedup-images/vectors",
        "dedup-images/near-vectors",
        "dedup-images/taken",
        "publish/selected",
        "publish/band",
    ),
)
SELECTED_PART = pa.schema([*SELECTED, ROW_HASH])

PLACE = ("raw_attempt", "raw_unit", "raw_part", "image_offset", "image_bytes")
Place = tuple[int, int, int, int, int]  # PLACE of an image
Mask = npt.NDArray[np.bool_]
Covers = Callable[[pa.Table], Mask]


class Uids:
    """A set of uids that many rows are tested against."""

    def __init__(self, uids: set[bytes]) -> None:
        self.uids = frozenset(uids)
        words = [(int.from_bytes(uid[:8], "big"), int.from_bytes(uid[8:], "big")) for uid in uids]
        self._pairs = frozenset(words)
        self.high: npt.NDArray[np.uint64] = np.unique(np.array([high for high, _ in words], np.uint64))

    def among(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> Mask:
        """True for each (high, low) that is in the set."""
        mask = np.isin(high, self.high)
        for row in np.flatnonzero(mask).tolist():
            mask[row] = (int(high[row]), int(low[row])) in self._pairs
        return mask

    def mask(self, column: pa.Array | pa.ChunkedArray) -> Mask:
        """True for each uid of a column that is in the set."""
        return self.among(*hashing.uid_words(column))


@dataclasses.dataclass
class Counts:
    """The rows that are taken out.

    Attributes:
        left: stage -> rows that had left it.
        dropped: stage -> rows that it had dropped, by reason, as far as the files tell.
        digest: stage -> the sum of the row hashes of the rows that had left it.
        row_hash: uid -> its hash when it left dedup-images.
    """

    left: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    digest: dict[str, int] = dataclasses.field(default_factory=dict)
    row_hash: dict[bytes, int] = dataclasses.field(default_factory=dict)

    def add(self, stage: str, hashes: npt.NDArray[np.uint64], dropped: Mapping[str, int]) -> None:
        """Counts rows that had left a stage, and rows that it had dropped."""
        self.left[stage] = self.left.get(stage, 0) + len(hashes)
        self.digest[stage] = (self.digest.get(stage, 0) + int(hashes.sum(dtype=np.uint64))) % 2**64
        self.dropped.setdefault(stage, Counter()).update(dropped)

    def corrected(self, row: Mapping[str, Any], *, published: int) -> dict[str, Any]:
        """The counts of a stage (rows_in, rows_out, dropped) without the rows that are taken out.

        A stage without files lets the same rows pass as the stage before it, and the last ones are those published.
        """
        name = row["stage"]
        after, dropped = self._leaves(name, published), Counter(row["dropped"])
        if name == STAGES[0]:
            dropped[FORGOTTEN] += after
            return {**row, "rows_out": row["rows_out"] - after, "dropped": _sorted(dropped)}
        before = self._leaves(STAGES[STAGES.index(name) - 1], published)
        known = self.dropped.get(name, Counter())
        _take(dropped, before - after, known, LOST_REASON.get(name), last=REASONS.get(name, ()))
        numbers = {"rows_in": row["rows_in"] - before, "rows_out": row["rows_out"] - after}
        return {**row, **numbers, "dropped": _sorted(dropped)}

    def _leaves(self, name: str, published: int) -> int:
        """The rows that had left a stage; where no file tells, those that had left a later one."""
        later = (self.left[stage] for stage in STAGES[STAGES.index(name) :] if stage in self.left)
        return next(later, published)


def _sorted(dropped: Counter[str]) -> dict[str, int]:
    return {reason: count for reason, count in sorted(dropped.items()) if count}


def _take(
    dropped: Counter[str], count: int, known: Mapping[str, int], fallback: str | None, *, last: Sequence[str] = ()
) -> None:
    """Takes `count` rows from the drops: those of known reasons first, then the fallback, then the largest others.

    `last`: the reasons that are used up last, because `known` tells of all rows that were dropped for them.
    """
    for reason, rows in [*sorted(known.items()), *([(fallback, count)] if fallback else [])]:
        rows = min(rows, count, dropped[reason])
        dropped[reason] -= rows
        count -= rows
    for reason in sorted(dropped, key=lambda name: (name in last, -dropped[name], name)):
        rows = min(count, dropped[reason])
        dropped[reason] -= rows
        count -= rows


# ------------------------------------------------------------------------------------------------- what is there


def is_done(root: str, stage: str) -> bool:
    """True if the stage is complete."""
    return storage.is_file(os.path.join(root, "stages", stage, "COMPLETED"))


def units_of(root: str, folder: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(unit, manifest) of the committed units of a step. `folder` is below OUT/stages."""
    path = os.path.join(root, "stages", folder)
    for name in storage.names(path):
        if re.fullmatch(r"\d+\.json", name):
            found = storage.read_json(os.path.join(path, name))
            if found is not None:
                yield int(name.removesuffix(".json")), found


def passes_of(root: str) -> list[str]:
    """The folders of the passes of the fetch below OUT/stages, the newest first."""
    names = storage.names(os.path.join(root, "stages", "fetch"))
    return [f"fetch/{name}" for name in sorted(names, reverse=True) if re.fullmatch(r"images-\d+", name)]


def merged_steps(root: str) -> list[str]:
    """The folders below OUT/stages with merged bucket files."""
    stages = os.path.join(root, "stages")
    names = ((stage, name) for stage in STAGES for name in storage.names(os.path.join(stages, stage)))
    return [f"{stage}/{name}" for stage, name in names if name.startswith(MERGED)]


def number_of_pass(folder: str) -> int:
    """The number of a pass."""
    return int(folder.rpartition("-")[2])


def overlay_file(stage: str, unit: int, part: int) -> str:
    """The file with what a stage of MASKS puts over rows of a part, by their place. It need not be there."""
    return file_of(f"{stage}/overlays", unit, "overlay", part)


def overlay_of(root: str, stage: str, unit: int, part: int) -> Overlay | None:
    """What a stage of MASKS puts over a part; None if it puts nothing there."""
    path = os.path.join(root, overlay_file(stage, unit, part))
    return Overlay.read(path) if storage.is_file(path) else None


def read_overlaid(
    root: str, stage: str, unit: int, part: int, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The batches of a part under a stage of MASKS, with what this puts over them. Absent columns are left out."""
    overlay, first = overlay_of(root, stage, unit, part), 0
    path = os.path.join(root, file_of(f"{MASKS[stage]}/parts", unit, "arrow", part))
    for batch in storage.read_batches(path, columns):
        yield batch if overlay is None else overlay.over(batch, first, columns)
        first += batch.num_rows


def wide_files(root: str) -> Iterator[str]:
    """The Arrow files of all rows that the stages hold: parts of gather and match, and the rows of the fetch."""
    for folder in ("gather/parts", "match/parts", *passes_of(root)):
        for unit, found in units_of(root, folder):
            for part in range(found.get("parts", 0)):
                yield os.path.join(root, file_of(folder, unit, "arrow", part))


def find(root: str, covers: Covers) -> tuple[set[bytes], set[str]]:
    """The uids and URLs of the rows that a selection covers, in the files of `wide_files` and over those of match."""
    uids, urls = set[bytes](), set[str]()
    for path in wide_files(root):
        for batch in storage.read_batches(path):
            _collect(pa.Table.from_batches([batch]), covers, uids, urls)
    if is_done(root, "dedup"):
        for unit, found in units_of(root, "match/parts"):
            for part in range(found.get("parts", 0)):
                for batch in read_overlaid(root, "dedup", unit, part) if _is_overlaid(root, unit, part) else ():
                    _collect(pa.Table.from_batches([batch]), covers, uids, urls)
    return uids, urls


def _is_overlaid(root: str, unit: int, part: int) -> bool:
    """True if dedup puts new values over a row of a part of match. Few parts have such rows."""
    path = os.path.join(root, overlay_file("dedup", unit, part))
    return storage.is_file(path) and any(batch.num_rows for batch in storage.read_batches(path, ["row"]))


def _collect(table: pa.Table, covers: Covers, uids: set[bytes], urls: set[str]) -> None:
    mask = covers(table)
    if mask.any():
        rows = table.select(["uid", "url"]).filter(pa.array(mask))
        uids.update(rows["uid"].to_pylist())
        urls.update(rows["url"].to_pylist())


# -------------------------------------------------------------------------------------------- texts of other pairs


class JoinedTexts:
    """The texts of pairs that go, where `--captions N` joined them to the row of another pair.

    dedup joins the texts of the variants of a URL, dedup-images those of images that show the same.
    """

    def __init__(self, found: set[tuple[int, str]], merged: set[tuple[bytes, str]]) -> None:
        """Takes the texts that go.

        Args:
            found: the hash of the image (all variants of a URL have one), and the text.
            merged: the uid of the row that has the text, and the text.
        """
        self._found, self._merged = found, merged
        self.uids = set[bytes]()  # of the rows that `without` changed

    @classmethod
    def of(cls, root: str, uids: Uids) -> JoinedTexts:
        """Those of a folder. Nothing is read if no text was joined."""
        found = set[tuple[int, str]]()
        if has_joined_texts(root):
            for unit, manifest in units_of(root, "match/parts"):
                for part in range(manifest.get("parts", 0)):
                    path = os.path.join(root, file_of("match/parts", unit, "arrow", part))
                    for batch in storage.read_batches(path, ["uid", "url", "text"]):
                        rows = batch.filter(pa.array(uids.mask(batch["uid"])))
                        images, _ = image_variants.variants(rows["url"])
                        found.update(zip(images.tolist(), rows["text"].to_pylist(), strict=True))
        return cls(found, _merged_texts(root, uids, found) if has_merged_texts(root) else set())

    def __len__(self) -> int:
        return len(self._found) + len(self._merged)

    def without(self, table: pa.Table) -> pa.Table | None:
        """The rows without these texts; None if they have none. A row keeps its own text, which is the first one.

        Args:
            table: with the columns url and texts, and uid or key.
        """
        lengths = hashing.as_array(pc.list_value_length(table["texts"])).fill_null(0).to_numpy(zero_copy_only=False)
        several = np.flatnonzero(lengths > 1)
        if not len(several) or not len(self):
            return None
        some = table.take(pa.array(several))
        images, _ = image_variants.variants(hashing.as_array(some["url"]))
        uids = _uids_of(some)
        texts, changed = table["texts"].to_pylist(), list[int]()
        for row, image, uid in zip(several.tolist(), images.tolist(), uids, strict=True):
            first, *others = texts[row]
            kept = [text for text in others if (image, text) not in self._found and (uid, text) not in self._merged]
            if len(kept) < len(others):
                texts[row] = [first, *kept]
                changed.append(row)
        if not changed:
            return None
        self.uids.update(uid for uid in _uids_of(table.take(pa.array(changed))) if uid is not None)
        at = table.schema.get_field_index("texts")
        return table.set_column(at, table.schema.field(at), pa.array(texts, table.schema.field(at).type))


def _uids_of(table: pa.Table) -> list[bytes | None]:
    """The uids of rows. Rows that dedup puts over a part of match do not name theirs: None."""
    for name in ("uid", "key"):
        if name in table.column_names:
            values = table[name].to_pylist()
            return [bytes.fromhex(value) if isinstance(value, str) else value for value in values]
    return [None] * table.num_rows


def _merged_texts(root: str, uids: Uids, found: set[tuple[int, str]]) -> set[tuple[bytes, str]]:
    """(uid of the row that stays, text) of each text that only pairs that go gave to this row.

    Args:
        root: of the run.
        uids: of the pairs that go.
        found: see JoinedTexts.
    """
    table = storage.read_table(os.path.join(root, "stages/dedup-images/duplicates.parquet"), ["key", "keeper"])
    pairs = zip(table["key"].to_pylist(), table["keeper"].to_pylist(), strict=True)
    keepers = {bytes.fromhex(key): bytes.fromhex(keeper) for key, keeper in pairs}
    keepers |= {keeper: keeper for keeper in keepers.values()}
    gone, stay = set[tuple[bytes, str]](), set[tuple[bytes, str]]()
    for unit, manifest in units_of(root, "dedup-images/parts"):
        for part in range(manifest.get("parts", 0)):
            path = os.path.join(root, file_of("dedup-images/parts", unit, "arrow", part))
            for batch in storage.read_batches(path, ["uid", "url", "texts"]):
                images, _ = image_variants.variants(batch["url"])
                rows = zip(batch["uid"].to_pylist(), images.tolist(), batch["texts"].to_pylist(), strict=True)
                for uid, image, texts in rows:
                    for number, text in enumerate(texts if uid in keepers else ()):
                        goes = uid in uids.uids or (number > 0 and (image, text) in found)
                        (gone if goes else stay).add((keepers[uid], text))
    return gone - stay


def has_merged_texts(root: str) -> bool:
    """True if dedup-images joined texts of several pairs in one row."""
    if not is_done(root, "dedup-images"):
        return False
    info = storage.read_json(os.path.join(root, "stages", "dedup-images", "info.json"), sealed=False) or {}
    return bool(info.get("joined_texts"))


def has_joined_texts(root: str) -> bool:
    """True if dedup joined texts of several pairs in one row."""
    info = storage.read_json(os.path.join(root, "stages", "dedup", "info.json"), sealed=False) or {}
    return bool(info.get("dropped", {}).get(JOINED))


# ---------------------------------------------------------------------------------------------------- the purge


class Purge:
    """Prepares the change of all stages. `run` returns what it took out."""

    def __init__(
        self,
        change: Change,
        uids: Uids,
        *,
        covers_rejected: Covers,
        covers_urls: Covers,
        covers_images: Covers,
        by_image: bool,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            change: of the folder.
            uids: the pairs that go.
            covers_rejected: REJECTED rows -> the rows that go.
            covers_urls: rows with the column url, of examples in a ledger -> the rows that go.
            covers_images: rows with the column url, of the images inside the archives -> the rows that go.
            by_image: pairs are named by their image: units of the fetch that were interrupted are fetched anew.
        """
        self._change, self._root, self._uids = change, change.root, uids
        self._covers_rejected, self._covers_urls, self._covers_images = covers_rejected, covers_urls, covers_images
        self._images = by_image
        self.counts = Counts()
        self._gathered: dict[int, int] = {}  # unit -> its rows that go, where gather kept rows of its own
        self.joined = JoinedTexts.of(change.root, uids)

    def run(self) -> Counts:
        """Prepares the change."""
        self._drop_interrupted()
        for stage in PARTS:
            self._parts(stage)
        self._fetch()
        if len(self.joined):
            self._joined_texts()
        self._rejected()
        self._duplicates()
        self._scores()
        self._images_of_archives()
        for folder in [*EMPTIED, *merged_steps(self._root)]:
            if is_done(self._root, folder.split("/")[0]):
                self._empty(folder)
        return self.counts

    def correct_infos(self, *, published: int) -> None:
        """Writes info.json of each done stage with the corrected counts. Call it when `counts` is complete."""
        for stage in STAGES:
            path = f"stages/{stage}/info.json"
            info = storage.read_json(os.path.join(self._root, path)) if is_done(self._root, stage) else None
            if info is None:
                continue
            info = self.without_examples(self.counts.corrected(info, published=published))
            if stage == "dedup":  # the next build that selects anew compares all rows again
                info = {**info, FORGOTTEN: info.get(FORGOTTEN, 0) + len(self._uids.uids)}
            digest = (int(info["digest"], 16) - self.counts.digest.get(stage, 0)) % 2**64
            storage.write_json(self._change.place(path), {**info, "digest": f"{digest:016x}"})

    def without_examples(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The counts of a stage without the examples of its ledger of rights that name a URL or page that goes."""
        rights = {}
        for protocol, counted in (row.get("rights") or {}).items():
            examples = counted["examples"]
            named = [(item["url"], item.get("page", "")) for item in examples]
            columns = [pa.array([pair[at] for pair in named], pa.string()) for at in range(2)]
            gone = self._covers_urls(pa.table(columns, ["url", "page_url"]))
            kept = [item for item, is_gone in zip(examples, gone.tolist(), strict=True) if not is_gone]
            rights[protocol] = {**counted, "examples": kept}
        return {**row, "rights": rights} if rights else dict(row)

    # ------------------------------------------------------------------------------------------ interrupted stages

    def _drop_interrupted(self) -> None:
        """Removes stages that were interrupted, but for gather, match and fetch, whose units are kept."""
        for stage in ("dedup", "balance", "dedup-images", "publish"):
            if not is_done(self._root, stage) and storage.is_folder(os.path.join(self._root, "stages", stage)):
                self._change.remove(f"stages/{stage}")
        for folder in ("gather/parts", "match/parts"):
            if not is_done(self._root, folder.split("/")[0]):
                self._drop_uncommitted(folder, lambda unit: True)
        for folder in merged_steps(self._root):  # the next run merges the rows that are left anew
            if folder.startswith("fetch/") and not is_done(self._root, "fetch"):
                self._change.remove(f"stages/{folder}")

    def _drop_uncommitted(self, folder: str, wanted: Callable[[int], bool]) -> None:
        """Removes the files of units that are not committed."""
        path = os.path.join(self._root, "stages", folder)
        done = {unit for unit, _ in units_of(self._root, folder)}
        for name in storage.names(path):
            unit = re.match(r"\d+", name)
            if unit and int(unit[0]) not in done and wanted(int(unit[0])):
                self._change.remove(f"stages/{folder}/{name}")

    # ------------------------------------------------------------------------------------------------------- parts

    def _parts(self, stage: str) -> None:
        """The parts of a stage, the keys beside them, and the masks over them."""
        folder, masked = f"{stage}/parts", [name for name, parts in MASKS.items() if parts == stage]
        if not storage.is_folder(os.path.join(self._root, "stages", folder)):
            return
        masked = [name for name in masked if is_done(self._root, name)]
        if stage == "dedup-images" and not masked:
            return  # it is removed
        counted = stage if stage not in masked else None
        gone: dict[int, list[Mask]] = {}
        if counted:
            self.counts.add(counted, np.zeros(0, np.uint64), {})
        for unit, found in units_of(self._root, folder):
            gone[unit] = [self._part(folder, unit, part, counted) for part in range(found["parts"])]
            left = self._dropped_by_rules(folder, unit, found) if stage == "dedup-images" else found
            left = self._without_page_examples(left)
            if stage == "gather":
                self._gathered[unit] = sum(int(mask.sum()) for mask in gone[unit])
            if any(mask.any() for mask in gone[unit]) or (stage == "match" and self._gathered.get(unit)):
                self._count_unit(folder, unit, left, gone[unit], stage)
            elif left != found:
                self._manifest(folder, unit, left)
        for name in masked:
            self._masks(name, folder, gone)

    def _without_page_examples(self, found: dict[str, Any]) -> dict[str, Any]:
        """The manifest of a unit whose ledger of gather names no URL and no page that goes."""
        ledgers = found.get("ledgers") or {}
        if not (ledgers.get("gather") or {}).get("rights"):
            return found
        return {**found, "ledgers": {**ledgers, "gather": self.without_examples(ledgers["gather"])}}

    def _part(self, folder: str, unit: int, part: int, counted: str | None) -> Mask:
        """Writes a part without the rows. Returns the mask of the rows that it took out."""
        path = file_of(folder, unit, "arrow", part)
        full = os.path.join(self._root, path)
        masks = [self._uids.mask(batch["uid"]) for batch in storage.read_batches(full, ["uid"])]
        gone = np.concatenate([np.zeros(0, np.bool_), *masks])
        if not gone.any():
            return gone
        batches = list(storage.read_batches(full))
        if counted:
            self.counts.add(counted, _hashes(batches)[gone], {})
        with storage.writing_batches(self._change.place(path), batches[0].schema) as out:
            for batch, mask in zip(batches, masks, strict=True):
                if not mask.all():
                    out.write_batch(batch.filter(pa.array(~mask)))
        keys = file_of(folder, unit, "keys", part)
        if storage.is_file(os.path.join(self._root, keys)):
            self._keys(keys, gone)
        return gone

    def _keys(self, path: str, gone: Mask) -> None:
        """Writes the keys of a part without the rows. The other rows get their new numbers."""
        full, moved = os.path.join(self._root, path), np.cumsum(gone).astype(np.int32)
        messages: list[pa.Buffer | None] = [None] * count_of_buckets(full)
        for bucket, data in shuffle_files.read_all(full):
            table = shuffle_files.table([data], KEYS)
            rows = table["row"].to_numpy()
            stay = ~gone[rows]
            at = table.schema.get_field_index("row")
            table = table.set_column(at, KEYS.field("row"), pa.array((rows - moved[rows]).astype(np.int32)))
            kept = table.filter(pa.array(stay)).combine_chunks().to_batches()
            messages[bucket] = kept[0].serialize() if kept else None
        _write_buckets(self._change.place(path), messages)

    def _count_unit(self, folder: str, unit: int, found: dict[str, Any], gone: list[Mask], stage: str) -> None:
        """Writes the manifest of a unit with parts."""
        rows = [count - int(mask.sum()) for count, mask in zip(found["rows"], gone, strict=True)]
        out, ledgers = sum(int(mask.sum()) for mask in gone), {**found["ledgers"]}
        digest = self._digest_of_unit(folder, unit, gone)
        for name, ledger in ledgers.items():
            if name == "gather":
                dropped = {**ledger["dropped"], FORGOTTEN: ledger["dropped"].get(FORGOTTEN, 0) + out}
                ledgers[name] = {
                    **ledger,
                    "rows_out": ledger["rows_out"] - out,
                    "dropped": dict(sorted(dropped.items())),
                }
            elif name == "match":
                came, dropped = self._gathered.get(unit, out), Counter(ledger["dropped"])
                _take(dropped, came - out, {}, None)
                numbers = {"rows_in": ledger["rows_in"] - came, "rows_out": ledger["rows_out"] - out}
                ledgers[name] = {**ledger, **numbers, "dropped": _sorted(dropped)}
            if name == stage and stage in ("gather", "match"):
                ledgers[name]["digest"] = (ledgers[name]["digest"] - digest) % 2**64
        self._manifest(folder, unit, {**found, "rows": rows, "ledgers": ledgers})

    def _dropped_by_rules(self, folder: str, unit: int, found: dict[str, Any]) -> dict[str, Any]:
        """Takes rows out of those that dedup-images dropped by its rules. Returns the manifest of the unit."""
        path = file_of(folder, unit, "dropped")
        if not storage.is_file(os.path.join(self._root, path)):
            return found  # an older version made the folder
        table = storage.read_table(os.path.join(self._root, path))
        gone = self._uids.mask(table["uid"])
        if not gone.any():
            return found
        storage.write_table(self._change.place(path), table.filter(pa.array(~gone)))
        shown = file_of(folder, unit, "contaminated")
        if storage.is_file(os.path.join(self._root, shown)):
            images = storage.read_table(os.path.join(self._root, shown))
            storage.write_table(self._change.place(shown), images.filter(pa.array(~self._uids.mask(images["uid"]))))
        reasons = Counter(fetched_rules.REASONS[code] for code in table["reason"].to_numpy()[gone].tolist())
        self.counts.add("dedup-images", np.zeros(0, np.uint64), reasons)
        ledger = found["ledgers"]["dedup-images"]
        dropped = Counter(ledger["dropped"])
        dropped.subtract(reasons)
        ledger = {**ledger, "rows_in": ledger["rows_in"] - int(gone.sum()), "dropped": _sorted(dropped)}
        return {**found, "ledgers": {**found["ledgers"], "dedup-images": ledger}}

    def _scores(self) -> None:
        """The scores of pairs that dedup-images keeps."""
        path = "stages/dedup-images/scores/00000.arrow"
        if not is_done(self._root, "dedup-images") or not storage.is_file(os.path.join(self._root, path)):
            return
        (batch,) = storage.read_batches(os.path.join(self._root, path))
        gone = self._uids.mask(batch["uid"])
        if gone.any():
            with storage.writing_batches(self._change.place(path), batch.schema) as out:
                out.write_batch(batch.filter(pa.array(~gone)))

    def _digest_of_unit(self, folder: str, unit: int, gone: list[Mask]) -> int:
        total = 0
        for part, mask in enumerate(gone):
            if mask.any():
                full = os.path.join(self._root, file_of(folder, unit, "arrow", part))
                total += int(_hashes(storage.read_batches(full, ["row_hash"]))[mask].sum(dtype=np.uint64))
        return total % 2**64

    def _masks(self, stage: str, folder: str, gone: dict[int, list[Mask]]) -> None:
        """The masks over the parts, and the counts of the groups of units."""
        groups = dict(units_of(self._root, f"{stage}/masks"))
        changed = set[int]()
        self.counts.add(stage, np.zeros(0, np.uint64), {})
        for unit, masks in gone.items():
            for part, mask in enumerate(masks):
                if not mask.any():
                    continue
                path = file_of(f"{stage}/masks", unit, "mask", part)
                codes = np.frombuffer(storage.read_bytes(os.path.join(self._root, path)), np.uint8)
                storage.write_bytes(self._change.place(path), codes[~mask].tobytes())
                self._overlay(overlay_file(stage, unit, part), mask)
                group = unit % len(groups)
                groups[group] = self._mask_counts(stage, folder, (unit, part), codes, mask, groups[group])
                changed.add(group)
        for group in changed:
            self._manifest(f"{stage}/masks", group, groups[group])

    def _overlay(self, path: str, gone: Mask) -> None:
        """Writes what a stage puts over a part without the rows. The other rows get their new numbers."""
        full = os.path.join(self._root, path)
        if not storage.is_file(full):
            return
        (values,) = storage.read_batches(full)
        rows, moved = values["row"].to_numpy(), np.cumsum(gone).astype(np.int32)
        at = values.schema.get_field_index("row")
        moved_rows = pa.array((rows - moved[rows]).astype(np.int32))
        columns = [*values.columns[:at], moved_rows, *values.columns[at + 1 :]]
        kept = pa.RecordBatch.from_arrays(columns, schema=values.schema).filter(pa.array(~gone[rows]))
        with storage.writing_batches(self._change.place(path), values.schema) as out:
            out.write_batch(kept)

    def _mask_counts(
        self, stage: str, folder: str, place: tuple[int, int], codes: np.ndarray, gone: Mask, manifest: dict[str, Any]
    ) -> dict[str, Any]:
        """Counts the rows of a part that are taken out. Returns the manifest of the group without them."""
        batches = list(read_overlaid(self._root, stage, *place, ["uid", "row_hash"]))
        if stage == "balance":
            gone = gone & (codes != EARLIER)
        hashes, kept = _hashes(batches), gone & (codes == 0)
        if stage == "dedup-images":
            uids = np.concatenate([np.array(batch["uid"].to_pylist(), object) for batch in batches])
            self.counts.row_hash.update(zip(uids[kept], hashes[kept].tolist(), strict=True))
        names = REASONS[stage]
        reasons = Counter(names[code] if code < len(names) else "" for code in codes[gone & (codes > 0)].tolist())
        self.counts.add(stage, hashes[kept], reasons)
        ledger = manifest["ledgers"][stage]
        dropped = Counter(ledger["dropped"])
        _take(dropped, reasons.total(), reasons, None)
        return {
            **manifest,
            "ledgers": {
                stage: {
                    **ledger,
                    "rows_in": ledger["rows_in"] - int(gone.sum()),
                    "rows_out": ledger["rows_out"] - int(kept.sum()),
                    "dropped": _sorted(dropped),
                    "digest": (ledger["digest"] - int(hashes[kept].sum(dtype=np.uint64))) % 2**64,
                }
            },
        }

    # ------------------------------------------------------------------------------------------------------- the fetch

    def _fetch(self) -> None:
        """The rows of all passes with their images. The newest outcome of a row counts."""
        if not storage.is_folder(os.path.join(self._root, "stages/fetch")):
            return
        touched, seen, gone = self._hosts_of_interrupted_fetch(), set[bytes](), set[Place]()
        first = (storage.read_json(os.path.join(self._root, "stages/fetch/attempts.json")) or {}).get("first", 0)
        if is_done(self._root, "fetch"):
            self.counts.add("fetch", np.zeros(0, np.uint64), {})
        for folder in passes_of(self._root):
            newest = seen if number_of_pass(folder) >= first else None  # rows of earlier generations count nowhere
            for unit, found in units_of(self._root, folder):
                parts = range(found.get("parts", 0))
                out = sum((self._fetched(folder, unit, part, newest, gone) for part in parts), Counter[str]())
                if out:
                    touched.add(unit)
                    status = Counter(found["status"])
                    status.subtract(out)
                    numbers = {"rows": found["rows"] - out.total(), "status": _sorted(status)}
                    self._manifest(folder, unit, {**found, **numbers})
        self._erase_images(gone)
        for folder in passes_of(self._root):
            self._drop_uncommitted(folder, lambda unit: self._images or unit in touched)
            if number_of_pass(folder) < first:
                self._drop_pieces(folder)
        for unit, found in units_of(self._root, "fetch/failed"):
            if found.get("rights"):
                self._manifest("fetch/failed", unit, self.without_examples(found))

    def _drop_pieces(self, folder: str) -> None:
        """Removes what parts of an earlier generation had finished when they were interrupted."""
        for name in storage.names(os.path.join(self._root, "stages", folder)):
            if name.endswith((".pieces", ".asked")):
                self._change.remove(f"stages/{folder}/{name}")

    def _fetched(
        self, folder: str, unit: int, part: int, seen: set[bytes] | None, gone_places: set[Place]
    ) -> Counter[str]:
        """One part of a pass. Returns the rows that are taken out, by status.

        Args:
            folder, unit, part: of the pass.
            seen: the pairs that a newer pass has; None: the pass is of an earlier generation.
            gone_places: gets the places of the images of the rows that are taken out.
        """
        path = file_of(folder, unit, "arrow", part)
        batches = list(storage.read_batches(os.path.join(self._root, path)))
        table = pa.Table.from_batches(batches)
        gone = self._uids.mask(table["uid"])
        if not gone.any():
            return Counter()
        rows, kept = table.filter(pa.array(gone)), table.filter(pa.array(~gone))
        with storage.writing_batches(self._change.place(path), table.schema) as out:
            for batch in kept.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]:
                out.write_batch(batch)
        gone_places.update(_places(rows))
        status = np.array(rows["status"].to_pylist(), object)
        if seen is not None:
            newest = np.array([uid not in seen for uid in rows["uid"].to_pylist()], np.bool_)
            seen.update(rows["uid"].to_pylist())
            if is_done(self._root, "fetch"):
                good = newest & (status == "ok")
                self.counts.add("fetch", rows["row_hash"].to_numpy()[good], Counter(status[newest & ~good].tolist()))
        return Counter(status.tolist())

    def _erase_images(self, gone: set[Place]) -> None:
        """Erases images, but for those that a row of any pass still has. A raw file ends behind its last image."""
        if not gone:
            return
        kept: dict[tuple[int, int, int], set[Place]] = {place[:3]: set() for place in gone}
        for folder in passes_of(self._root):
            for unit, found in units_of(self._root, folder):
                for part in range(found.get("parts", 0)):
                    path = self._change.current(file_of(folder, unit, "arrow", part))
                    table = pa.Table.from_batches(storage.read_batches(path, ["status", *PLACE]))
                    for place in _places(table):
                        if place[:3] in kept:
                            kept[place[:3]].add(place)
        for (number, unit, part), places in kept.items():
            ranges = [place[3:] for place in sorted(gone - places) if place[:3] == (number, unit, part)]
            end = max([start + size for *_, start, size in places], default=0)
            if ranges:
                self._change.erase(file_of(f"fetch/images-{number:03d}", unit, "raw", part), ranges, end)

    def _joined_texts(self) -> None:
        """Takes the texts out of rows that stay. Their hashes and queries stay, too, until dedup is done again."""
        for folder in (*passes_of(self._root), "dedup-images/parts"):
            for unit, found in units_of(self._root, folder):
                for part in range(found.get("parts", 0)):
                    self._joined_texts_of(file_of(folder, unit, "arrow", part))
        for stage in JOINS:
            for path in storage.walk(os.path.join(self._root, "stages", stage, "overlays")):
                if path.endswith(".overlay"):
                    self._joined_texts_of(os.path.relpath(path, self._root))

    def _joined_texts_of(self, path: str) -> None:
        """Takes the texts out of an Arrow file, unless the file goes."""
        if self._change.removes("/".join(path.split("/")[:2])):
            return
        batches = list(storage.read_batches(self._change.current(path)))
        table = self.joined.without(pa.Table.from_batches(batches)) if batches else None
        if table is not None:
            with storage.writing_batches(self._change.place(path), batches[0].schema) as out:
                for batch in table.combine_chunks().to_batches():
                    out.write_batch(batch)

    def _hosts_of_interrupted_fetch(self) -> set[int]:
        """The units of an interrupted fetch that have a row to take out. Their rows leave the bucket files."""
        touched = set[int]()
        if is_done(self._root, "fetch"):
            return touched
        for unit, found in units_of(self._root, "fetch/hosts"):
            for part in range(found.get("parts", 0)):
                path = file_of("fetch/hosts", unit, "rows", part)
                full = os.path.join(self._root, path)
                messages: list[pa.Buffer | None] = [None] * count_of_buckets(full)
                changed = False
                for bucket, data in shuffle_files.read_all(full):
                    table = shuffle_files.table([data], SELECTED_PART)
                    gone = self._uids.mask(table["uid"])
                    if gone.any():
                        touched.add(bucket)
                        changed, table = True, table.filter(pa.array(~gone)).combine_chunks()
                    fewer = self.joined.without(table)
                    if fewer is not None:
                        touched.add(bucket)
                        changed, table = True, fewer.combine_chunks()
                    messages[bucket] = table.to_batches()[0].serialize() if table.num_rows else None
                if changed:
                    _write_buckets(self._change.place(path), messages)
        return touched

    # ----------------------------------------------------------------------------------------- rejected rows, images

    def _rejected(self) -> None:
        """The kept dropped rows of all stages, of their units and of the published folder."""
        for path in storage.walk(os.path.join(self._root, "stages")):
            if path.endswith((".rejected", "/rejected.parquet")):
                self._rejected_table(path, storage.read_table, storage.write_table)
        for path in storage.walk(os.path.join(self._root, "rejected")):
            if path.endswith(".parquet"):
                self._rejected_table(path, storage.read_published, storage.write_published)

    def _duplicates(self) -> None:
        """The tables of the duplicates of images and of evaluation images: rows of which a pair goes."""
        keys = pa.array(sorted(uid.hex() for uid in self._uids.uids), pa.string())
        for path, read, write in (
            ("stages/dedup-images/duplicates.parquet", storage.read_table, storage.write_table),
            ("duplicates.parquet", storage.read_published, storage.write_published),
            ("stages/dedup-images/contamination.parquet", storage.read_table, storage.write_table),
            ("contamination.parquet", storage.read_published, storage.write_published),
        ):
            if storage.is_file(os.path.join(self._root, path)):
                table = read(os.path.join(self._root, path))
                columns = [name for name in ("key", "keeper") if name in table.column_names]
                gone = functools.reduce(pc.or_, (pc.is_in(table[name], keys) for name in columns))
                if pc.any(gone).as_py():
                    write(self._change.place(path), table.filter(pc.invert(gone)))
        if is_done(self._root, "dedup-images"):
            for folder in storage.names(os.path.join(self._root, "stages/dedup-images")):
                self._duplicates_of_units(f"dedup-images/{folder}")

    def _duplicates_of_units(self, folder: str) -> None:
        """The tables of duplicates that units of a step of dedup-images found."""
        for unit, found in units_of(self._root, folder):
            path = file_of(folder, unit, "duplicates")
            if not storage.is_file(os.path.join(self._root, path)):
                continue
            table = storage.read_table(os.path.join(self._root, path))
            gone = self._uids.mask(table["uid"]) | self._uids.mask(table["keeper"])
            if gone.any():
                storage.write_table(self._change.place(path), table.filter(pa.array(~gone)))
                self._manifest(folder, unit, {**found, "duplicates": int((~gone).sum())})

    def _rejected_table(self, path: str, read: Callable[..., pa.Table], write: Callable[..., None]) -> None:
        table = read(path)
        gone = self._covers_rejected(table)
        below = os.path.relpath(path, self._root)
        if gone.all() and len(gone) and below.startswith("rejected"):
            self._change.remove(below)  # a published table has at least one row
        elif gone.any():
            write(self._change.place(below), table.filter(pa.array(~gone)))

    def _images_of_archives(self) -> None:
        """The list of the images inside the archives, and its index by the hash of their URL."""
        urls = set[str]()
        for unit, found in units_of(self._root, "gather/images"):
            path = file_of("gather/images", unit, "images")
            table = storage.read_table(os.path.join(self._root, path))
            gone = self._covers_images(table)
            if gone.any():
                urls.update(table["url"].filter(pa.array(gone)).to_pylist())
                kept = table.filter(pa.array(~gone))
                storage.write_table(self._change.place(path), kept)
                self._manifest("gather/images", unit, {**found, "images": kept.num_rows})
        if urls:
            words = hashing.hash_strings(pa.array(sorted(urls), pa.string()))
            for unit, found in units_of(self._root, "fetch/archived"):
                if found["images"]:
                    self._archived(unit, found, words)

    def _archived(self, unit: int, found: dict[str, Any], words: npt.NDArray[np.uint64]) -> None:
        paths = {name: file_of("fetch/archived", unit, name) for name in ("hash", "source", "offset")}
        arrays = {name: storage.map_array(os.path.join(self._root, path)) for name, path in paths.items()}
        wanted = {tuple(pair) for pair in words.tolist()}
        near = np.flatnonzero(np.isin(arrays["hash"][:, 0], words[:, 0]))
        gone = [row for row in near.tolist() if tuple(arrays["hash"][row].tolist()) in wanted]
        if gone:
            for name, path in paths.items():
                storage.save_array(self._change.place(path), np.delete(arrays[name], gone, axis=0))
            self._manifest("fetch/archived", unit, {**found, "images": found["images"] - len(gone)})

    # --------------------------------------------------------------------------------------------------- small things

    def _empty(self, folder: str) -> None:
        """Empties the bucket files of a step."""
        path = os.path.join(self._root, "stages", folder)
        for name in storage.names(path):
            full = os.path.join(path, name)
            if storage.read_range(full, 0, len(shuffle_files.MAGIC)) != shuffle_files.MAGIC:
                continue
            count = count_of_buckets(full)
            if storage.size(full) > shuffle_files.HEAD.size + shuffle_files.ENTRY.size * count:
                _write_buckets(self._change.place(f"stages/{folder}/{name}"), [None] * count)

    def _manifest(self, folder: str, unit: int, body: dict[str, Any]) -> None:
        storage.write_json(self._change.place(file_of(folder, unit, "json")), body)


def count_of_buckets(path: str) -> int:
    """The number of buckets of a bucket file."""
    return shuffle_files.HEAD.unpack(storage.read_range(path, 0, shuffle_files.HEAD.size))[1]


def _write_buckets(path: str, messages: list[pa.Buffer | None]) -> None:
    shuffle_files.write(path, messages)


def _hashes(batches: Any) -> npt.NDArray[np.uint64]:
    return np.concatenate([np.zeros(0, np.uint64), *(batch["row_hash"].to_numpy() for batch in batches)])


def _places(rows: pa.Table) -> Iterator[Place]:
    """Where the images of rows of the fetch lie."""
    columns = (rows[name].to_pylist() for name in ("status", *PLACE))
    return (row[1:] for row in zip(*columns, strict=True) if row[0] == "ok")
