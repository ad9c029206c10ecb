r"""Variants of one image: URLs that lead to the same picture in different sizes, or by different ways.

`variant_of(url)` gives the key that all variants of an image share, and the size that the URL names. The key is no URL
to be fetched: it may lead nowhere. These differences do not change the key:

- http and https;
- parameters that only track a reader (TRACKING);
- WordPress's sizes of an upload: `photo-300x200.jpg`, `photo-scaled.jpg` and `photo.jpg`;
- parameters and parts of paths that name a size, for the hosts in `data/image_sizes.tsv`.

The columns of that table: `host` (`*.` stands for any subdomain), `part` (query or path), `pattern` (the names of
parameters, or a regular expression for the whole path), `replacement` of the path, and `sizes` (words of group `s`, in
pixels). Its groups `w` and `h` are sizes in pixels. The sources are the manuals of the services.

`variants` does whole columns: one search by RE2 finds the few URLs that `variant_of` must see.
"""

from __future__ import annotations

import csv
import functools
import re
from importlib import resources
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing, jit

TRACKING = frozenset(
    "fbclid gclid dclid gbraid wbraid msclkid yclid igshid mc_cid mc_eid _ga _gl _hsenc _hsmi mkt_tok".split()
)
TRACKING_PREFIX = "utm_"
_PHOTON = ("i0.wp.com", "i1.wp.com", "i2.wp.com", "i3.wp.com")  # one service
FULL = 0xFFFF  # the size of a URL that names none: that of the image itself
_UPLOAD = re.compile(r"(.+)-(?:(?P<w>[0-9]{2,4})x(?P<h>[0-9]{2,4})|scaled)(\.(?:jpe?g|png|gif|webp|avif))", re.I)
SCALED = 2560  # pixels of the long side of `-scaled` (WordPress, big_image_size_threshold)
_WIDTHS = frozenset("w h width height max-w max-h s size resize fit format name".split())
_NO_NAMES: frozenset[str] = frozenset()
_NUMBER = re.compile(r"[0-9]{1,5}")


class Rule(NamedTuple):
    """A row of data/image_sizes.tsv."""

    path: re.Pattern[str] | None
    replacement: str
    sizes: dict[str, int]
    parameters: frozenset[str]


def variant_of(url: str) -> tuple[str, int]:
    """The key of the image, and the longer side in pixels that the URL names (FULL if it names none).

    Args:
        url: canonical.
    """
    before, mark, query = url.partition("?")
    host, path = before.split("/", 3)[2:]
    path = "/" + path
    size, names = FULL, _NO_NAMES
    for rule in _rules_of(host):
        names = rule.parameters or names
        match = rule.path.fullmatch(path) if rule.path else None
        if match:
            path, size = match.expand(rule.replacement), min(size, _size(match, rule.sizes))
    match = _UPLOAD.fullmatch(path) if "-" in path else None
    if match:
        path, size = match[1] + match[4], min(size, _size(match, {}) if match["w"] else SCALED)
    if mark:
        query, named = _without(query, names)
        size = min(size, named)
    if host in _PHOTON:
        host = _PHOTON[0]
    return f"https://{host}{path}{'?' if query else ''}{query}", size


def variants(urls: pa.Array) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """The hash of the key of each URL, and its rank among the variants: the larger is the one to fetch.

    The rank is twice the named size, and one more for https.
    """
    secure = pc.starts_with(urls, "https:")
    insecure = pc.invert(secure)
    keys = urls
    if pc.any(insecure).as_py():
        keys = pc.replace_with_mask(urls, insecure, pc.binary_replace_slice(urls.filter(insecure), 0, 4, "https"))
    sizes = np.full(len(urls), FULL, np.uint32)
    few = _few(urls)
    if len(few):
        found = [variant_of(url) for url in urls.take(pa.array(few)).to_pylist()]
        flags = np.zeros(len(urls), np.bool_)
        flags[few] = True
        keys = pc.replace_with_mask(keys, pa.array(flags), pa.array([key for key, _ in found], keys.type))
        sizes[few] = [size for _, size in found]
    return hashing.hash_strings(keys)[:, 0].copy(), 2 * sizes + secure.to_numpy(zero_copy_only=False)


def _few(urls: pa.Array) -> npt.NDArray[np.int64]:
    """The rows of the URLs that `_worth_a_look` finds. The kernel is a cheap test that they all pass."""
    kernel = jit.kernel("pipeline.text.image_variants_kernel", len(urls))
    if not kernel:
        return np.flatnonzero(pc.match_substring_regex(urls, _worth_a_look()))
    some = np.flatnonzero(kernel.worth_a_look(urls, kernel.table_of(_hosts())))
    return some[np.flatnonzero(pc.match_substring_regex(urls.take(pa.array(some)), _worth_a_look()))]


def _size(match: re.Match[str], words: dict[str, int]) -> int:
    groups = match.groupdict()
    if words:
        return words[groups["s"]]
    return max((int(groups[name]) for name in ("w", "h") if groups.get(name)), default=FULL)


def _without(query: str, names: frozenset[str]) -> tuple[str, int]:
    """The query without parameters of tracking and of size, and the size that these named."""
    kept, size = [], FULL
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name in TRACKING or name.startswith(TRACKING_PREFIX):
            continue
        if name not in names:
            kept.append(part)
        elif name in _WIDTHS:
            numbers = [int(number) for number in _NUMBER.findall(value)[:2]]
            size = max(size if size != FULL else 0, *numbers, 0) or FULL
    return "&".join(kept), min(size, FULL - 1) if size != FULL else FULL


@functools.lru_cache(maxsize=1)
def _rules() -> dict[str, list[Rule]]:
    """The rules of the table by host, where the first label of `*.` is left out."""
    found: dict[str, list[Rule]] = {}
    text = resources.files("pipeline.text").joinpath("data/image_sizes.tsv").read_text("utf-8")
    for row in csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        sizes = {word: int(pixels) for word, _, pixels in (item.partition("=") for item in row["sizes"].split())}
        is_path = row["part"] == "path"
        rule = Rule(
            re.compile(row["pattern"]) if is_path else None,
            row["replacement"],
            sizes,
            frozenset() if is_path else frozenset(row["pattern"].split(",")),
        )
        found.setdefault(row["host"].removeprefix("*"), []).append(rule)
    return found


def _hosts() -> list[str]:
    """The hosts of the rules. Some stand for all of their subdomains, too."""
    return [name.removeprefix(".") for name in sorted(_rules())]


@functools.lru_cache(maxsize=4096)
def _rules_of(host: str) -> list[Rule]:
    """The rules of a host: of its own name, else of the longest domain that it belongs to."""
    rules = _rules()
    labels = host.split(".")
    suffixes = ("." + ".".join(labels[at:]) for at in range(1, min(len(labels), 5)))
    return next((rules[name] for name in (host, *suffixes) if name in rules), [])


@functools.lru_cache(maxsize=1)
def _worth_a_look() -> str:
    """A pattern of RE2 that finds every URL whose key is more than the URL without its scheme."""
    hosts = "|".join(map(re.escape, _hosts()))
    tracking = "|".join(sorted(map(re.escape, TRACKING)))
    return (
        rf"^https?://(?:[^/?]*\.)?(?:{hosts})/"
        rf"|[?&](?:{TRACKING_PREFIX}|(?:{tracking})(?:[=&]|$))"
        r"|(?i:-(?:[0-9]{2,4}x[0-9]{2,4}|scaled)\.(?:jpe?g|png|gif|webp|avif)(?:\?|$))"
        r"|\?$|\?&|&&|&$"
    )
