"""What a run knows of OUT on a store is what the store says, at every moment (a store of a few dictionaries)."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import object_store, object_view, storage, work
from pipeline.engine.object_store import Entry, Version
from pipeline.engine.progress import AHEAD, Progress, Watched

ROOT = "s3://bucket/set"
PLACES = [
    f"{ROOT}/{path}"
    for path in ("a", "b/c", "stages/match/x", "stages/match/parts/0", "stages/match/parts/1", "stages/match/parts/d/e")
] + [f"{ROOT}/stages/dedup/parts/0", "s3://bucket/other/a"]
FOLDERS = [ROOT, *(f"{ROOT}/{path}" for path in ("b", "stages", "stages/match", "stages/match/parts", "stages/dedup"))]
FOLDERS += [f"{ROOT}/stages/match/parts/d", f"{ROOT}/stages/dedup/parts"]


class Store:
    """Objects by URL. It counts what it is asked."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked = 0

    def head(self, url: str) -> Version | None:
        self.asked += 1
        return self.peek(url)

    def peek(self, url: str) -> Version | None:
        return Version(len(self.objects[url]), self.tag(url)) if url in self.objects else None

    def below(self, folder: str) -> list[Entry]:
        self.asked += 1
        found = sorted(url for url in self.objects if url.startswith(f"{folder}/"))
        return [Entry(url, *version) for url in found for version in [self.peek(url)] if version]

    def within(self, folder: str) -> tuple[list[Entry], list[str]]:
        found = self.below(folder)
        names = {entry.url[len(folder) + 1 :]: entry for entry in found}
        folders = {name.partition("/")[0] for name in names if "/" in name}
        return [entry for name, entry in names.items() if "/" not in name], sorted(folders)

    def read(self, url: str) -> bytes:
        self.asked += 1
        if url not in self.objects:
            raise FileNotFoundError(url)
        return self.objects[url]

    def download(self, url: str, path: str, *, other_than: str = "") -> str:
        Path(path).write_bytes(self.read(url))
        return self.tag(url)

    def tag(self, url: str) -> str:
        return f'"{hashlib.md5(self.objects[url]).hexdigest()}"'

    def put(self, url: str, data: bytes) -> str:
        self.objects[url] = data
        return self.tag(url)

    def has_objects(self, folder: str) -> bool:
        return bool(self.below(folder))

    def delete(self, *groups: list[str]) -> None:
        for url in (url for group in groups for url in group):
            self.objects.pop(url, None)

    def write(self, url: str, data: bytes) -> None:
        object_view.wrote(url, Version(len(data), self.put(url, data)))


@pytest.fixture(autouse=True, scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    found = Store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENWIT_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        for name in ("head", "below", "within", "has_objects", "delete", "read", "download"):
            patch.setattr(object_store, name, getattr(found, name))
        patch.setattr(object_store, "write", found.put)
        yield found


def seen() -> dict[str, object]:
    """What `storage` says of all places."""
    by_folder = {folder: (storage.names(folder), sorted(storage.walk(folder))) for folder in FOLDERS}
    return {place: (storage.exists(place), storage.state(place)) for place in [*PLACES, *FOLDERS]} | by_folder


STEPS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(PLACES), st.binary(max_size=2)),
    st.tuples(st.just("remove"), st.sampled_from([*PLACES, *FOLDERS[1:]]), st.just(b"")),
    st.tuples(st.just("look"), st.sampled_from(FOLDERS), st.just(b"")),
    st.tuples(st.just("job"), st.sampled_from(PLACES), st.binary(max_size=2)),
)


@given(before=st.dictionaries(st.sampled_from(PLACES), st.binary(max_size=2)), steps=st.lists(STEPS, max_size=12))
def test_the_holder_knows_what_the_store_says(
    store: Store, before: dict[str, bytes], steps: list[tuple[str, str, bytes]]
) -> None:
    store.objects = dict(before)
    with object_view.held(ROOT):
        for kind, path, data in steps:
            if kind == "write":
                store.write(path, data)
            elif kind == "remove":
                storage.remove(path)
            elif kind == "look":
                storage.names(path)
            else:
                with object_view.job(ROOT):
                    store.objects[path] = data  # by a worker
        known = seen()
    assert known == seen()


def test_an_empty_folder_takes_one_list(store: Store) -> None:
    store.objects, store.asked = {}, 0
    with object_view.held(ROOT):
        for number in range(5):
            url = f"{ROOT}/stages/match/parts/{number}"
            assert not storage.exists(url) and not storage.exists(f"{ROOT}/stages/match/COMPLETED")
            store.write(url, b"x")
            assert storage.exists(url) and storage.names(f"{ROOT}/stages/match/parts")[-1] == str(number)
    assert store.asked == 1


def test_a_step_lists_other_folders_once_and_its_own_each_time(store: Store) -> None:
    own, other = f"{ROOT}/stages/dedup/drops", f"{ROOT}/stages/match/parts"
    store.objects = {f"{other}/0.json": b"{}"}
    with object_view.held(ROOT), object_view.job(ROOT):
        job = object_view.job_of(ROOT)

    def look(path: str) -> tuple[int, list[str]]:
        store.asked = 0
        with object_view.in_step(ROOT, job, path):
            assert storage.state(f"{other}/0.json") and not storage.exists(f"{other}/1.json")
            return store.asked, storage.names(own)

    found: list[tuple[int, list[str]]] = []
    assert look(own) == (1, [])
    store.objects[f"{own}/0.json"] = b"{}"
    object_view._of_step.cache_clear()  # as another process of this machine
    assert look(own) == (0, ["0.json"])
    assert look(f"{ROOT}/stages/dedup/masks") == (1, ["0.json"])
    thread = threading.Thread(target=lambda: found.append((object_view.listing(other) is None, [])))
    with object_view.in_step(ROOT, job, own):
        thread.start()
        thread.join()
    assert found == [(True, [])]  # nothing is known there
    with object_view.in_step(ROOT, "", own):
        assert object_view.listing(other) is None


def test_an_index_stands_for_a_list_and_all_manifests(store: Store, tmp_path: Path) -> None:
    step = work.StepFolder(f"{ROOT}/stages/match/parts", "f")
    later = f"{ROOT}/stages/dedup/drops"
    store.objects = {}
    with object_view.held(ROOT):
        with object_view.job(ROOT):
            job = object_view.job_of(ROOT)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("OPENWIT_SCRATCH", str(tmp_path / "first"))
                for unit in range(20):
                    step.write_manifest(unit, {"rows": unit})
                object_view.write_index(ROOT, job, step.path)
            store.asked = 0
            with object_view.in_step(ROOT, job, later, indexed=True):  # on another machine
                assert step.total("rows") == 190 and store.asked == 1
            with object_view.in_step(ROOT, "a later one", later, indexed=True):
                store.asked = 0
                assert step.total("rows") == 190 and store.asked == 2  # a list, too
            step.write_manifest(3, {"rows": 1000})
        store.asked = 0
        assert step.total("rows") == 1187 and store.asked <= 6
        assert f"{ROOT}/.index/stages-match-parts.json" in store.objects
    assert not [url for url in store.objects if "index" in url]


def test_a_look_at_the_progress_lists_the_next_steps_alone(store: Store) -> None:
    store.objects = {}
    steps = [Watched(f"step {n}", work.StepFolder(f"{ROOT}/stages/match/{n}", "f"), units=1) for n in range(9)]
    progress = Progress(steps, io.StringIO())
    for unit in range(3):
        store.asked = 0
        progress.show()
        assert store.asked <= 2 * AHEAD
        steps[unit].folder.write_manifest(0, {})
    progress.show(last=True)
    assert progress._seen[2].rows
