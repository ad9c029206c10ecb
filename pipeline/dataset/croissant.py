"""croissant.json: the set described for machines, by Croissant 1.1 of MLCommons and its vocabulary RAI 1.0.

    shards/*.tar --FileSet images--> record set pictures (key, image) --join by key--> pairs (key, text, image)
    metadata/*.parquet --FileSet metadata--> record set samples (all columns)

The file is a function of the published rows and the options. Its version changes if and only if the data change. Its
date is that of --date, else the newest day on which an archive of the inputs was crawled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.dataset.pages import count
from pipeline.dataset.shards import METADATA, FileEntry
from pipeline.engine.display import sanitize

NAME = "OpenWIT image-text pairs"
NO_CREATOR = "a user of OpenWIT"
LICENSE = "https://www.rightsstatements.org/vocab/UND/1.0/"  # copyright undetermined
CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
VERSION_DIGITS = 12

# Of the specification, appendix 1. Another context makes readers warn.
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
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

LIMITS = (
    "The texts are unchecked: they hold errors, stereotypes, personal names, and things that are offensive or untrue.",
    "No person has looked at the images.",
    "The language of a text is named by a model, and short texts are often named wrongly.",
    "Near-duplicates are found by perceptual hashes: some stay, and few pairs fall that are no duplicates.",
)
BIASES = (
    "Pairs are found by the words of the query list: its languages and subjects are over-represented.",
    "The pages are those of the web archives and tables that were read, not a sample of the web or of the world.",
)
PERSONAL = (
    "Texts with an e-mail address or a telephone number were left out, unless --keep-personal was given. Names of "
    "persons and pictures of persons remain.",
)


@dataclasses.dataclass(frozen=True)
class About:
    """What the description says of the set.

    Attributes:
        version: of the data, by semantic versioning.
        date: of publication, YYYY-MM-DD; None: it is not known.
        crawled: first and last day on which archives of the inputs were crawled; None: no archive told it.
        creator: of the set.
        languages: codes of the languages of texts.
        sources: where the pairs come from, in words.
        pairs: their number.
    """

    version: str
    date: str | None
    crawled: tuple[str, str] | None
    creator: str
    languages: tuple[str, ...]
    sources: str
    pairs: int

    @classmethod
    def of(
        cls,
        entries: Sequence[FileEntry],
        options: Mapping[str, Any],
        crawled: Mapping[str, Any] | None,
        *,
        languages: Sequence[str],
        sources: str,
    ) -> About:
        """What follows from the published files and the options.

        Args:
            entries: the published files, the pages left out.
            options: `date` and `creator` are used, if they are given.
            crawled: as `crawl_days` gives it; None: not known.
            languages: codes of the languages of texts.
            sources: where the pairs come from, in words.
        """
        days = (crawled["first"], crawled["last"]) if crawled else None
        date = options.get("date") or (days[1] if days else None)
        creator = sanitize(options.get("creator") or NO_CREATOR)
        pairs = sum(entry.rows for entry in entries if entry.path.endswith(".tar"))
        return cls(version_of(entries), date, days, creator, tuple(languages), sources, pairs)

    def citation(self) -> str:
        """The set as an entry of BibTeX."""
        key = f"openwit-{self.version.partition('+')[2]}"
        plain = "".join(character for character in self.creator if character not in "{}\\")
        year = f",\n  year = {{{self.date[:4]}}}" if self.date else ""
        note = f"Version {self.version}, {count(self.pairs, 'pair')}"
        return f"@misc{{{key},\n  title = {{{NAME}}},\n  author = {{{{{plain}}}}}{year},\n  note = {{{note}}}\n}}"


def version_of(entries: Sequence[FileEntry]) -> str:
    """1.0.0+ and the first digits of the sha256 over paths and sha256 of shards and metadata."""
    data = sorted((entry.path, entry.sha256) for entry in entries if _is_data(entry.path))
    digest = hashlib.sha256("".join(f"{sha256}  {path}\n" for path, sha256 in data).encode()).hexdigest()
    return f"1.0.0+{digest[:VERSION_DIGITS]}"


def _is_data(path: str) -> bool:
    return path.endswith(".tar") or path.startswith("metadata/")


def crawl_days(days: Mapping[str, int]) -> dict[str, Any]:
    """{"first": day, "last": day, "archives": number} of the days on which archives begin; {} if there are none."""
    return {"first": min(days), "last": max(days), "archives": sum(days.values())} if days else {}


def text(about: About, entries: Sequence[FileEntry], columns: pa.Schema = METADATA) -> str:
    """The content of croissant.json."""
    return json.dumps(describe(about, entries, columns), indent=1, ensure_ascii=False) + "\n"


def describe(about: About, entries: Sequence[FileEntry], columns: pa.Schema = METADATA) -> dict[str, Any]:
    """croissant.json: every shard with its digest, the images in the shards, the columns of the metadata.

    Args:
        about: the set.
        entries: the published files; those that are no shards or metadata are left out.
        columns: of the metadata.
    """
    tars = [entry for entry in entries if entry.path.endswith(".tar")]
    tables = [entry for entry in entries if entry.path.startswith("metadata/")]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": NAME.replace(" ", "-"),
        "description": f"{count(about.pairs, 'pair')} of an image and its text from {about.sources}.",
        "version": about.version,
        **({"datePublished": about.date} if about.date else {}),
        "creator": {"@type": "sc:Organization", "name": about.creator},
        "license": LICENSE,
        "citeAs": about.citation(),
        "keywords": ["image-text", "CLIP", "webdataset"],
        **({"inLanguage": list(about.languages)} if about.languages else {}),
        "isLiveDataset": False,
        "rai:dataCollection": f"Images and the texts that stand with them, from {about.sources}.",
        "rai:dataCollectionType": ["Web Scraping"],
        **({"rai:dataCollectionTimeframe": list(about.crawled)} if about.crawled else {}),
        "rai:dataLimitations": list(LIMITS),
        "rai:dataBiases": list(BIASES),
        "rai:personalSensitiveInformation": list(PERSONAL),
        "rai:dataUseCases": ["Training and study of models of images and texts, such as CLIP"],
        "distribution": [
            *(_file_object(entry, "application/x-tar") for entry in tars),
            *(_file_object(entry, "application/x-parquet") for entry in tables),
            _file_set("images", "image/jpeg", "*.jpg") | {"containedIn": [{"@id": entry.path} for entry in tars]},
            _file_set("metadata", "application/x-parquet", "metadata/*.parquet"),
        ],
        "recordSet": [_image_records(), _metadata_records(columns), _pair_records()],
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


def _records(name: str, what: str, fields: Sequence[dict[str, Any]], *, key: bool = False) -> dict[str, Any]:
    keyed = {"key": {"@id": f"{name}/key"}} if key else {}
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": what, **keyed, "field": list(fields)}


def _field(records: str, name: str, kind: str, source: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    identity = {"@type": "cr:Field", "@id": f"{records}/{name}", "name": name}
    return {**identity, "dataType": kind, "source": dict(source), **more}


def _image_records() -> dict[str, Any]:
    """The images. The file name of an image is the key of its metadata row and `.jpg`."""
    source = {"fileSet": {"@id": "images"}}
    name = source | {"extract": {"fileProperty": "filename"}, "transform": {"regex": r"^(.*)\.jpg$"}}
    fields = [
        _field("pictures", "key", "sc:Text", name),
        _field("pictures", "image", "sc:ImageObject", source | {"extract": {"fileProperty": "content"}}),
    ]
    return _records("pictures", "The images, by key.", fields, key=True)


def _pair_records() -> dict[str, Any]:
    """The images joined with their texts by the key."""
    fields = [
        _field("pairs", "key", "sc:Text", _column("key"), references={"field": {"@id": "pictures/key"}}),
        _field("pairs", "text", "sc:Text", _column("text")),
        _field("pairs", "image", "sc:ImageObject", {"field": {"@id": "pictures/image"}}),
    ]
    return _records("pairs", "Each image with its text.", fields, key=True)


def _metadata_records(columns: pa.Schema) -> dict[str, Any]:
    """The columns of the metadata."""
    fields = []
    for field in columns:
        repeated = pa.types.is_list(field.type)
        kind = str(field.type.value_type) if repeated else str(field.type)
        more = {"repeated": True} if repeated else {}
        fields.append(_field("samples", field.name, _type(kind), _column(field.name), **more))
    return _records("samples", "A row for each pair, without the image.", fields)


def _column(name: str) -> dict[str, Any]:
    return {"fileSet": {"@id": "metadata"}, "extract": {"column": name}}


def _type(kind: str) -> str:
    """The type of Croissant for a type of Arrow."""
    return "sc:Integer" if kind.lstrip("u").startswith("int") else TYPES[kind]
