"""Checks a folder that another tool has written, and says if clip_train would take it.

Faults are what a reader trips over: damaged headers, samples in two parts, images that cannot be decoded, captions that
are missing. Duplicates are noted, since a trainer takes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

from pipeline.engine.display import amount, sanitize
from pipeline.inspector.foreign import IMAGES, ParquetPairs, TarPairs

LARGEST_IMAGE = 1 << 28  # bytes: clip_train skips a larger one
MOST_PIXELS = 100_000_000  # of an image that is decoded here: about 0.3 GB of memory
MAX_BAD = 0.01  # clip_train stops above this share of unusable samples (--max-bad)
EXAMPLES = 3


@dataclasses.dataclass
class Checked:
    """What was found.

    Attributes:
        pairs: samples with an image.
        faults: problem -> (number, the first examples).
        unusable: samples with an image that a trainer has to skip.
        captions_without_images, duplicates: kind -> number.
        quick: the images were not decoded.
    """

    pairs: int = 0
    faults: dict[str, tuple[int, list[str]]] = dataclasses.field(default_factory=dict)
    unusable: int = 0
    captions_without_images: int = 0
    duplicates: dict[str, int] = dataclasses.field(default_factory=dict)
    statuses: dict[str, int] = dataclasses.field(default_factory=dict)
    quick: bool = False

    def fault(self, problem: str, where: str) -> None:
        """Counts a fault."""
        count, examples = self.faults.get(problem, (0, []))
        self.faults[problem] = count + 1, examples if count >= EXAMPLES else [*examples, where]

    def describe_duplicates(self) -> str:
        """What is repeated, in words."""
        repeated = ", ".join(f"{kind} {count:,}" for kind, count in self.duplicates.items() if count)
        unseen = "; images were not compared, `verify` does" if self.quick else ""
        found = f"repeated: {repeated}" if repeated else f"no {'text' if self.quick else 'text or image'} is repeated"
        return found + unseen

    def to_json(self) -> dict[str, Any]:
        """The result as JSON."""
        faults = [{"problem": name, "count": count, "examples": some} for name, (count, some) in self.faults.items()]
        return dataclasses.asdict(self) | {"faults": faults}


class _Seen:
    """Counts repeats by a hash of 16 bytes each."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()
        self.repeats = 0

    def add(self, data: bytes) -> bool:
        """True if it was there before."""
        digest = hashlib.blake2b(data, digest_size=16).digest()
        again = digest in self._hashes
        self._hashes.add(digest)
        self.repeats += again
        return again


def check(pairs: TarPairs | ParquetPairs, *, quick: bool) -> Checked:
    """Checks all samples. With `quick`, images are neither read nor decoded."""
    found = Checked(quick=quick)
    texts, images, keys = _Seen(), _Seen(), _Seen()
    for where, key, text, image, data in _samples(pairs, found, quick=quick):
        if key and keys.add(key.encode("utf-8", "replace")):
            found.fault("a key that another tar has, too", where)
        if not image:
            found.captions_without_images += 1
            found.fault("a caption without an image", where)
            continue
        found.pairs += 1
        problems = [_text_problem(text)]
        if data is not None:
            images.add(data)
            problems.append(image_problem(data))
        if text and text.strip():
            texts.add(text.encode("utf-8", "replace"))
        found.unusable += any(problems)
        for problem in filter(None, problems):
            found.fault(problem, where)
    found.duplicates = {"texts": texts.repeats} | ({} if quick else {"images": images.repeats})
    if isinstance(pairs, TarPairs):
        _check_reports(pairs, found)
    return found


def _samples(
    pairs: TarPairs | ParquetPairs, found: Checked, *, quick: bool
) -> Iterator[tuple[str, str, str | None, bool, bytes | None]]:
    """(where, key, text, has an image, the image unless quick) of each sample."""
    if isinstance(pairs, ParquetPairs):
        for table in pairs.batches(images=not quick):  # quick: every row counts as one with an image
            for row in table.select(["key", "text", *([] if quick else ["_image"])]).to_pylist():
                data = None if quick else row["_image"] or b""
                yield row["key"], "", row["text"], data != b"", data
        return
    for number, path in enumerate(pairs.paths):
        contents = pairs.contents(number)
        for offset, problem in contents.faults:
            found.fault(problem, f"{path} at byte {offset}")
        for key in contents.scattered:
            found.fault("a sample whose members are not neighbours: WebDataset cuts it in two", f"{path}: {key}")
        for sample in pairs.samples(number):
            where = f"{path}: {sample.key}"
            if sample.key.startswith("/") or ".." in sample.key.split("/"):
                found.fault("a name that leads out of the folder into which a tar is unpacked", where)
            if sample.bad_json:
                found.fault(sample.bad_json, where)
            if sample.image is None and not {"txt", "json"} & set(sample.members):
                others = ", ".join(sorted(sample.members))
                found.fault(f"a sample without an image of the kinds {', '.join(IMAGES)}", f"{where} ({others})")
                continue
            text = sample.text if sample.source == "txt" else None
            data = None
            if sample.image is not None and not quick:
                data = pairs.image({"shard": number, "jpg_offset": sample.image[0], "jpg_size": sample.image[1]})
            yield where, sample.key, text, sample.image is not None, data


def _text_problem(text: str | None) -> str:
    if text is None:
        return "an image without a caption (no .txt in UTF-8)"
    return "" if text.strip() else "an empty caption"


def image_problem(data: bytes) -> str:
    """Why an image cannot be used; "" if it can be decoded to its last row."""
    from PIL import Image

    if len(data) > LARGEST_IMAGE:
        return "an image of more than 256 MiB"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MOST_PIXELS:
                    return "an image of more than 100 million pixels"
                image.load()
    except Exception:  # whatever Pillow raises for hostile bytes
        return "an image that cannot be decoded"
    return ""


def _check_reports(pairs: TarPairs, found: Checked) -> None:
    """Compares the tars of img2dataset with what it says of them."""
    for number, report in enumerate(pairs.reports):
        if report.stats is None:
            found.fault("a shard that img2dataset has not finished (no _stats.json)", report.path)
            continue
        for status, count in report.statuses().items():
            found.statuses[status] = found.statuses.get(status, 0) + count
        there = sum(any(kind in members for kind in IMAGES) for members in pairs.contents(number).samples.values())
        said = report.stats.get("successes")
        if said != there:
            found.fault("a tar with other samples than its _stats.json says", f"{report.path} ({there}, not {said})")


def verdict(pairs: TarPairs | ParquetPairs, found: Checked) -> tuple[bool, str]:
    """If clip_train would take the folder as --data, and why."""
    if isinstance(pairs, ParquetPairs):
        return False, "clip_train reads tars, not Parquet: `export --format webdataset` writes them"
    if not found.pairs:
        return False, "there is no sample with an image"
    share = found.unusable / found.pairs
    if share > MAX_BAD:
        reason = f"{found.unusable:,} of {found.pairs:,} samples ({share:.1%}) cannot be used"
        return False, f"{reason}: clip_train stops above {MAX_BAD:.0%} (--max-bad)"
    skipped = f"; it skips {found.unusable:,} that cannot be used" if found.unusable else ""
    is_damaged = any("header" in name or "cut off" in name for name in found.faults)
    damaged = " from what is whole of the tars" if is_damaged else ""
    undecoded = " (its images were not decoded)" if found.quick else ""
    return True, f"{amount(found.pairs, None, 'pairs')}{damaged}{skipped}{undecoded}"


def print_checked(name: str, found: Checked, fits: bool, why: str) -> None:
    """Prints what was found in files of another tool."""
    print(f"{sanitize(name)}: {amount(found.pairs, None, 'pairs')}")
    for status, count in sorted(found.statuses.items(), key=lambda item: (-item[1], item[0])):
        print(f"  img2dataset: {sanitize(status):<50}{count:>11,}")
    print(f"  {found.describe_duplicates()}")
    for problem, (count, examples) in sorted(found.faults.items(), key=lambda item: -item[1][0]):
        print(f"  {count:>9,}  {sanitize(problem)}")
        for example in examples:
            print(f"{'':<13}{sanitize(example)}")
    print(f"clip_train would {'take it' if fits else 'not take it'}: {sanitize(why)}")
