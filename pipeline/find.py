"""Follows pairs through the stages of a run: where each one is, or at which stage it fell, and why.

The rows of match are the first that a run keeps. Of the rows that gather or match dropped, their rejected.parquet has a
sample, or all of them with --keep-rejected all.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import open_set
from pipeline.dataset.errors import Damaged, NotFound
from pipeline.dataset.tombstones import KINDS, Tombstones
from pipeline.engine import storage
from pipeline.engine.rows import Rows
from pipeline.engine.work import StageFolder, is_done
from pipeline.forget import Selection
from pipeline.schema import DUPLICATES_FILE, STAGES
from pipeline.stages.attempts import Attempts
from pipeline.stages.fetched_rules import REASONS as FETCHED_REASONS
from pipeline.stages.purge import REASONS
from pipeline.text import clean

PUBLISHED = "published"
COLUMNS = ("uid", "url", "text", "page_url")
LOOKED_AT = ("key", "url", "url_as_found", "final_url", "page_url", "sha256", "original_sha256")  # of a published set
FEW = 100  # uids that are looked up one by one


@dataclasses.dataclass
class Found:
    """A pair.

    Attributes:
        uid: hexadecimal; "" where only the URL and the text of the pair were kept.
        stage: where it fell, or the last stage that it left if the next one is not done. PUBLISHED: it is in the set.
        reason: of the drop; "" where it did not fall.
        detail: more, such as the message of the fetch, or the key of the pair that stayed in its place.
    """

    uid: str
    url: str
    text: str
    stage: str = "match"
    reason: str = ""
    detail: str = ""


def find(folder: str, selection: Selection, *, limit: int) -> list[Found]:
    """The pairs of a run that a selection covers, at most `limit`, in the order in which the run keeps them.

    Raises:
        Damaged: a file cannot be read.
    """
    root = storage.absolute(folder)
    try:
        if there := _all_published(root, selection, limit):
            return there
        wanted = _with_uids_of_images(root, selection)
        found = _matched(root, wanted, limit)
        for follow in (_deduplicated, _balanced, _fetched, _images, _published):
            follow(root, found)
        kept = list(found.values())
        kept += _of_set_alone(root, wanted, limit - len(kept)) if not kept else []
        return kept + _rejected(root, selection, limit - len(kept))
    except storage.DamagedError as error:
        raise Damaged(str(error)) from error
    except pa.ArrowException as error:
        first = str(error).splitlines()[0]
        raise Damaged(f"another version of OpenWIT may have written the stages of {folder}: {first}") from error


def like(folder: str, phash: int, *, distance: int, limit: int) -> dict[str, int]:
    """Pairs whose images have a perceptual hash near one: uid -> bits in which they differ, the nearest first.

    The fetched pairs are looked through, also those that later stages dropped; of a copy, the published ones.

    Args:
        folder: of a run, or a copy of the published files.
        phash: the 64-bit DCT hash.
        distance: the most bits.
        limit: pairs, at most.

    Raises:
        Damaged: a file cannot be read.
    """
    root, near = storage.absolute(folder), dict[str, int]()
    try:
        for table in _hashed(root):
            table = table.filter(table["phash"].is_valid())
            bits = np.bitwise_count(table["phash"].to_numpy() ^ np.uint64(phash))
            some = np.flatnonzero(bits <= distance)
            near |= dict(zip(table["uid"].take(some).to_pylist(), bits[some].tolist(), strict=True))
            near = dict(sorted(near.items(), key=lambda item: (item[1], item[0]))[:limit])
    except storage.DamagedError as error:
        raise Damaged(str(error)) from error
    return near


def has_images(folder: str) -> bool:
    """True if the images of a run were fetched, or if the folder is a copy of the published files."""
    root = storage.absolute(folder)
    return is_done(root, "fetch") or storage.exists(os.path.join(root, "manifest.json"))


def _hashed(root: str) -> Iterator[pa.Table]:
    """Tables with uid (hexadecimal) and phash."""
    if is_done(root, "fetch"):
        for table in _fetched_rows(root):
            uids = pa.array([uid.hex() for uid in table["uid"].to_pylist()], pa.string())
            yield pa.table({"uid": uids, "phash": table["phash"]})
    elif storage.exists(os.path.join(root, "manifest.json")):
        for table in open_set.open_set(root).rows(["uid", "phash"]):
            yield table


def forgotten(folder: str, selection: Selection) -> list[tuple[str, str]]:
    """(kind, value) of what the selection names and the folder has forgotten."""
    stones = Tombstones.load(storage.absolute(folder))
    named = [(kind, value) for kind in KINDS for value in sorted(getattr(selection, kind))]
    return [] if stones is None else [(kind, value) for kind, value in named if stones.covers(kind, value)]


def text_reason(text: str) -> str:
    """The reason for which gather drops a text; "" if it keeps it."""
    _, codes = clean.clean_text(pa.array([text]))
    return clean.TEXT_REASONS[int(codes[0])]


# --------------------------------------------------------------------------------------------- one stage after another


def _rows(root: str, stage: str) -> Rows | None:
    """The rows that leave a stage, if they were kept."""
    info = StageFolder(root, stage).info()
    rows = Rows.from_json(root, info["rows"]) if info and "rows" in info else None
    return rows if rows is not None and rows.parts.manifests() else None


def _with_uids_of_images(root: str, selection: Selection) -> Selection:
    """The selection with the uids of the pairs whose images or redirects it names."""
    if not (selection.sha256 or selection.url or selection.domain):
        return selection
    uids = {
        uid.hex() for table in _fetched_rows(root) for uid in table.filter(_mask(selection, table))["uid"].to_pylist()
    }
    return dataclasses.replace(selection, uid=selection.uid | uids)


def _mask(selection: Selection, table: pa.Table) -> pa.Array:
    return pa.array(selection.rows(table))


def _matched(root: str, selection: Selection, limit: int) -> dict[str, Found]:
    """The rows of match, or of gather where no later stage has run."""
    stage = next((name for name in ("match", "gather") if _rows(root, name)), None)
    found: dict[str, Found] = {}
    rows = _rows(root, stage) if stage else None
    for table in rows.tables(list(COLUMNS)) if rows else ():
        some = table.filter(_mask(selection, table))
        known = pa.array([bytes.fromhex(uid) for uid in found], pa.binary(16))
        some = some.filter(pc.invert(pc.is_in(some["uid"], known)))
        first = pc.index_in(some["uid"], pc.unique(some["uid"])).to_numpy()  # a pair may stand in several rows
        places = np.unique(first, return_index=True)[1][: limit - len(found)]
        for row in some.take(places).to_pylist():
            uid = row["uid"].hex()
            found[uid] = Found(uid, row["url"], row["text"], str(stage))
        if len(found) >= limit:
            break
    return found


def _standing(found: dict[str, Found]) -> dict[str, Found]:
    """Those that have not fallen."""
    return {uid: pair for uid, pair in found.items() if not pair.reason}


def _drop_masked(root: str, stage: str, standing: dict[str, Found]) -> None:
    """The reasons that the masks of a stage have. A pair that stays as one row of several has not fallen."""
    rows = _rows(root, stage)
    if rows is None or rows.masks is None or not standing:
        return
    wanted, kept = pa.array([bytes.fromhex(uid) for uid in standing], pa.binary(16)), set[str]()
    for unit, part, count in rows.parts_of_group(0):
        uids = [batch["uid"] for batch in storage.read_batches(rows.parts.file(unit, "arrow", part), ["uid"])]
        column = pa.chunked_array(uids, pa.binary(16))
        codes = np.frombuffer(storage.read_bytes(rows.masks.file(unit, "mask", part)), np.uint8)[:count]
        for place in pc.indices_nonzero(pc.is_in(column, wanted)).to_pylist():
            uid, code = column[place].as_py().hex(), int(codes[place])
            standing[uid].reason = REASONS[stage][code]
            standing[uid].stage = stage
            kept.update([uid] if code == 0 else [])
    for uid in kept:
        standing[uid].reason = ""


def _deduplicated(root: str, found: dict[str, Found]) -> None:
    if is_done(root, "dedup"):
        _drop_masked(root, "dedup", _standing(found))


def _balanced(root: str, found: dict[str, Found]) -> None:
    rows = _rows(root, "balance")
    if rows is None or not _standing(found):
        return
    wanted, there = pa.array([bytes.fromhex(uid) for uid in found], pa.binary(16)), set[str]()
    for table in rows.tables(["uid"]):
        there.update(uid.hex() for uid in table["uid"].filter(pc.is_in(table["uid"], wanted)).to_pylist())
    for uid, pair in _standing(found).items():
        pair.stage, pair.reason = "balance", "" if uid in there else "over_cap"


def _fetched_rows(root: str) -> Iterator[pa.Table]:
    """The newest outcome of each row."""
    fetch, info = StageFolder(root, "fetch"), StageFolder(root, "fetch").info()
    if info is None:
        return
    attempts = Attempts(dataclasses.replace(fetch, fingerprint=info["fingerprint"]), StageFolder(root, "balance"))
    for unit, _ in attempts.images(attempts.first()).manifests():
        for _, _, table in attempts.rows(unit):
            yield table


def _fetched(root: str, found: dict[str, Found]) -> None:
    if not is_done(root, "fetch") or not _standing(found):
        return
    for table in _fetched_rows(root):
        for row in table.select(["uid", "status", "error"]).to_pylist():
            pair = found.get(row["uid"].hex())
            if pair is not None and not pair.reason:
                good = row["status"] == "ok"
                pair.stage, pair.reason = "fetch", "" if good else row["status"]
                pair.detail = "" if good else row["error"] or ""


def _images(root: str, found: dict[str, Found]) -> None:
    stage = "dedup-images"
    if not is_done(root, stage) or not _standing(found):
        return
    rows = _rows(root, stage)
    for unit, _ in rows.parts.manifests() if rows else ():
        for row in storage.read_table(rows.parts.file(unit, "dropped")).to_pylist() if rows else ():
            pair = found.get(row["uid"].hex())
            if pair is not None and not pair.reason:
                pair.stage, pair.reason = stage, FETCHED_REASONS[row["reason"]]
    _drop_masked(root, stage, _standing(found))
    path = os.path.join(root, "stages", stage, DUPLICATES_FILE)
    if storage.exists(path):
        for row in storage.read_published(path).to_pylist():
            pair = found.get(row["key"])
            if pair is not None and pair.stage == stage and pair.reason:
                pair.detail = f"{row['keeper']} stayed in its place"


def _published(root: str, found: dict[str, Found]) -> None:
    standing = _standing(found)
    if not standing or not storage.exists(os.path.join(root, "manifest.json")):
        return
    wanted, there = pa.array(list(standing)), dict[str, int]()
    for table in open_set.open_set(root).rows(["key", "shard"]):
        some = table.filter(pc.is_in(table["key"], wanted))
        there.update(zip(some["key"].to_pylist(), some["shard"].to_pylist(), strict=True))
    for uid, pair in standing.items():
        if uid in there:
            pair.stage, pair.detail = PUBLISHED, f"shard {there[uid]}"
        elif is_done(root, "publish"):
            pair.stage, pair.reason = "publish", "over_cap"


# -------------------------------------------------------------------------------------------- what the stages lack


def _all_published(root: str, selection: Selection, limit: int) -> list[Found]:
    """The pairs of a selection of uids, if each is in the published set. A few small reads find them; else []."""
    kinds = {kind for kind in KINDS if getattr(selection, kind)}
    few = 0 < len(selection.uid) <= min(limit, FEW) and all(len(uid) == 32 for uid in selection.uid)
    if kinds != {"uid"} or not few or not _is_published(root):
        return []
    opened = open_set.open_set(root)
    try:
        return [_in_set(opened.row(uid)) for uid in sorted(selection.uid)]
    except NotFound:
        return []


def _is_published(root: str) -> bool:
    """True if the published files are those of the stages, or if there are no stages."""
    there = storage.exists(os.path.join(root, "manifest.json"))
    return there and (is_done(root, "publish") or not storage.exists(os.path.join(root, "stages")))


def _in_set(row: Mapping[str, Any]) -> Found:
    return Found(row["key"], row["url"], row["text"], PUBLISHED, "", f"shard {row['shard']}")


def _of_set_alone(root: str, selection: Selection, limit: int) -> list[Found]:
    """Pairs of a copy of the published files."""
    if not storage.exists(os.path.join(root, "manifest.json")):
        return []
    opened = open_set.open_set(root)
    names = [name for name in opened.schema.names if name in LOOKED_AT]

    def look(number: int) -> list[int]:
        (table,) = opened.rows(names, shard=number)
        return np.flatnonzero(selection.rows(table)).tolist()

    found: list[Found] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        numbers = [shard.number for shard in opened.shards]
        for number, places in zip(numbers, pool.map(look, numbers), strict=True):
            if places and len(found) < limit:
                (table,) = opened.rows(["key", "url", "text", "shard"], shard=number)
                found += map(_in_set, table.take(places[: limit - len(found)]).to_pylist())
    return found


def _rejected(root: str, selection: Selection, limit: int) -> list[Found]:
    """Dropped rows whose URLs were kept: of gather and match those of the stages, else those of the published files.

    Equal rows are one, with their number.
    """
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for path in _rejected_files(root):
        table = storage.read_published(path)
        some = table.filter(pa.array(selection.urls(table["url"]))).select(["url", "text", "stage", "reason"])
        counts.update((row["url"], row["text"], row["stage"], row["reason"]) for row in some.to_pylist())
    found = [
        Found("", url, text, stage, reason, f"{count:,} times" if count > 1 else "")
        for (url, text, stage, reason), count in counts.items()
    ]
    return found[: max(0, limit)]


def _rejected_files(root: str) -> Iterable[str]:
    """Where rows of gather and match lie that were dropped. Those of later stages are followed row by row."""
    stages = [os.path.join(root, "stages", name, "rejected.parquet") for name in STAGES[:2]]
    here = [path for path in stages if storage.exists(path)]
    folder = os.path.join(root, "rejected")
    names = storage.names(folder) if not here else []
    return here or [os.path.join(folder, name) for name in names if name.endswith(".parquet")]


def to_json(pairs: Iterable[Found]) -> list[dict[str, Any]]:
    """The pairs as a JSON list."""
    return [dataclasses.asdict(pair) for pair in pairs]
