"""The page of a published folder (report/index.html), and `finish`, the last step of a publication.

The pages depend only on the published rows, the ledger and the options. They contain no time, no host and no version.
So they can be part of the digest of the manifest. The page loads nothing, and its policy allows one script: the filter
of the gallery. Text from the data is escaped, and its control and bidirectional characters are removed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import card, croissant, query_curve, report_facts, shards
from pipeline.dataset.pages import template
from pipeline.dataset.ranges import Ranges
from pipeline.dataset.shards import METADATA, FileEntry, ShardInfo
from pipeline.dataset.summary import Pick, Summary, charts, hosts, top
from pipeline.engine import rights_ledger, storage
from pipeline.engine.ledger import lines_on_inputs
from pipeline.schema import CONTAMINATION_FILE, DUPLICATES_FILE

PICTURES = 200  # of the gallery, as far as `report_facts.MOST_PICTURES` allows


def finish(
    folder: str,
    infos: Sequence[ShardInfo],
    *,
    ranges: Ranges,
    summary: Summary,
    pick: Pick,
    ledger: list[dict[str, Any]],
    options: Mapping[str, Any],
    versions: Mapping[str, str],
    damaged: Mapping[str, Any] = types.MappingProxyType({}),
    evaluation: Mapping[str, Mapping[str, int]] = types.MappingProxyType({}),
    more: Sequence[pa.Field] = (),
    balancing: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] = types.MappingProxyType({}),
    crawled: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Finishes a publication: writes sizes.json, then the pages, then manifest.json.

    Args:
        folder: the published folder, with all shards, `rejected/` and queries.parquet (each may be absent).
        infos: what `write_shard` returned for the shards of the set. Other files in the folder are ignored.
        ranges: of the set. A range without a row has no shard.
        summary, pick: of the rows of these shards (`summary.summarise` or `merge`).
        ledger: stage, rows_in, rows_out, dropped of each stage, in order.
        options: the options that decide the rows.
        versions: of the code.
        damaged: the inputs that lost records, as `engine.ledger.damaged_inputs` names them.
        evaluation: set of evaluation images -> images, unreadable.
        more: the columns of the metadata behind those of METADATA.
        balancing: `cap` (None: there was none) and `before` (`query_curve.thin` of the pairs before balancing).
        pictures: key -> JPEG of pairs that were dropped as duplicates or for their shape, as far as the report may
            show them.
        crawled: `croissant.crawl_days` of the inputs; None or {}: no archive told it.

    Returns:
        The manifest.
    """
    infos = sorted(infos, key=lambda info: info.number)
    if infos and infos[-1].number >= ranges.count:
        raise shards.ShardError(f"there is a shard {infos[-1].number}, of {ranges.count} ranges")
    entries = [entry for info in infos for entry in info.files]
    entries.append(shards.write_sizes(folder, infos))
    entries += _tables_beside(folder)
    queries = _queries(folder)
    tars = [info.files[0].path for info in infos]
    facts: dict[str, Any] = {"s": summary, "shards": tars, "ranges": ranges.count, "queries": len(queries)}
    overlap = overlaps(folder, evaluation)
    facts["overlap"] = overlap
    facts["damaged"] = lines_on_inputs(damaged)
    about = croissant.About.of(
        entries, options, crawled, languages=card.languages_of(summary), sources=card.sources_of(summary)
    )
    pages = {
        "README.md": card.card(facts, about=about, ledger=ledger, options=options),
        "report/index.html": page(
            facts,
            ledger=ledger,
            queries=queries,
            gallery=_gallery(folder, pick, ranges, queries),
            rejected=report_facts.rejected(folder),
            options=options,
            failures=report_facts.failures(folder, ledger),
            groups=_groups(folder, infos, ranges, pictures),
            pictures=pictures,
            balancing=balancing,
        ),
        "croissant.json": croissant.text(about, entries, pa.schema([*METADATA, *more])),
    }
    for path, text in pages.items():
        storage.write_plain(os.path.join(folder, path), text.encode())
        entries.append(shards.entry_of(folder, path))
    return shards.write_manifest(
        folder,
        entries,
        ledger=ledger,
        options=options,
        versions=versions,
        queries={"rows": len(queries), "digest": shards.digest_of_queries(queries)},
        shards={"ranges": ranges.count},
        **({"damaged_inputs": dict(damaged)} if damaged else {}),
        **({"contamination": overlap} if overlap else {}),
        **({"balancing": dict(balancing)} if balancing else {}),
        **({"crawled": dict(crawled)} if crawled else {}),
    )


def overlaps(folder: str, evaluation: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Set of evaluation images -> images, unreadable; the images that a dropped pair shows; and these pairs.

    Section 5 of the CLIP paper calls the second number the overlap of the set.
    """
    if not evaluation:
        return {}
    table = storage.read_published(os.path.join(folder, CONTAMINATION_FILE), ["key", "set", "image"])
    found = {}
    for name, counted in evaluation.items():
        some = table.filter(pc.equal(table["set"], name))
        distinct = {column: pc.count_distinct(some[column]).as_py() for column in ("image", "key")}
        numbers = {"images": counted["images"], "unreadable": counted["unreadable"]}
        found[name] = {**numbers, "overlap": distinct["image"], "pairs": distinct["key"]}
    return found


# ---------------------------------------------------------------------------------------------- facts for the pages


def _tables_beside(folder: str) -> list[FileEntry]:
    entries = []
    for path in [*report_facts.rejected_tables(folder), CONTAMINATION_FILE, DUPLICATES_FILE, "queries.parquet"]:
        if storage.exists(os.path.join(folder, path)):
            with storage.published(os.path.join(folder, path)) as file:
                entries.append(shards.entry_of(folder, path, rows=file.metadata.num_rows))
    return entries


def _queries(folder: str) -> list[str]:
    """The query of each id."""
    path = os.path.join(folder, "queries.parquet")
    return storage.read_published(path, ["query"])["query"].to_pylist() if storage.exists(path) else []


def _gallery(folder: str, pick: Pick, ranges: Ranges, queries: Sequence[str]) -> list[dict[str, Any]]:
    """The picked rows with their pictures, as many as the page has room for."""
    table, room = pick.table(), report_facts.MOST_PICTURES
    if table is None:
        return []
    shown = []
    for row in table.append_column("host", hosts(table["url"])).to_pylist():
        if row["jpg_size"] > report_facts.MOST_PICTURE:
            continue
        room -= row["jpg_size"]
        if room < 0:
            break
        path = os.path.join(folder, shards.tar_path(row["shard"], ranges.digits))
        data = report_facts.encoded(storage.read_range(path, row["jpg_offset"], row["jpg_size"]))
        named = [queries[number] for number in row["query_ids"] if number < len(queries)]
        shown.append(row | {"data": data, "queries": named})
    return shown


def _groups(
    folder: str, infos: Sequence[ShardInfo], ranges: Ranges, pictures: Mapping[str, bytes]
) -> list[list[dict[str, Any]]]:
    """Groups of duplicates: the pair that stayed, if it is in the set, and those that were dropped for it."""
    groups = []
    metadata = {info.number: info.files[1].path for info in infos}
    for keeper, dropped in report_facts.duplicate_keys(folder):
        row = _published_row(folder, metadata, ranges, keeper)
        if row is None:
            continue
        path = os.path.join(folder, shards.tar_path(row["shard"], ranges.digits))
        data = report_facts.encoded(storage.read_range(path, row["jpg_offset"], row["jpg_size"]))
        group = [{"key": keeper, "text": row["text"], "what": "stayed", "data": data}]
        for one in dropped:
            what = f"{one['kind'].replace('_', ' ')}, {one['distance']} bits"
            data = report_facts.encoded(pictures.get(one["key"], b""))
            group.append({"key": one["key"], "text": "", "what": what, "data": data})
        groups.append(group)
    return groups


def _published_row(folder: str, metadata: Mapping[int, str], ranges: Ranges, key: str) -> dict[str, Any] | None:
    """What the metadata says of a key; None: it is not in the set."""
    number = ranges.of_key(key)
    if number not in metadata:
        return None
    table = storage.read_published(
        os.path.join(folder, metadata[number]), ["key", "text", "shard", "jpg_offset", "jpg_size"]
    )
    found = table.filter(pc.equal(table["key"], key)).to_pylist()
    return found[0] if found else None


# ------------------------------------------------------------------------------------------------------- the pages


def page(
    facts: Mapping[str, Any],
    *,
    ledger: list[dict[str, Any]],
    queries: Sequence[str],
    gallery: list[dict[str, Any]],
    rejected: list[dict[str, str]],
    options: Mapping[str, Any],
    failures: list[dict[str, Any]],
    groups: list[list[dict[str, Any]]],
    pictures: Mapping[str, bytes],
    balancing: Mapping[str, Any] | None,
) -> str:
    """report/index.html."""
    s: Summary = facts["s"]
    before = balancing or {"cap": None, "before": []}
    curves = {"before": before["before"], "after": query_curve.thin(s.matched.counts, queries)}
    drawn = [(title, rows) for title, rows in charts(s) if rows]
    script = _script()
    picked = top(s.kept_by or s.matched, 30)
    return template("report.html.j2").render(
        **facts,
        funnel=funnel(ledger),
        drops=report_facts.drops(ledger, rejected, pictures),
        failures=failures,
        groups=groups,
        curve=query_curve.draw(curves, before["cap"]),
        titles={"before": "before balancing", "after": "in the set"},
        charts=[(title, [(*row, "") for row in rows]) for title, rows in drawn if len(rows) > 1],
        single=[(title, rows[0][0]) for title, rows in drawn if len(rows) == 1],
        choices=_choices(gallery),
        script=script,
        script_digest=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        top_queries=[
            (queries[number] if number < len(queries) else f"query {number}", s.matched[number], s.kept_by[number])
            for number, _ in picked
        ],
        gallery=gallery,
        rights=rights_ledger.lines(rights_ledger.of_stages(ledger, options), examples=True),
    )


def _script() -> str:
    """The filter of the gallery. It is the same for all sets."""
    return storage.read(os.path.join(os.path.dirname(__file__), "templates", "report.js")).decode()


def _choices(gallery: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What the filters of the gallery offer, sorted."""
    return {
        "languages": sorted({row["language"] for row in gallery if row["language"]}),
        "domains": sorted({row["host"] for row in gallery}),
        "queries": sorted({query for row in gallery for query in row["queries"]}),
    }


def funnel(ledger: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """(stage, pairs that leave it, share of the pairs that enter it). The first row counts the pairs that were read."""
    if not ledger:
        return []
    rows = [("read", ledger[0]["rows_in"], "")]
    for row in ledger:
        share = f"({row['rows_out'] / row['rows_in']:.1%})" if row["rows_in"] else ""
        rows.append((row["stage"], row["rows_out"], share))
    return rows
