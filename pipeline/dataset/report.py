"""The pages of a published folder (dataset card, croissant.json, report/index.html), and `finish`, its last step.

The pages depend only on the published rows, the ledger and the options. They contain no time, no host and no version.
So they can be part of the digest of the manifest. The page loads nothing, and its policy allows one script: the filter
of the gallery. Text from the data is escaped, and its control and bidirectional characters are removed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import query_curve, report_facts, shards
from pipeline.dataset.ranges import Ranges
from pipeline.dataset.shards import METADATA, FileEntry, ShardInfo
from pipeline.dataset.summary import Pick, Summary, charts, hosts, top
from pipeline.engine import rights_ledger, storage
from pipeline.engine.display import sanitize, size
from pipeline.engine.ledger import lines_on_inputs
from pipeline.schema import CONTAMINATION_FILE, DUPLICATES_FILE

if TYPE_CHECKING:
    import jinja2

NAME = "OpenWIT image-text pairs"
PICTURES = 200  # of the gallery, as far as `report_facts.MOST_PICTURES` allows
# Options that the card shows. The manifest has all options.
CARD_OPTIONS = ("match case languages placeholder_bound common_text_bound balance cap target_pairs seed keep").split()


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
        pictures: key -> JPEG of pairs that were dropped as duplicates, as far as the report may show them.

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
    pages = {
        "README.md": card(facts, ledger=ledger, options=options),
        "report/index.html": page(
            facts,
            ledger=ledger,
            queries=queries,
            gallery=_gallery(folder, pick, ranges, queries),
            rejected=report_facts.rejected(folder),
            options=options,
            failures=report_facts.failures(folder, ledger),
            groups=_groups(folder, infos, ranges, pictures),
            balancing=balancing,
        ),
        "croissant.json": _croissant_text(entries, pa.schema([*METADATA, *more])),
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
    balancing: Mapping[str, Any] | None,
) -> str:
    """report/index.html."""
    s: Summary = facts["s"]
    before = balancing or {"cap": None, "before": []}
    curves = {"before": before["before"], "after": query_curve.thin(s.matched.counts, queries)}
    drawn = [(title, rows) for title, rows in charts(s) if rows]
    script = _script()
    picked = top(s.kept_by or s.matched, 30)
    return _template("report.html.j2").render(
        **facts,
        funnel=funnel(ledger),
        drops=report_facts.drops(ledger, rejected),
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


def card(facts: Mapping[str, Any], *, ledger: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
    """README.md, with the YAML header that the Hugging Face Hub reads."""
    s: Summary = facts["s"]
    named = [(code, count) for code, count in top(s.languages, 20) if re.fullmatch("[a-z]{2,3}", code)]
    reasons = [", ".join(f"{reason} {count:,}" for reason, count in sorted(row["dropped"].items())) for row in ledger]
    return _template("card.md.j2").render(
        **facts,
        name=NAME,
        languages=[code for code, count in named if count * 100 >= s.samples],
        language_rows=named,
        size_category=size_category(s.samples),
        ledger=[row | {"dropped": reason} for row, reason in zip(ledger, reasons, strict=True)],
        options=[
            (name.replace("_", " "), f"`{sanitize(_format_value(options[name])).replace('`', '')}`")
            for name in CARD_OPTIONS
            if options.get(name) not in (None, (), [], "")
        ],
        image_size=options.get("image_size", 256),
        pattern=pattern(facts["shards"]),
        licensed=s.licensed,
        balanced=options.get("balance") != "none",
        respects=options.get("respect_opt_out", True),
        ignored=options.get("ignore_rights") or (),
    )


def _format_value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def pattern(tars: Sequence[str]) -> str:
    """The names of all shards in WebDataset's brace notation. If numbers are missing, a POSIX shell must expand it."""
    if len(tars) < 2:
        return tars[0] if tars else "shards/*.tar"
    first, last = (path.removeprefix("shards/").removesuffix(".tar") for path in (tars[0], tars[-1]))
    if int(last) - int(first) == len(tars) - 1:
        return f"shards/{{{first}..{last}}}.tar"
    return "shards/{$(cd shards && ls *.tar | paste -sd, -)}"


def size_category(samples: int) -> str:
    """The Hub's tag for a number of samples."""
    bounds = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    for power, bound in enumerate(bounds, start=3):
        if samples < 10**power:
            return f"n<{bound}" if power == 3 else f"{bounds[power - 4]}<n<{bound}"
    return "n>1T"


def _template(name: str) -> jinja2.Template:
    import jinja2  # takes 0.1 s; `build --help` must not wait for it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.join(os.path.dirname(__file__), "templates")),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": sanitize, "size": size}
    return environment.get_template(name)


# ------------------------------------------------------------------------------------------------------- croissant

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
TYPES = {"float": "sc:Float", "double": "sc:Float", "string": "sc:Text", "bool": "sc:Boolean"}


def _croissant_text(entries: Sequence[FileEntry], columns: pa.Schema) -> str:
    return json.dumps(croissant(entries, columns), indent=1, ensure_ascii=False) + "\n"


def croissant(entries: Sequence[FileEntry], columns: pa.Schema = METADATA) -> dict[str, Any]:
    """croissant.json (1.0): every shard with its digest, the images in the shards, the columns of the metadata."""
    tars = [entry for entry in entries if entry.path.endswith(".tar")]
    tables = [entry for entry in entries if entry.path.startswith("metadata/")]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": NAME.replace(" ", "-"),
        "description": f"{sum(tar.rows for tar in tars)} pairs of an image and its text from web archives, balanced "
        "over a list of queries.",
        "license": "https://www.rightsstatements.org/vocab/UND/1.0/",
        "isLiveDataset": False,
        "distribution": [
            *(_file_object(entry, "application/x-tar") for entry in tars),
            *(_file_object(entry, "application/x-parquet") for entry in tables),
            _file_set("images", "image/jpeg", "*.jpg") | {"containedIn": [{"@id": entry.path} for entry in tars]},
            _file_set("metadata", "application/x-parquet", "metadata/*.parquet"),
        ],
        "recordSet": [_image_records(), _metadata_records(columns)],
    }


def _file_object(entry: FileEntry, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": entry.path,
        "name": entry.path,
        "contentUrl": entry.path,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": kind,
        "sha256": entry.sha256,
    }


def _file_set(name: str, kind: str, pattern: str) -> dict[str, Any]:
    return {"@type": "cr:FileSet", "@id": name, "name": name, "encodingFormat": kind, "includes": pattern}


def _image_records() -> dict[str, Any]:
    """The images. The file name of an image is the key of its metadata row and `.jpg`."""
    source = {"fileSet": {"@id": "images"}}
    return {
        "@type": "cr:RecordSet",
        "@id": "pictures",
        "name": "pictures",
        "key": {"@id": "pictures/key"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": "pictures/key",
                "name": "key",
                "dataType": "sc:Text",
                "source": source | {"extract": {"fileProperty": "filename"}, "transform": {"regex": r"^(.*)\.jpg$"}},
            },
            {
                "@type": "cr:Field",
                "@id": "pictures/image",
                "name": "image",
                "dataType": "sc:ImageObject",
                "source": source | {"extract": {"fileProperty": "content"}},
            },
        ],
    }


def _croissant_type(kind: str) -> str:
    """The type of Croissant for a type of Arrow."""
    return "sc:Integer" if kind.lstrip("u").startswith("int") else TYPES[kind]


def _metadata_records(columns: pa.Schema) -> dict[str, Any]:
    """The columns of the metadata."""
    fields = []
    for field in columns:
        repeated = pa.types.is_list(field.type)
        kind = str(field.type.value_type) if repeated else str(field.type)
        fields.append(
            {
                "@type": "cr:Field",
                "@id": f"samples/{field.name}",
                "name": field.name,
                "dataType": _croissant_type(kind),
                **({"repeated": True} if repeated else {}),
                "source": {"fileSet": {"@id": "metadata"}, "extract": {"column": field.name}},
            }
        )
    return {"@type": "cr:RecordSet", "@id": "samples", "name": "samples", "field": fields}
