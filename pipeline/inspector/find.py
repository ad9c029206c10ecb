"""inspect_shards find: where pairs are, or at which stage they fell."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from pipeline.engine.cli import BELOW, DONE, UsageError
from pipeline.engine.display import amount, sanitize
from pipeline.inspector import forgotten
from pipeline.inspector.choice import Choice, query_id
from pipeline.inspector.opening import exists, is_ours, open_earliest
from pipeline.inspector.output import count, print_json

NEAR = 8  # bits: of small changes of a picture (size, quality) nearly all are nearer, of others hardly any
LARGEST = 256 << 20  # bytes of a picture


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    forgotten.arguments(parser)
    parser.add_argument("--page", action="append", default=[], metavar="URL", help="of the page; may be repeated")
    parser.add_argument("--query", metavar="QUERY", help="whose text holds this query of the run's list")
    parser.add_argument("--text", metavar="TEXT", help="what gather makes of this text")
    parser.add_argument("--like", metavar="PICTURE", help="whose image looks like that of this file")
    parser.add_argument(
        "--distance",
        type=count,
        default=NEAR,
        metavar="BITS",
        help="of 64 in which the hashes may differ, for --like (default: %(default)s)",
    )
    parser.add_argument("--limit", type=count, default=20, metavar="N", help="pairs; 0: all (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Where pairs are, or at which stage they fell, and why. Exit code 3 if nothing is known of them."""
    from pipeline import find as finding
    from pipeline.dataset.tombstones import KINDS
    from pipeline.forget import Selection

    if exists(args.folder) and not is_ours(args.folder):
        raise UsageError(f"{args.folder}: find needs the folder of a build. Other files: use grep, show or ls")
    given = [(kind, value) for kind in KINDS for value in getattr(args, kind)]
    if not given and args.text is None and not args.page and args.query is None and args.like is None:
        flags = ("--" + kind.replace("_", "-") for kind in KINDS)
        raise UsageError(f"find needs one of --text, --page, --query, --like, {', '.join(flags)}")
    try:
        selection = Selection.of(given)
    except ValueError as error:
        raise UsageError(str(error)) from None
    limit = args.limit or sys.maxsize
    if args.page or args.query is not None:
        uids = keys_of(args.folder, args.page, args.query, limit)
        selection = dataclasses.replace(selection, uid=selection.uid | uids)
    bits = {} if args.like is None else finding.like(
        args.folder, phash_of(args.like), distance=args.distance, limit=limit
    )  # fmt: skip
    selection = dataclasses.replace(selection, uid=selection.uid | bits.keys())
    pairs = finding.find(args.folder, selection, limit=limit) if selection.uid or given else []
    for pair in pairs:
        if pair.uid in bits:
            away = f"{amount(bits[pair.uid], None, 'bits')} from the picture"
            pair.detail = "; ".join(filter(None, [away, pair.detail]))
    pairs.sort(key=lambda pair: bits.get(pair.uid, -1))  # the order stays where nothing was asked for
    gone = finding.forgotten(args.folder, selection)
    rule = None if args.text is None else finding.text_reason(args.text)
    if args.json:
        gone_list = [{"kind": kind, "value": value} for kind, value in gone]
        print_json({"pairs": finding.to_json(pairs), "forgotten": gone_list, "text_reason": rule})
        return DONE if pairs or gone or rule is not None else BELOW
    for pair in pairs:
        fell = f"fell in {pair.stage}: {pair.reason}" if pair.reason else pair.stage
        detail = f" ({sanitize(pair.detail)})" if pair.detail else ""
        print(f"{pair.uid or '-':<34}{fell}{detail}\n{'':<34}{sanitize(pair.url)}\n{'':<34}{sanitize(pair.text)}")
    for kind, value in gone:
        print(f"forgotten: {kind} {sanitize(value)}")
    if rule is not None:
        print(f"gather drops this text: {rule}" if rule else "gather would keep this text; match needs a query in it")
    elif not pairs and not gone and args.like is not None:
        if finding.has_images(args.folder):
            print(f"no image that was fetched is within {args.distance} bits of the picture (--distance)")
        else:
            print("no image is there yet: the fetch of this run is not done")
    elif not pairs and not gone:
        print("nothing is known of it: it was in no input, or gather or match dropped it and the row was not kept. "
              "Build with --keep-rejected all, or ask with --text TEXT")  # fmt: skip
    return DONE if pairs or gone or rule is not None else BELOW


def phash_of(path: str) -> int:
    """The perceptual hash of a picture, taken as the fetch takes it.

    Raises:
        UsageError: the file cannot be read, or is no image.
    """
    from pipeline.fetching.errors import Failure

    try:
        with open(path, "rb") as file:
            body = file.read(LARGEST + 1)
        if len(body) > LARGEST:
            raise UsageError(f"--like {path}: must be an image of at most {LARGEST >> 20} MiB")
        return hash_of(body)
    except OSError as error:
        raise UsageError(f"--like {path}: must be a picture ({error.strerror})") from None
    except Failure as error:
        raise UsageError(f"--like {path}: must be a picture ({error})") from None


def hash_of(body: bytes, *, image_size: int = 256, memory: int | None = None) -> int:
    """The perceptual hash of an image, taken as the fetch takes it. What the image says of its rights does not matter.

    Args:
        body: of the image.
        image_size: short side of the images of the set.
        memory: bytes that the pixels may take; None: no bound.

    Raises:
        Failure: it is no image, or is damaged.
        NeedsMemory: the pixels take more than `memory`.
    """
    from pipeline.fetching.images import decode
    from pipeline.fetching.options import FetchOptions
    from pipeline.fetching.picture import MOST_MEMORY
    from pipeline.text.rights import PROTOCOLS

    options = FetchOptions(min_side=1, max_aspect=1e6, ignore_rights=PROTOCOLS, image_size=image_size)
    return decode(body, options, MOST_MEMORY if memory is None else memory).phash


def keys_of(folder: str, pages: list[str], query: str | None, limit: int) -> set[str]:
    """The first keys of pairs that were found on one of the pages, or whose text holds the query.

    Raises:
        NotFound: the list has no such query.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    pairs = open_earliest(folder)
    number = None if query is None else query_id(pairs, query)
    keys: list[str] = []
    for table in pairs.tables(["key", "page_url", *(["query_ids"] if number is not None else [])]):
        keys += table["key"].filter(pc.is_in(table["page_url"], pa.array(pages, pa.string()))).to_pylist()
        if number is not None:
            keys += Choice(query=number)(table)["key"].to_pylist()
        if len(keys) >= limit:
            break
    return set(keys[:limit])
