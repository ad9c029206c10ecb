"""The summary of training content that Article 53(1)(d) of the EU's AI Act asks for, as far as a set can tell it.

The sections are those of the template of the European Commission (24 July 2025): 1 general information, 2 list of data
sources, 3 data processing. A provider of a model fills in what no set can know: those values are null in the JSON, and
are marked in the Markdown. The domains are counted over the metadata of the set as it is, so the summary follows
`forget` and `--extend`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.card import FROM_TABLES
from pipeline.dataset.croissant import NAME, version_of
from pipeline.dataset.pages import template
from pipeline.dataset.shards import FileEntry
from pipeline.dataset.summary import NO_VALUE, hosts, top
from pipeline.dataset.tombstones import Tombstones
from pipeline.engine import rights_ledger, storage

if TYPE_CHECKING:
    from pipeline.dataset.open_set import OpenSet

COLUMNS = ("url", "page_url", "text_source", "source_file", "language", "jpg_size", "txt_size")
SHARE = 10  # per cent of the domains, the largest by the size of what was taken: section 2.3 of the template
SHARE_OF_SMALL, MOST_OF_SMALL = 5, 1_000  # small and medium enterprises: 5 % or 1,000 domains, whichever is lower
BYTES_PER_TOKEN = 4  # of a text, roughly; it only chooses a range
# Section 1.3: (from, the range in the words of the template), the largest first.
TEXT_RANGES = ((10**13, "more than 10 trillion tokens"), (10**9, "1 billion to 10 trillion tokens"),
               (0, "less than 1 billion tokens"))  # fmt: skip
IMAGE_RANGES = ((10**9 + 1, "more than 1 billion images"), (10**6, "1 million to 1 billion images"),
                (0, "less than 1 million images"))  # fmt: skip
TABLES = 50  # that are named
COMMON_CRAWL = ("CC-MAIN-", "crawl-data/")
ILLEGAL = ("blocklisted",)  # reasons of drops by lists of the provider
PERSONAL = ("personal",)
_HOST = r"^.*@|:\d*$|\.$"


class Counted:
    """Counts of the metadata, shard by shard. Memory grows with the number of domains."""

    def __init__(self) -> None:
        self.pairs = self.text_bytes = self.image_bytes = 0
        self.domains: Counter[str] = Counter()  # bytes: of the images of a host, and of the texts of its pages
        self.languages: Counter[str] = Counter()
        self.tables: Counter[str] = Counter()  # pairs by input
        self.archives: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        """Counts rows with COLUMNS."""
        self.pairs += table.num_rows
        self.text_bytes += pc.sum(table["txt_size"]).as_py() or 0
        self.image_bytes += pc.sum(table["jpg_size"]).as_py() or 0
        self.languages.update(_sums(table["language"].fill_null(NO_VALUE), None))
        of_tables = pc.equal(table["text_source"], FROM_TABLES)
        self.tables.update(_sums(table["source_file"].filter(of_tables), None))
        self.archives.update(_sums(table["source_file"].filter(pc.invert(of_tables)), None))
        self.domains.update(_sums(domains(table["url"]), table["jpg_size"]))
        has_page = pc.not_equal(table["page_url"], "")
        self.domains.update(_sums(domains(table["page_url"].filter(has_page)), table["txt_size"].filter(has_page)))


def domains(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """The domain name of each URL: the host in lower case, without port and without www in front."""
    names = pc.replace_substring_regex(pc.utf8_lower(hosts(urls)), _HOST, "")
    return pc.replace_substring_regex(names, r"^www\.", "")


def _sums(names: pa.ChunkedArray, sizes: pa.ChunkedArray | None) -> dict[str, int]:
    """The sum of the sizes of each name; None: the number of its rows."""
    values = pa.chunked_array([pa.repeat(1, len(names))]) if sizes is None else sizes.cast(pa.int64())
    found = pa.table({"name": names.combine_chunks(), "size": values.combine_chunks()})
    sums = found.group_by("name", use_threads=False).aggregate([("size", "sum")])
    return dict(zip(sums["name"].to_pylist(), sums["size_sum"].to_pylist(), strict=True))


def summarise(opened: OpenSet, *, small: bool = False) -> dict[str, Any]:
    """The summary as JSON.

    Args:
        opened: the published set.
        small: the provider is a small or medium enterprise.

    Raises:
        Damaged: a file cannot be read.
    """
    counted = Counted()
    for table in opened.rows(COLUMNS):
        counted.add(table)
    manifest = opened.manifest
    entries = [FileEntry(**entry) for entry in manifest["files"]]
    options, ledger = manifest.get("options") or {}, manifest.get("ledger") or []
    return {
        "about": {
            "set": NAME,
            "version": version_of(entries),
            "digest": opened.digest,
            "template": "European Commission, 24 July 2025, for Article 53(1)(d) of Regulation (EU) 2024/1689",
        },
        "1_general_information": _general(counted, manifest, opened.root),
        "2_list_of_data_sources": _sources(counted, manifest, opened.root, small=small),
        "3_data_processing": _processing(ledger, options, opened.root),
    }


def _general(counted: Counted, manifest: Mapping[str, Any], root: str) -> dict[str, Any]:
    fetched = fetch_period(root)
    latest = max(filter(None, [(manifest.get("crawled") or {}).get("last"), fetched and fetched[1]]), default=None)
    tokens = counted.text_bytes // BYTES_PER_TOKEN
    return {
        "1.1_provider": {"name": None, "contact": None, "authorised_representative": None},
        "1.2_model": {"versioned_name": None, "dependencies": None, "date_of_placement_on_the_market": None},
        "1.3_modalities": {
            "text": {"size": _range(tokens, TEXT_RANGES), "bytes": counted.text_bytes,
                     "content": "alternative texts, titles and captions of images on web pages"},
            "image": {"size": _range(counted.pairs, IMAGE_RANGES), "images": counted.pairs,
                      "bytes": counted.image_bytes, "content": "images on web pages, of all kinds"},
            "latest_date_of_data_acquisition": _month(latest),
            "languages": [{"code": code, "pairs": number} for code, number in top(counted.languages, 50)],
        },
    }  # fmt: skip


def _sources(counted: Counted, manifest: Mapping[str, Any], root: str, *, small: bool) -> dict[str, Any]:
    largest = largest_domains(counted.domains, small=small)
    crawled, fetched = manifest.get("crawled") or {}, fetch_period(root)
    options = manifest.get("options") or {}
    contact = options.get("user_agent_contact")
    agent = f"OpenWIT/1.0 (+{contact})" if contact else "OpenWIT/1.0"
    common = [name for name in counted.archives if any(mark in name for mark in COMMON_CRAWL)]
    crawlers = []
    if counted.archives:
        known = len(common) == len(counted.archives)
        crawlers.append({
            "name": "CCBot (Common Crawl)" if known else None,
            "purpose": "to collect web pages; this set takes images and their texts from the archives",
            "behaviour": "as its operator states it",
            "period": [_month(crawled.get("first")), _month(crawled.get("last"))],
            "inputs": len(counted.archives),
        })  # fmt: skip
    crawlers.append({
        "name": agent,
        "purpose": "to fetch the images that the set holds, as far as no archive holds them",
        "behaviour": "robots.txt, headers and files that refuse AI training are asked first (section 3.1); Retry-After "
        "and Crawl-delay are kept; no password, CAPTCHA or paywall is passed; an image that is there is not asked for "
        "again",
        "period": [_month(fetched[0]), _month(fetched[1])] if fetched else [None, None],
    })  # fmt: skip
    return {
        "2.1_publicly_available_datasets": [
            {"input": name, "pairs": pairs, "publicly_available": None} for name, pairs in top(counted.tables, TABLES)
        ],
        "2.2_private_datasets_of_third_parties": None,
        "2.3_data_crawled_and_scraped": {
            "crawlers": crawlers,
            "modalities": ["text", "image"],
            "domains": {
                "counted": len(counted.domains),
                "listed": len(largest),
                "rule": _rule(small),
                "size": "bytes of the images of a host and of the texts of its pages, as the set stores them",
                "largest": [{"domain": name, "bytes": size} for name, size in largest],
            },
        },
        "2.4_user_data": "none was collected",
        "2.5_synthetic_data": "none was made; the web may hold images and texts that machines made",
        "2.6_other_sources": None,
    }


def _processing(ledger: Sequence[dict[str, Any]], options: Mapping[str, Any], root: str) -> dict[str, Any]:
    found = rights_ledger.of_stages(ledger, options)
    protocols = {
        name: {
            part: {what: found[part][name].get(what, 0) for what in ("seen", "pairs", "hosts")}
            for part in ("pages", "images")
            if name in found[part]
        }
        for name in sorted({*found["pages"], *found["images"]})
    }
    stones = Tombstones.load(root)
    return {
        "3.1_reservations_of_rights": {
            "signatory_of_the_code_of_practice": None,
            "protocols_honoured": protocols,
            "groups_of_robots_txt": list(options.get("robots_agents") or []),
            "not_honoured_by_option": found["ignored"],
            "removal_on_request": {"entries_on_record": len(stones.hashes) if stones else 0},
        },
        "3.2_illegal_content": {
            "left_out_by_block_lists": _dropped(ledger, ILLEGAL),
            "left_out_as_personal": _dropped(ledger, PERSONAL),
            "measures": "pairs on block lists of addresses and of hashes are left out, if lists were given; texts with "
            "an e-mail address or a telephone number"
            + (" were kept (--keep-personal)" if options.get("keep_personal") else " are left out")
            + "; pairs are removed on request (pipeline.forget)",
        },
        "3.3_other": None,
    }


def _dropped(ledger: Sequence[Mapping[str, Any]], reasons: Sequence[str]) -> int:
    return sum(row["dropped"].get(reason, 0) for row in ledger for reason in reasons)


def largest_domains(sizes: Mapping[str, int], *, small: bool) -> list[tuple[str, int]]:
    """The largest tenth of the domains, at least one; of a small enterprise 5 % or 1,000, whichever is lower."""
    share = -(-len(sizes) * (SHARE_OF_SMALL if small else SHARE) // 100)
    return top(Counter(sizes), min(share, MOST_OF_SMALL) if small else share)


def _rule(small: bool) -> str:
    some = f"{SHARE_OF_SMALL} % or {MOST_OF_SMALL:,}, whichever is lower" if small else f"{SHARE} %"
    return f"top {some} of all domain names, by the size of what was taken from them"


def fetch_period(root: str) -> tuple[str, str] | None:
    """The first and the last day of the fetch, by the times of its files; None: a copy, without the stages."""
    folder = os.path.join(root, "stages", "fetch")
    days = [time.strftime("%Y-%m-%d", time.gmtime(one)) for one in storage.times(folder)]
    return (min(days), max(days)) if days else None


def _month(day: str | None) -> str | None:
    """YYYY-MM-DD -> MM/YYYY, as the template has it."""
    return f"{day[5:7]}/{day[:4]}" if day else None


def _range(number: int, ranges: Sequence[tuple[int, str]]) -> str:
    return next(words for least, words in ranges if number >= least)


def markdown(found: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    return template("summary.md.j2").render(found=found)
