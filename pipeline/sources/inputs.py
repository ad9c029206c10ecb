"""Turns the values of --input into a sorted list of files to read.

A spec is a file, a glob (`**` too), a folder (read recursively), `@LIST` (one spec a line), an fsspec URL (s3, gs,
https, ...) or `cc:CRAWL` (Common Crawl's own path lists). A folder with a published set gives the shards of the set.
Every input gets a `name` that becomes source_file in the data. The name is relative to the spec and never absolute, so
moved files give the same rows. A reader recognises its format by the name, or by the first bytes where the name does
not tell.
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import fnmatch
import functools
import glob
import hashlib
import os
import re
import stat
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pipeline.engine import opening, remote, storage, variables
from pipeline.engine.input_errors import (
    UNAVAILABLE,
    InputError,
    MissingInputError,
    is_http,
    is_remote,
    public,
)
from pipeline.sources import READERS, published_sets
from pipeline.sources.base import (
    SET,
    WEBDATASET,
    Found,
    Input,
    Reader,
    file_name,
    read_head,
    read_whole,
    several_at_once,
)
from pipeline.sources.tar_reader import is_damaged

AUTO = "auto"  # value of --input-format: the format of each file is detected

CC_BASE = "https://data.commoncrawl.org/"
# Where the same files lie. The bucket of Hugging Face has the crawls of 2026 and later ones.
CC_MIRRORS = {
    "https": CC_BASE,
    "s3": "s3://commoncrawl/",
    "hf": "hf://buckets/commoncrawl/commoncrawl/",
}

_WET = re.compile(r"\.wet(\.gz)?$", re.IGNORECASE)
_CRAWL = re.compile(
    r"^cc:(?P<crawl>[A-Za-z0-9-]+)(?::(?P<kind>wat|warc|robotstxt))?(?:\[(?P<first>\d*):(?P<last>\d*)\])?$"
)
_ADDRESS = re.compile(rb"https?://\S+", re.IGNORECASE)
_GLOB = re.compile(r"[*?\[]")
# A tar of samples by its name, which tells little; or a packed one, which its reader refuses with what to do.
_TAR = re.compile(r"\.(?:tar(?:\.(?:gz|bz2|xz|zst))?|tgz|tbz2?|txz)$", re.IGNORECASE)
_SHARD = re.compile(r"/shards/\d{5,9}\.tar$")  # the end of the path of a shard of a published set
_SHARD_NAME = re.compile(r"set-[0-9a-f]{12}/shards/\d{5,9}\.tar")  # the name of its input
SHOWN = 3  # names in a message


def expand(
    specs: Sequence[str],
    *,
    input_format: str = AUTO,
    cc_base: str | None = None,
    skip_bad: bool = False,
    without: str | None = None,
    known: Sequence[Input] = (),
    drop: Sequence[str] = (),
    dropped: Sequence[str] = (),
) -> list[Input]:
    """All inputs behind `specs`, and those that are known already, sorted by name, each file once.

    Args:
        specs: files, globs, folders, @LISTs, URLs, cc:CRAWL[:warc][[first:last]].
        input_format: "auto", or one format for all files. With "auto", folders and globs skip files of other formats.
        cc_base: where crawl paths lie (URL or folder); default: OPENWIT_CC_BASE, then Common Crawl's server.
        skip_bad: a file that must be opened for this, and cannot be had, stays one input. Its reader fails then.
        without: a folder that the run writes. Folders and globs skip the files in it.
        known: inputs of the set that grows. They are not opened, unless a file with the same name comes in beside one:
            then both get longer names, as if they were named together.
        drop: names, paths, folders and globs of inputs that are left out. A known file that a spec names by its own
            path too comes in anew (`exchanged`).
        dropped: paths of inputs that were left out before. A value of `drop` may name one of them again.

    Raises:
        InputError: nothing matches, or a file cannot be read, or its format is not recognised, or lies in `without`.
            A known file has changed. A value of `drop` fits no input.
    """
    if input_format not in (AUTO, *READERS):
        *others, last = (AUTO, *READERS)
        raise InputError(f"input format {input_format!r} is unknown: use {', '.join(others)} or {last}")
    if not specs and not known:
        raise InputError("no input was given: name a file, a folder, a glob, @LIST, a URL or cc:CRAWL")
    base = cc_base or os.environ.get(variables.CC_BASE) or CC_BASE
    found: list[Found] = []
    for spec in specs:
        more = _expand_spec(spec, base=base, any_name=input_format not in (AUTO, SET))
        found += more if without is None else _outside(without, spec, more)
    drop = _by_folder(drop, _known_files(known))
    again = exchanged(specs, known, drop)
    files = {file: made for file, made in _known_files(known).items() if file.path not in again}
    found = _new_files(_distinct_paths(found), files)
    anew = [file for file in found if file.path in again]
    names = {**_names(files), **{file: {file.name} for file in found if file not in anew}}
    every = [*_left(names, drop, (*dropped, *again), may_be_empty=bool(anew)), *anew]
    named = dict(zip(every, _distinct_names(every), strict=True))

    def finish(file: Found) -> list[Input]:
        inputs = files.get(file, [])
        if inputs and all(_has_name(item, named[file].name) for item in inputs):
            return inputs
        finished = _finish(named[file], input_format, skip_bad)
        return [dataclasses.replace(item, found=file) for item in finished]

    inputs = [item for some in several_at_once(finish, every) for item in some]
    return sorted(inputs, key=lambda item: (item.name, item.part or (0, 0)))


def exchanged(specs: Sequence[str], known: Sequence[Input], drop: Sequence[str]) -> frozenset[str]:
    """The paths of known files that one command takes out and names again, each by its own path: they are read anew."""
    named = {spec.rstrip("/") if is_remote(spec) else _real(_absolute(spec)) for spec in specs}
    drop = _by_folder(drop, _known_files(known)) if drop else ()
    files = _names(_known_files(known)).items() if drop else ()
    gone = [file.path for file, names in files if any(_fits(file, value, names) for value in drop)]
    sets = {_real(root) for root in map(published_sets.root_of, gone)} & named if drop else set[str]()
    tars = [file.path for root in sets if published_sets.is_set(root) for file in published_sets.files_of(root)]
    return frozenset([*(path for path in gone if _real(path) in named), *tars])


def _known_files(known: Iterable[Input]) -> dict[Found, list[Input]]:
    """The files of known inputs, each with its inputs."""
    files: dict[Found, list[Input]] = {}
    for item in known:
        files.setdefault(item.found or Found(item.name, item.path, "", item.bytes), []).append(item)
    return files


def _has_name(item: Input, name: str) -> bool:
    """True if the input has the name of its file: a member of a pack has the name of the pack before its own."""
    return item.name == name or item.name.startswith(f"{name}/")


def _absolute(spec: str) -> str:
    return os.path.abspath(os.path.expanduser(spec))


def _real(path: str) -> str:
    return path if is_remote(path) else os.path.realpath(path)


def _new_files(found: Iterable[Found], files: dict[Found, list[Input]]) -> list[Found]:
    """The files that are not known yet. A known file that was moved gets its new place in `files`.

    Raises:
        InputError: a known file has another size than when it was read.
    """
    places = {_real(file.path): file for file in files}
    gone = {(file.name, file.size): file for file in files if not (is_remote(file.path) or os.path.exists(file.path))}
    new = []
    copies = {file.name: file for file in files}
    is_gone = functools.cache(published_sets.is_gone)
    for item in found:
        there = places.get(_real(item.path)) if places else None
        if there is not None:
            if item.format == SET and item.name != there.name:
                root = published_sets.root_of(item.path)
                raise InputError(
                    f"the set {root} has changed since it was read: add --drop-input {root} to the command, which then "
                    "reads it anew"
                )
            if None not in (there.size, item.size) and there.size != item.size:
                raise InputError(
                    f"{public(item.path)!r} has changed: it had {there.size:,} bytes when the set read it, and has "
                    f"{item.size:,}. Leave it out; or add --drop-input {public(item.path)} to the command, which then "
                    "reads it anew; or read all inputs anew with --redo gather"
                )
        elif (item.name, item.size) in gone:
            moved = gone.pop((item.name, item.size))
            files[item] = [
                dataclasses.replace(made, path=made.path.replace(moved.path, item.path), found=item)
                for made in files.pop(moved)
            ]
        elif item.format != SET or item.name not in copies:
            new.append(item)
            copies[item.name] = item
        elif copies[item.name] in files and is_gone(published_sets.root_of(copies[item.name].path)):
            copy = files.pop(copies[item.name])  # on a store: there is no request for each file
            files[item] = [dataclasses.replace(made, path=item.path, found=item) for made in copy]
    return new


def _names(files: Mapping[Found, list[Input]]) -> dict[Found, set[str]]:
    """The names of known files: as they were found, and the longer ones that their inputs have."""
    names = {file: {item.name for item in inputs} for file, inputs in files.items()}
    return {file: {file.name, *(given if len(given) == 1 else ())} for file, given in names.items()}


def _left(
    found: Mapping[Found, set[str]], drop: Sequence[str], dropped: Sequence[str], *, may_be_empty: bool
) -> list[Found]:
    """The files, given with their names, that no value of `drop` fits.

    Raises:
        InputError: a value fits no file, or nothing is left and `may_be_empty` is not set.
    """
    left = list(found)
    for value in drop:
        gone = {item for item, names in found.items() if _fits(item, value, names)}
        if not gone and not any(_fits(Found(path, path), value, _ends(path)) for path in dropped):
            known = sorted({shown for item, names in found.items() for shown in _shown(item, names)})
            near = _near(value, known)
            hint = f"; did you mean {near[0]!r}?" if near else f": {_some(known)}"
            raise InputError(f"--drop-input {value!r}: must be the name or path of an input of the set{hint}")
        left = [item for item in left if item not in gone]
    if not left and not may_be_empty:
        raise InputError("no input is left: --drop-input covers all of them")
    return left


def _shown(item: Found, names: set[str]) -> set[str]:
    """What a message calls a file. A shard is called by the folder of its set."""
    return {published_sets.root_of(public(item.path))} if _SHARD_NAME.fullmatch(item.name) else names


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(map(repr, names[:SHOWN]))}{more}"


def _by_folder(drop: Sequence[str], files: Iterable[Found]) -> list[str]:
    """The values of --drop-input, with the path of a set in the place of the name of its folder.

    Raises:
        InputError: several sets have this name.
    """
    roots = sorted({published_sets.root_of(item.path) for item in files if _SHARD_NAME.fullmatch(item.name)})
    found = []
    for value in drop:
        meant = [root for root in roots if os.path.basename(root) == value.rstrip("/")]
        if len(meant) > 1:
            raise InputError(f"--drop-input {value!r}: is the name of several sets, name a path: {_some(meant)}")
        found.append(meant[0] if meant else value)
    return found


def _ends(path: str) -> set[str]:
    """a/b/c -> {a/b/c, b/c, c}: the names that a file with this path may have had, and that of the folder of a set."""
    parts = path.split("/")
    folder = {os.path.basename(published_sets.root_of(path))} if _SHARD.search(path) else set[str]()
    return folder | {"/".join(parts[first:]) for first in range(len(parts))}


def _fits(item: Found, value: str, names: set[str]) -> bool:
    """True if the value is a name of a file, its path, a folder above it, or a glob of either."""
    if value in (*names, item.path, public(item.path)):
        return True
    if is_remote(value) or is_remote(item.path):
        inside = is_remote(value) and item.path.startswith(f"{value.rstrip('/')}/")
        return inside or (bool(_GLOB.search(value)) and fnmatch.fnmatchcase(item.path, value))
    path = os.path.abspath(os.path.expanduser(value))
    if item.path == path or item.path.startswith(os.path.join(path, "")) or _real(item.path) == _real(path):
        return True
    if not _GLOB.search(value):
        return False
    return fnmatch.fnmatchcase(item.path, path) or any(fnmatch.fnmatchcase(name, value) for name in names)


def places_of(inputs: Iterable[Input]) -> list[str]:
    """The paths of the files behind inputs, each once."""
    return list(dict.fromkeys(item.found.path if item.found else item.path for item in inputs))


# ---- specs -> files


def _expand_spec(spec: str, *, base: str, any_name: bool, in_list: bool = False) -> list[Found]:
    """The files of one spec. `any_name` also takes files with an unknown name, since the user gave the format."""
    if not spec.strip():
        raise InputError("an input is an empty name: check that the variables of the command are set")
    if spec.startswith("file://"):
        spec = urllib.request.url2pathname(urllib.parse.urlsplit(spec).path)
    if spec.startswith("cc:"):
        return _expand_crawl(spec, base)
    if spec.startswith("@") and not in_list:
        return _expand_list(spec, base=base, any_name=any_name)
    if is_remote(spec):
        return _expand_remote(spec, any_name=any_name)
    return _expand_local(spec, any_name=any_name)


def _outside(folder: str, spec: str, found: list[Found]) -> list[Found]:
    """The files of a spec that do not lie in `folder`. Else a run that goes on would read what it wrote itself."""
    on_store = is_remote(folder)
    inside = folder.rstrip("/") + "/" if on_store else os.path.join(os.path.realpath(folder), "")

    def is_inside(path: str) -> bool:
        if is_remote(path):
            return on_store and path.startswith(inside)
        return real(path).startswith(inside)

    real = _RealPaths()
    kept = [item for item in found if not is_inside(item.path)]
    if len(kept) < len(found) and (not kept or spec.startswith("@")):
        raise InputError(f"{spec!r} names files in the output folder {folder!r}: name another output folder")
    return kept


def _expand_local(spec: str, *, any_name: bool) -> list[Found]:
    path = os.path.abspath(os.path.expanduser(spec))
    if os.path.lexists(path) and not os.path.isdir(path):  # lexists: `_local` reports a broken link
        return [_local(path, os.path.dirname(path))]
    if os.path.isdir(path):
        found = list(_walk(path, path, any_name=any_name))
        if not found:
            raise InputError(f"the folder {spec!r} holds no file to read: expected {readable()}")
        return found
    if not _GLOB.search(spec):
        raise InputError(f"no file matches {spec!r}{_suggestion(path)}")
    root = path
    while _GLOB.search(root):
        root = os.path.dirname(root)
    asked = os.path.basename(path).startswith("_")
    found = []
    named = any_name or _names_a_suffix(path)
    for match in sorted(glob.glob(path, recursive=True)):
        if os.path.isdir(match):
            found += _walk(match, root, any_name=any_name)
        elif (named or _named(match)) and (asked or not os.path.basename(match).startswith("_")):
            found.append(_local(match, root))
    if not found:
        hint = "" if os.path.isdir(root) else f": the folder {root!r} does not exist"
        raise InputError(f"no file to read matches {spec!r}{hint} (expected {readable()})")
    return found


def _names_a_suffix(pattern: str) -> bool:
    """True if a glob asks for one kind of files, as *.json does: then their first bytes may tell their format."""
    stem, dot, suffix = pattern.rpartition(".")
    return bool(dot) and "/" not in suffix and not _GLOB.search(suffix)


def _walk(folder: str, root: str, *, any_name: bool) -> Iterator[Found]:
    """Files of a folder, recursively. Names that begin with a dot or an underscore are skipped: they hold no data.

    Of a published set, its shards. `any_name`: it is a folder as others.
    """
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add(real)
        if not any_name and _may_be_set(folders, files) and published_sets.is_set(parent):
            yield from published_sets.files_of(parent)
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        described = {f"{name.removesuffix('.tar')}.parquet" for name in files if name.endswith(".tar")}
        samples, no_tars = 0, list[str]()
        for name in files:
            path = os.path.join(parent, name)
            if name in described and _holds_pairs(f"{path.removesuffix('.parquet')}.tar"):
                continue  # img2dataset's table of the samples of a tar
            if name.startswith((".", "_")):
                continue
            if any_name or _named(name) or _holds_pairs(path):
                samples += name.lower().endswith(".tar")
                yield _local(path, root)
            elif _is_damaged_tar(path):
                no_tars.append(path)
        if samples:
            yield from (_local(path, root) for path in no_tars)


def _may_be_set(folders: Sequence[str], files: Sequence[str]) -> bool:
    return published_sets.MANIFEST in files or "shards" in folders


def _holds_pairs(path: str) -> bool:
    """True for a file whose name tells little and whose first bytes are rows. Others describe the folder: they stay."""
    vague = [reader for reader in READERS.values() if path.lower().endswith(reader.vague_suffixes)]
    there = bool(vague) and (is_remote(path) or os.path.isfile(path))
    return there and any(reader.holds_pairs(read_head(path)) for reader in vague)


def _is_damaged_tar(path: str) -> bool:
    """True for a file *.tar that is none, or begins with damage. Beside tars of samples it must not be passed over."""
    is_file = is_remote(path) or os.path.isfile(path)
    return path.lower().endswith(".tar") and is_file and is_damaged(read_head(path))


def _local(path: str, root: str) -> Found:
    name = os.path.relpath(path, root).replace(os.sep, "/")
    try:
        path.encode()
        about = os.stat(path)
    except UnicodeEncodeError as error:
        raise InputError(f"the name {path!r} is no UTF-8, and names stand in the data: rename it") from error
    except OSError as error:
        raise InputError(f"{path!r} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{path!r} is no file but a pipe, a socket or a device: name a file")
    return Found(name, path, root.replace(os.sep, "/"), about.st_size)


def _near(name: str, others: Sequence[str]) -> list[str]:
    """The name that is probably meant, or none. Equal suffixes alone make no two names near."""
    stem = os.path.basename(name).split(".")[0]
    found = difflib.get_close_matches(name, others, n=3, cutoff=0.5)
    near = (one for one in found if difflib.get_close_matches(stem, [os.path.basename(one).split(".")[0]], cutoff=0.5))
    return list(near)[:1]


def _suggestion(path: str) -> str:
    """The hint of a message about a missing path: a similar name beside it, or the first folder that is missing."""
    parent = os.path.dirname(path)
    while not os.path.isdir(parent):
        path, parent = parent, os.path.dirname(parent)
    try:
        near = _near(os.path.basename(path), os.listdir(parent))
    except OSError:
        near = []
    if near:
        return f"; did you mean {os.path.join(parent, near[0])!r}?"
    return f": {os.path.basename(path)!r} is not in {parent!r}"


def _expand_list(spec: str, *, base: str, any_name: bool) -> list[Found]:
    """@LIST: one spec a line, relative to the list's own folder. Lines of a crawl's paths file work unchanged."""
    path = spec[1:]
    lines = [line.strip() for line in _read_lines(path, spec)]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"the list {spec!r} names no file: write one path or URL a line (# begins a comment)")
    if is_remote(path):
        folder = path.rsplit("/", 1)[0]
    else:
        folder = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
    outside = [line for line in lines if os.path.isabs(line)]
    common = os.path.commonpath([os.path.dirname(line) for line in outside]) if outside else folder
    found = []
    for line in lines:
        if is_remote(line) or line.startswith("cc:"):
            found += _expand_spec(line, base=base, any_name=any_name, in_list=True)
            continue
        if is_remote(folder):
            found += _expand_remote(f"{folder}/{line}", any_name=any_name)
            continue
        full = os.path.join(folder, line)
        if line.startswith("crawl-data/") and not os.path.exists(full):
            found.append(_crawl_file(line, base))
            continue
        try:
            inside = _expand_local(full, any_name=any_name)
        except InputError as error:
            raise InputError(f"in the list {spec!r}: {error}") from error
        root = common if os.path.isabs(line) else folder
        fixed = (item.format == SET or _climbs(item.path, root) for item in inside)
        found += [item if named else _local(item.path, root) for item, named in zip(inside, fixed, strict=True)]
    return found


def _climbs(path: str, root: str) -> bool:
    return os.path.relpath(path, root).startswith("..")


def _read_lines(path: str, spec: str) -> list[str]:
    """Lines of a small text file. gzip is undone, as the first bytes tell."""
    if not is_remote(path):
        path = os.path.abspath(os.path.expanduser(path))
        if not os.path.isfile(path):
            raise InputError(f"the list behind {spec!r} is not there{_suggestion(path)}")
    try:
        return read_whole(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(f"the path list of {spec!r} cannot be read from {public(path)!r}: {error}") from error


def _expand_crawl(spec: str, base: str) -> list[Found]:
    match = _CRAWL.match(spec)
    if match is None:
        raise InputError(
            f"{spec!r} is no crawl: write cc:CC-MAIN-2026-05, cc:CC-MAIN-2026-05:warc or cc:CC-MAIN-2026-05[0:100]"
        )
    listing = f"crawl-data/{match['crawl']}/{match['kind'] or 'wat'}.paths.gz"
    try:
        paths = [line.strip() for line in _read_lines(_join(base, listing), spec) if line.strip()]
    except InputError as error:
        asked = ", ".join(map(repr, remote.settings().sources(base)))
        raise InputError(
            f"{error}. Is {match['crawl']!r} a crawl of commoncrawl.org, and can {asked} be reached?"
        ) from error
    first = int(match["first"]) if match["first"] else 0
    last = int(match["last"]) if match["last"] else len(paths)
    if not paths[first:last]:
        raise InputError(f"{spec!r} picks no file: the crawl has {len(paths)} files, numbered from 0")
    return [_crawl_file(path, base) for path in paths[first:last]]


def _crawl_file(path: str, base: str) -> Found:
    full = _join(base, path)
    size = os.path.getsize(full) if os.path.isfile(full) else None
    return Found(path, full, base, size)


def _join(base: str, path: str) -> str:
    return f"{base.rstrip('/')}/{path}" if is_remote(base) else os.path.join(os.path.abspath(base), path)


def _expand_remote(url: str, *, any_name: bool) -> list[Found]:
    """The URL itself, or the files of a glob or a folder on a store that can list (s3, gs, ...)."""
    if is_http(url):
        return [Found(public(url), url, "", None)]
    import fsspec

    try:
        for protocol in re.findall(r"(?:^|::)([A-Za-z][A-Za-z0-9+.-]*)://", url):
            if is_http(f"{protocol}://"):  # not fsspec's, which needs aiohttp
                continue
            fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise InputError(f"{public(url)!r} cannot be opened: {error}") from error
    if not (_GLOB.search(url) or url.endswith("/")):
        on_store = published_sets.may_be_on_store(url)
        if on_store and not any_name and published_sets.is_set(url):
            return published_sets.files_of(url)
        if not (on_store and _is_folder_of_store(url)):
            return [Found(public(url), url, "", None)]
        url = f"{url}/"

    def listed(system: Any, path: str) -> tuple[Any, dict[str, Any]]:
        return system, system.glob(path, detail=True) if _GLOB.search(url) else system.find(path, detail=True)

    system, listing = remote.patiently(url, listed)
    there = {system.unstrip_protocol(name): info for name, info in listing.items()}
    any_name = any_name or (not url.endswith("/") and _names_a_suffix(url))
    found: list[Found] = []
    if opening.is_object(url) and not any_name:
        found, there = _of_stored_folder(url, there)
    files = [full for full, info in sorted(there.items()) if info.get("type") == "file"]
    found += [Found(public(full), full, "", there[full].get("size")) for full in files if any_name or _named(full)]
    if not found:
        raise InputError(f"no file to read matches {public(url)!r}: expected {readable()}")
    return found


def _is_folder_of_store(url: str) -> bool:
    """True if no object has this URL, and some lie below it."""
    try:
        return not storage.is_file(url) and storage.is_folder(url)
    except FileNotFoundError as error:
        raise MissingInputError(f"{public(url)!r} is not there ({error})") from error


def _of_stored_folder(url: str, there: Mapping[str, Any]) -> tuple[list[Found], dict[str, Any]]:
    """The sets and the tars of samples among what a folder or a glob on a store gives, and the files that are left."""
    marks = (f"/{published_sets.MANIFEST}", f"/{published_sets.SIZES}")
    roots = {full.removesuffix(mark) for full in there for mark in marks if full.endswith(mark)}
    roots |= {full for full, info in there.items() if info.get("type") == "directory"}
    sets = [root for root, is_set in zip(roots, several_at_once(published_sets.is_set, roots), strict=True) if is_set]
    outer = sorted(root for root in sets if not any(root.startswith(f"{other}/") for other in sets))
    found = [file for root in outer for file in published_sets.files_of(root)]
    left = {full: info for full, info in there.items() if not full.startswith(tuple(f"{root}/" for root in outer))}
    if not url.endswith("/"):
        return found, left
    tars = [full for full in left if full.lower().endswith(".tar") and not file_name(full).startswith((".", "_"))]
    samples = [full for full, holds in zip(tars, several_at_once(_holds_pairs, tars), strict=True) if holds]
    rest = [full for full in tars if full not in samples] if samples else []
    samples += [full for full, damaged in zip(rest, several_at_once(_is_damaged_tar, rest), strict=True) if damaged]
    found += [Found(public(full), full, "", left[full].get("size"), WEBDATASET) for full in samples]
    # img2dataset's tables of the samples of a tar
    gone = {*samples, *(f"{full.removesuffix('.tar')}.parquet" for full in samples)}
    return found, {full: info for full, info in left.items() if full not in gone}


def robots_spec(spec: str) -> str:
    """A spec of robots.txt archives for `expand`: cc:CRAWL means cc:CRAWL:robotstxt, and a file *.paths is a list."""
    if spec.startswith("cc:"):
        return re.sub(r"^cc:([A-Za-z0-9-]+)(?=\[|$)", r"cc:\1:robotstxt", spec)
    return f"@{spec}" if re.search(r"\.paths(\.gz)?$", file_name(spec)) and not spec.startswith("@") else spec


def public_spec(spec: str) -> str:
    """A spec without credentials, as a recipe shows it."""
    return f"@{public(spec[1:])}" if spec.startswith("@") else public(spec)


class _RealPaths:
    """os.path.realpath for many files of few folders, which are looked up once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._folders[folder], name)
        return os.path.realpath(real) if os.path.islink(real) or name in ("", ".", "..") else real


def _distinct_paths(found: Iterable[Found]) -> list[Found]:
    """Each file once, even if several specs name it. The smallest name stays, so the order of specs has no effect."""
    by_path: dict[str, Found] = {}
    real = _RealPaths()
    for item in found:
        path = item.path if is_remote(item.path) else real(item.path)
        kept = by_path.get(path)
        if kept is None or (item.name, item.root) < (kept.name, kept.root):
            by_path[path] = item
    return list(by_path.values())


def _distinct_names(found: list[Found]) -> list[Found]:
    """Makes equal names of different roots distinct: it puts the last folders of the root before the name."""
    for depth in range(1, 64):
        count: dict[str, int] = {}
        for item in found:
            count[item.name] = count.get(item.name, 0) + 1
        if len(count) == len(found):
            break
        found = [_longer(item, depth) if count[item.name] > 1 else item for item in found]
    return found


def _longer(item: Found, depth: int) -> Found:
    folders = [part for part in PurePosixPath(item.root).parts if part != "/"]
    if depth > len(folders):  # URLs that differ only in their query; a name must not show the query
        return dataclasses.replace(item, name=f"{item.name}#{hashlib.sha256(item.path.encode()).hexdigest()[:8]}")
    return dataclasses.replace(item, name=f"{folders[-depth]}/{item.name}")


# ---- files -> inputs


def _finish(item: Found, input_format: str, skip_bad: bool) -> list[Input]:
    """The inputs of a file, by the reader of its format."""
    reader = READERS[WEBDATASET] if _TAR.search(file_name(item.path)) else None
    try:
        try:
            reader = READERS[item.format or input_format] if item.format or input_format != AUTO else _reader_of(item)
            return reader.expand(item)
        except UNAVAILABLE:
            if not skip_bad or reader is None:
                raise
            return [Input(item.name, item.path, reader.name, item.size)]
    except OSError as error:
        raise InputError(f"{public(item.path)!r} cannot be read: {error.strerror or error}") from error


def _named(path: str) -> Reader | None:
    """The first reader that takes files of this name."""
    name = file_name(path)
    return next((reader for reader in READERS.values() if reader.claims(name)), None)


def _reader_of(item: Found) -> Reader:
    """The reader by name. The first bytes decide if the name is unknown, or if it is vague and the file is local."""
    named = _named(item.path)
    if named and not (named.name_is_vague and not is_remote(item.path)):
        return named
    root = published_sets.root_of(item.path)
    asked = not is_remote(item.path) or opening.is_object(item.path)
    if asked and _SHARD.search(item.path) and published_sets.is_set(root):
        raise InputError(f"{item.path!r} is a shard of a published set: name the folder of the set, {root!r}")
    if _WET.search(file_name(item.path)):
        raise InputError(
            f"{item.name!r} is a WET file. It holds text without images: use the WAT or WARC file of the same crawl"
        )
    reader = _sniff(item.path) or named
    if _TAR.search(file_name(item.path)):
        return reader or READERS[WEBDATASET]  # which says what is wrong with it
    if reader is None:
        where = public(item.path)
        if _lists_addresses(read_head(item.path)):
            raise InputError(
                f"{where!r} lists addresses without texts, and queries are found in texts. If they are addresses of "
                f"inputs, name the list as @{where}"
            )
        raise InputError(
            f"{where!r} has an unknown format, by name and by first bytes: expected {readable()}; or set --input-format"
        )
    return reader


def _lists_addresses(head: bytes) -> bool:
    """True if the first lines are web addresses, and nothing else stands in them."""
    lines = [line.strip() for line in head.removeprefix(codecs.BOM_UTF8).split(b"\n")[:10] if line.strip()]
    return bool(lines) and all(map(_ADDRESS.fullmatch, lines))


def _sniff(path: str) -> Reader | None:
    """The first reader that recognises the first bytes of the file; None if no reader does."""
    head = read_head(path)
    readers = sorted(READERS.values(), key=lambda reader: reader.is_general)
    return next((reader for reader in readers if reader.sniff(head)), None)


def readable() -> str:
    """The names of files that can be read: "*.warc *.arc (also .gz, .lz4, .zst), *.wacz", and so on."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for reader in READERS.values():
        every = (*reader.suffixes, *reader.vague_suffixes)
        for bare in every:
            if any(bare.startswith(f"{other}.") for other in every):
                continue  # the compressed form of another suffix
            packings = tuple(end.removeprefix(bare) for end in every if end.startswith(f"{bare}."))
            groups.setdefault((reader.name, packings), []).append(f"*{bare}")
    also = {packings: f" (also {', '.join(packings)})" if packings else "" for _, packings in groups}
    return ", ".join(" ".join(names) + also[packings] for (_, packings), names in groups.items())
