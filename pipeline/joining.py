"""Two sets become one: what `pipeline.build --extend --input OTHER` does before it copies from the folder OTHER.

What one of the sets has forgotten leaves the other one. OTHER itself is never changed: where pairs must go, they go
from a copy.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from pipeline import forget
from pipeline.dataset import tombstones
from pipeline.dataset.tombstones import Tombstones
from pipeline.engine import log_file, storage, work
from pipeline.engine.input_errors import RefusedInputError
from pipeline.sources import published_sets
from pipeline.stages.other_sets import TAKEN, OtherSet
from pipeline.stages.run import Run

COPY = ".other-"  # in OUT, or in the scratch folder for it: begins the name of a copy of another set


def forget_what_others_forgot(run: Run, *, quiet: bool = False) -> None:
    """Takes pairs out of the set that another set of the run has forgotten, as `pipeline.forget` does.

    Raises:
        Busy: another run holds the folder.
        Damaged, DamagedError: a file is damaged.
    """
    if run.recorded is None:  # `begin_with_lists`
        return
    for name, theirs in _lists_of_others(run):
        ours = Tombstones.load(run.root)
        if ours is not None and ours.includes(theirs):
            continue
        found = forget.forget(run.root, forget.SelectionOf(stones=theirs))
        if found.pairs:
            said = f"pipeline.build: {found.pairs:,} pairs go, since {name} has forgotten them"
            log_file.say(said, quiet=quiet, pairs=found.pairs)


def begin_with_lists(run: Run) -> None:
    """Gives a new set what the sets among its inputs have forgotten. The folder must be locked.

    Raises:
        DamagedError: a list is damaged.
    """
    if run.recorded is not None:
        return
    before = joined = Tombstones.load(run.root)
    for _, theirs in _lists_of_others(run):
        joined = theirs if joined is None else joined.join(theirs)
    if joined is not None and (before is None or not before.includes(joined)):
        joined.write(os.path.join(run.root, tombstones.FILE))


def _lists_of_others(run: Run) -> Iterator[tuple[str, Tombstones]]:
    """What each other set of the run has forgotten, with the name of the set: for messages."""
    named = [(other.spec, other.root) for other in run.others]
    named += [(root, root) for root in published_sets.sets_among(run.new_inputs)]
    for name, root in named:
        theirs = Tombstones.load(root)
        if theirs is not None:
            yield name, theirs


@contextlib.contextmanager
def readable_sets(run: Run) -> Iterator[dict[str, str]]:
    """Yields the folders to read in the place of other sets, where they are others. The sets do not change meanwhile.

    Raises:
        Busy: a build runs in another set.
    """
    here = storage.beside(run.root)
    for name in storage.names(here):
        if name.startswith(COPY):
            storage.remove(os.path.join(here, name))  # of a run that was killed
    ours, roots = Tombstones.load(run.root), dict[str, str]()
    with contextlib.ExitStack() as stack:
        for other in run.others:
            if storage.is_url(other.root) or os.access(other.root, os.W_OK):
                with contextlib.suppress(RefusedInputError):  # a store whose objects may only be read
                    stack.enter_context(work.lock_run_folder(other.root))
            theirs = Tombstones.load(other.root)
            if ours is not None and not (theirs is not None and theirs.includes(ours)):
                roots[other.root] = tempfile.mkdtemp(prefix=COPY, dir=here)
                stack.callback(storage.remove, roots[other.root])
                _copy(other, roots[other.root])
                forget.forget(roots[other.root], forget.SelectionOf(stones=ours))
        yield roots


def _copy(other: OtherSet, target: str) -> None:
    """Copies what is taken of a set."""
    for stage in TAKEN:
        for path in storage.walk(os.path.join(other.root, "stages", stage)):
            storage.copy(path, os.path.join(target, os.path.relpath(path, other.root)))
    for name in ("inputs.json", tombstones.FILE):
        if storage.is_file(os.path.join(other.root, name)):
            storage.copy(os.path.join(other.root, name), os.path.join(target, name))
