"""Tries what a run does with OUT on a store: it lists, writes under conditions, reads, copies and deletes an object."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipeline.engine import checks, object_store, remote
from pipeline.engine.input_errors import InputError, RefusedInputError
from pipeline.engine.object_store import Conflict

# The rights that requests need: Amazon's and Google's names.
RIGHTS = {
    "list": ("s3:ListBucket", "storage.objects.list"),
    "write": ("s3:PutObject", "storage.objects.create"),
    "read": ("s3:GetObject", "storage.objects.get"),
    "delete": ("s3:DeleteObject", "storage.objects.delete"),
}


class Found(NamedTuple):
    """What was found. `advice`: what to do; "": all is well."""

    found: str
    advice: str = ""


def probe(url: str, *, patience: float) -> Iterator[Found]:
    """Tries a folder of a store, up to the first thing that does not work. The object of the probe goes again.

    Args:
        url: OUT.
        patience: seconds for which a store that is away is asked.
    """
    if needed := checks.missing_package(url):
        yield Found(f"the store cannot be asked: it {needed}", "install it")
        return
    with remote.configured(dataclasses.replace(remote.settings(), patience=patience)):
        names = list[str]()
        if problem := _problem(url, "list", lambda: names.extend(_names(url))):
            yield problem
            return
        yield Found(f"{url} can be listed: it holds {', '.join(sorted(names)[:3]) or 'nothing'}")
        place, made = f"{url}/.doctor-{secrets.token_hex(8)}", set[str]()
        try:
            problem = _writes(place, made)
        finally:
            left = _problem(url, "delete", lambda: object_store.delete(sorted(made))) if made else None
        if left is not None:
            yield problem or left
            yield Found(f"the probe stays: {', '.join(sorted(made))}", "remove it")
            return
        yield problem or Found(
            "write, read, copy and delete work; "
            f"{' and '.join(object_store.store_of(url).conditions)} are heeded, so one run gets OUT"
        )


def _names(url: str) -> list[str]:
    entries, folders = object_store.within(url)
    return [*(entry.url.rpartition("/")[2] for entry in entries), *folders]


def _writes(place: str, made: set[str]) -> Found | None:
    """What does not work of writing, reading and copying objects at a place; None: all works. `made`: what is there."""
    store, tags = object_store.store_of(place), list[str]()

    def write() -> None:
        tags.append(object_store.write(place, b"probe", absent=True))
        made.add(place)
        tags.append(object_store.write(place, b"probe 2", tag=tags[0]))

    def copy() -> None:
        object_store.copy(place, f"{place}-copy", 7)
        made.add(f"{place}-copy")

    if problem := _problem(place, "write", write):
        return problem
    for header, given in zip(store.conditions, ({"absent": True}, {"tag": store.no_tag}), strict=True):
        with contextlib.suppress(Conflict):
            object_store.write(place, b"probe 3", **given)  # type: ignore[arg-type]
            return Found(f"the store ignores {header}: two runs could write there at once", "use another store")
    return _problem(place, "read", lambda: object_store.read(place)) or _problem(place, "write", copy)


def _problem(url: str, right: str, work: Callable[[], object]) -> Found | None:
    """What the store says against a request, and what to do; None: nothing."""
    needed = RIGHTS[right][url.startswith("gs://")]
    try:
        work()
    except FileNotFoundError as error:
        return Found(_said(error), "make the bucket, or check its name")
    except RefusedInputError as error:
        return Found(_said(error), f"check the credentials and the endpoint; {right} needs the right {needed}")
    except Conflict:
        return Found(f"the store refuses a write whose condition holds ({url})", "use another store")
    except InputError as error:
        return Found(_said(error), "check the endpoint and the network, or try again later")
    except OSError as error:
        return Found(f"{right} does not work: {_said(error)}", f"give the right {needed}")
    return None


def _said(error: Exception) -> str:
    return str(error).rstrip(".")
