"""The files of a run: what is written comes back, a flipped bit is noticed, and nobody goes past the module."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset import damage
from pipeline.dataset.verify import verify
from pipeline.engine import shuffle_files, storage
from pipeline.engine.storage import DamagedError
from tests import samples
from tests.places import ROOT

TABLE = pa.table({"n": pa.array(range(300), pa.int32()), "text": [f"text {n}" if n % 5 else None for n in range(300)]})
SCHEMA = pa.schema([pa.field("n", pa.int32()), pa.field("text", pa.string())])


def write_batches(path: str) -> None:
    with storage.writing_batches(path, TABLE.schema) as out:
        for batch in TABLE.to_batches(max_chunksize=100):
            out.write_batch(batch)


def write_buckets(path: str) -> None:
    (batch,) = TABLE.cast(SCHEMA).combine_chunks().to_batches()
    messages = shuffle_files.cut(batch, np.arange(300) % 5, 8)  # three are empty
    shuffle_files.write(path, messages)


def read_buckets(path: str) -> list[int]:
    messages = [shuffle_files.read(path, bucket) for bucket in range(8)]
    assert messages == [dict(shuffle_files.read_all(path)).get(bucket, b"") for bucket in range(8)]
    return sorted(shuffle_files.table(messages, SCHEMA)["n"].to_pylist())


class Form:
    """A form of file: how it is written and read, and what comes back."""

    def __init__(self, write: Callable[[str], Any], read: Callable[[str], Any], content: Any) -> None:
        self.write, self.read, self.content = write, read, content


FORMS = {
    "arrow": Form(write_batches, lambda path: pa.Table.from_batches(storage.read_batches(path)), TABLE),
    "parquet": Form(lambda path: storage.write_table(path, TABLE), storage.read_table, TABLE),
    "buckets": Form(write_buckets, read_buckets, list(range(300))),
    "npy": Form(
        lambda path: storage.save_array(path, np.arange(70)),
        lambda path: storage.map_array(path).tolist(),
        list(range(70)),
    ),
    "empty npy": Form(
        lambda path: storage.save_array(path, np.zeros(0)), lambda path: storage.map_array(path).tolist(), []
    ),
    "bytes": Form(
        lambda path: storage.write_bytes(path, b"mask" * 99), lambda p: bytes(storage.read_bytes(p)), b"mask" * 99
    ),
    "no bytes": Form(lambda path: storage.write_bytes(path, b""), lambda p: bytes(storage.read_bytes(p)), b""),
    "json": Form(
        lambda path: storage.write_json(path, {"b": [1, 2.5], "a": "ü"}), storage.read_json, {"a": "ü", "b": [1, 2.5]}
    ),
    "list": Form(lambda path: storage.write_list(path, ["x", {}]), storage.read_list, ["x", {}]),
}


@pytest.fixture(scope="module", params=FORMS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Form, str]:
    form, path = FORMS[request.param], str(tmp_path_factory.mktemp("form") / "file")
    form.write(path)
    return form, path


def test_what_is_written_comes_back(written: tuple[Form, str]) -> None:
    form, path = written
    assert form.read(path) == form.content
    assert os.listdir(os.path.dirname(path)) == ["file"]


def test_equal_contents_are_equal_bytes(written: tuple[Form, str], tmp_path: Path) -> None:
    form, path = written
    form.write(str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == Path(path).read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_flip_anywhere_is_noticed_before_the_bytes_are_used(written: tuple[Form, str], data: st.DataObject) -> None:
    """Beginning, middle and end alike: hypothesis likes the ends, so half of the places are near them."""
    form, path = written
    good = Path(path).read_bytes()
    size = 8 * len(good)
    near = st.integers(0, min(size, 800) - 1)
    bit = data.draw(st.one_of(st.integers(0, size - 1), near, near.map(lambda place: size - 1 - place)))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    try:
        Path(path).write_bytes(bad)
        storage.forget()
        with pytest.raises(DamagedError, match="file is damaged"):
            form.read(path)
    finally:
        Path(path).write_bytes(good)
        storage.forget()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_cut_or_longer_file_is_noticed(written: tuple[Form, str], data: st.DataObject) -> None:
    form, path = written
    good = Path(path).read_bytes()
    keep, more = data.draw(st.integers(0, len(good))), data.draw(st.binary(max_size=20))
    if good[:keep] + more == good:
        return
    try:
        Path(path).write_bytes(good[:keep] + more)
        storage.forget()
        with pytest.raises(DamagedError):
            form.read(path)
    finally:
        Path(path).write_bytes(good)
        storage.forget()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for form in FORMS.values():
        if form.read is not storage.read_json:  # None: many of them may be missing
            with pytest.raises(DamagedError, match="nowhere is missing"):
                form.read(str(tmp_path / "nowhere"))
    assert storage.read_json(str(tmp_path / "nowhere")) is None


def test_any_reader_passes_the_seal_by(tmp_path: Path) -> None:
    """A seal lies before the footer, or behind the array."""
    for name in ("arrow", "parquet", "npy"):
        FORMS[name].write(str(tmp_path / name))
        assert storage.MARK in (tmp_path / name).read_bytes()
    assert pa.ipc.open_file(str(tmp_path / "arrow")).read_all() == TABLE
    assert pq.read_table(tmp_path / "parquet") == TABLE
    for mode in (None, "r"):
        assert np.load(tmp_path / "npy", mmap_mode=mode).tolist() == list(range(70))


def test_a_checked_file_is_not_read_again_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "file")
    read: list[int] = []
    digest = storage._digest
    monkeypatch.setattr(storage, "_digest", lambda *args: (read.append(1), digest(*args))[1])
    storage.write_bytes(path, b"one")
    assert [bytes(storage.read_bytes(path)) for _ in range(3)] == [b"one"] * 3 and len(read) == 1
    storage.write_bytes(path, b"two")
    assert bytes(storage.read_bytes(path)) == b"two" and len(read) == 2
    os.utime(path, ns=(1, 1))
    storage.check(path)
    assert len(read) == 3


def test_a_bucket_costs_its_own_bytes(tmp_path: Path) -> None:
    """Damage in another bucket is that reader's matter."""
    path = tmp_path / "file"
    write_buckets(str(path))
    good = [shuffle_files.read(str(path), bucket) for bucket in range(8)]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # of bucket 4, the last that has rows
    path.write_bytes(data)
    assert [shuffle_files.read(str(path), bucket) for bucket in (0, 3, 7)] == [good[0], good[3], good[7]]
    with pytest.raises(DamagedError):
        shuffle_files.read(str(path), 4)


# ------------------------------------------------------------------------------------------------------------- JSON


def test_the_checksum_is_that_of_xxhsum(tmp_path: Path) -> None:
    """With zeros in the place of its digits: a line of sed and xxhsum -H3 tells the same."""
    import xxhash

    storage.write_json(
        str(tmp_path / "a.json"), {"z": {"checksum": "0" * 16}, "text": '"checksum": "0123456789abcdef"'}
    )
    text = (tmp_path / "a.json").read_text()
    digits = json.loads(text)["checksum"]
    assert xxhash.xxh3_64_hexdigest(text.replace(digits, "0" * 16).encode()) == digits


def test_every_bit_of_a_manifest_is_noticed_by_verify(tmp_path: Path) -> None:
    """All bits of its head, where the checksum and the digest lie, and one in seven bytes elsewhere."""
    samples.publish(tmp_path, count=3, per_shard=3)
    path = tmp_path / "manifest.json"
    good = path.read_bytes()
    assert not list(verify(str(tmp_path), quick=True))
    head = good.index(b'"files"')
    silent = []
    for bit in [*range(8 * head), *range(8 * head + 3, 8 * len(good), 8 * 7 + 1)]:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        if not any(fault.path == "manifest.json" for fault in verify(str(tmp_path), quick=True)):
            silent.append(bit)
    assert not silent


def test_every_bit_of_an_info_is_noticed_by_verify(tmp_path: Path) -> None:
    samples.publish(tmp_path, count=3, per_shard=3)
    path = tmp_path / "stages/match/info.json"
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        assert "stages/match/info.json" in {fault.path for fault in verify(str(tmp_path), quick=True)}, bit


def test_a_set_of_an_older_version_is_sound_with_a_note(tmp_path: Path) -> None:
    samples.publish(tmp_path, count=3, per_shard=3)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["checksum"], manifest["shards"]  # format 1 had neither
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    for path in (tmp_path / "stages").glob("*/info.json"):
        info = json.loads(path.read_text())
        del info["checksum"]
        path.write_text(json.dumps(info))
    notes: list[str] = []
    assert not list(verify(str(tmp_path), quick=True, note=notes.append))  # the samples are those of format 2
    assert notes[0] == "manifest.json: written by an older version, without a checksum of its own" and len(notes) == 8
    assert {fault.problem.partition(":")[0] for fault in verify(str(tmp_path), quick=True, stages=True)} == {
        "is damaged (it has no checksum)",
        "is missing",  # older versions kept no list of the files of a stage
    }


def test_the_stage_to_redo(tmp_path: Path) -> None:
    """That of the file, or the first of the stages that went over the rows in one pass."""
    for stage, parts in (("gather", "gather/parts"), ("match", "match/parts"), ("dedup", "match/parts")):
        rows = {"parts": {"path": f"stages/{parts}"}}
        storage.write_json(str(tmp_path / "stages" / stage / "info.json"), {"rows": rows})
    (tmp_path / "stages/match/parts").mkdir()
    redo = {
        stage: damage.stage_to_redo(str(tmp_path / "stages" / stage / "a/b")) for stage in ("gather", "match", "dedup")
    }
    assert redo == {"gather": "gather", "match": "gather", "dedup": "dedup"}
    (tmp_path / "stages/gather/parts").mkdir()
    assert damage.stage_to_redo(str(tmp_path / "stages/match/parts/00000.json")) == "match"
    assert damage.stage_to_redo(str(tmp_path / "queries.parquet")) is None


# ------------------------------------------------------------------------------------------- nobody goes past storage

# Calls that open, write, rename, map or list files. A name ends with "." where every function of the module counts.
PAST = (
    *("open", "os.open", "os.listdir", "os.scandir", "os.walk", "os.rename", "os.replace", "os.unlink", "os.remove"),
    *("os.pread", "os.preadv", "glob.", "shutil.rmtree", "shutil.move", "json.load", "mmap."),
    *("np.load", "np.save", "np.savez", "np.fromfile", "np.memmap", "np.tofile"),
    *("pa.memory_map", "pa.OSFile", "pa.input_stream", "pa.output_stream", "pa.ipc.open_file", "pa.ipc.new_file"),
    *("pq.read_table", "pq.write_table", "pq.ParquetFile", "pq.ParquetWriter", "pq.read_metadata", "pq.read_schema"),
)
METHODS = ("read_text", "write_text", "read_bytes", "write_bytes", "tofile", "iterdir", "glob", "rglob", "unlink")
FILES_OF_RUNS = [
    *sorted((ROOT / "pipeline/stages").glob("*.py")),
    *sorted((ROOT / "pipeline/dataset").glob("*.py")),
    *(ROOT / "pipeline" / path for path in ("build.py", "text/matcher.py", "fetching/downloader.py")),
    *(ROOT / "pipeline/engine" / path for path in ("rows.py", "work.py", "tasks.py", "steps.py", "shuffle_files.py")),
    ROOT / "pipeline/inspect_shards.py",
    *sorted((ROOT / "pipeline/inspector").glob("*.py")),
    ROOT / "queries/job.py",
]
ALLOWED = {
    ("pipeline/stages/caps.py", "open"): "the list of stop queries is the user's",
    ("pipeline/stages/embeddings.py", "open"): "writes under the name that storage.sealing gives",
    ("pipeline/stages/embeddings.py", "pq.ParquetFile"): "the tables of --embeddings are the user's",
    ("pipeline/stages/evaluation_images.py", "pq.ParquetFile"): "evaluation images are the user's",
    ("pipeline/stages/evaluation_images.py", "pq.read_metadata"): "the same",
    ("pipeline/stages/evaluation_images.py", "pq.read_schema"): "the same",
    ("pipeline/stages/robots_archive.py", "pa.memory_map"): "one row of a file that storage.check has checked",
    ("pipeline/stages/robots_archive.py", "pa.ipc.open_file"): "the same",
    ("pipeline/stages/scores.py", "pa.input_stream"): "the tables of --scores are the user's",
    ("pipeline/stages/scores.py", "pq.read_schema"): "the same",
    ("pipeline/stages/scores.py", "pq.read_table"): "the same, with page checksums",
    ("pipeline/stages/fetch_progress.py", "open"): "live figures, written in place each second; no row depends on them",
    ("pipeline/stages/fetch_progress.py", "json.load"): "the same: half a file is read again a second later",
    ("pipeline/dataset/exports.py", "pq.ParquetWriter"): "writes the user's file, under a name of storage.temporary",
    ("pipeline/engine/work.py", "open"): "locks are held on open files that have no content",
    ("pipeline/engine/work.py", "(top / name).rglob"): "the code of the package itself",
    ("pipeline/engine/work.py", "path.read_bytes"): "the same",
    ("pipeline/fetching/downloader.py", "pa.ipc.new_file"): "img2dataset reads it in memory",
    ("pipeline/inspect_shards.py", "os.open"): "/dev/null in the place of a closed pipe",
    ("pipeline/inspector/export.py", "os.listdir"): "asks if the user's folder is empty",
    ("pipeline/inspector/find.py", "open"): "the user's picture of --like",
    ("pipeline/inspector/summary.py", "open"): "writes the user's file, which must be new",
    ("pipeline/inspector/export.py", "os.replace"): "gives the user's path to what a writer has finished",
    ("pipeline/inspector/export.py", "os.unlink"): "removes what a writer has not finished",
    ("pipeline/inspector/export.py", "shutil.rmtree"): "the same",
    ("pipeline/inspector/foreign.py", "open"): "files of another tool are the user's; of a store, their copies here",
    ("pipeline/inspector/foreign.py", "os.walk"): "the same",
    ("pipeline/inspector/foreign.py", "pq.ParquetFile"): "the same",
    ("pipeline/inspector/foreign.py", "json.load"): "the same",
    ("pipeline/inspector/foreign.py", "mmap.mmap"): "the same",
    ("pipeline/inspector/formats.py", "open"): "writes the user's files, below a name that is not final",
    ("pipeline/inspector/formats.py", "os.rename"): "the same",
    ("pipeline/inspector/formats.py", "os.unlink"): "the same",
    ("pipeline/inspector/formats.py", "pq.ParquetWriter"): "the same",
}


def calls(path: Path) -> set[str]:
    """The calls in a file that go past the storage."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and node.id == "open":
            found.add("open")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if any(name == one or (one.endswith(".") and name.startswith(one)) for one in PAST):
            found.add(name)
        owner, _, method = name.rpartition(".")
        if method in METHODS and owner != "storage":
            found.add(name)
    return found


def test_files_of_a_run_are_opened_in_one_place() -> None:
    found = {(str(path.relative_to(ROOT)), call) for path in FILES_OF_RUNS for call in calls(path)}
    assert found == set(ALLOWED)


def test_stages_use_no_form_without_a_checksum() -> None:
    """`files` is the lower half of the storage; what has no checksum is published, or not the run's."""
    plain = {
        ("pipeline/build.py", "write_plain"): "recipe.yaml, listed in checksums.json",
        ("pipeline/stages/match.py", "write_published"): "queries.parquet, listed in checksums.json",
        ("pipeline/stages/publish.py", "write_published"): "rejected/, listed in the manifest",
        ("pipeline/stages/purge.py", "write_published"): "the same, after a pair was forgotten",
    }
    found = set()
    for path in [*sorted((ROOT / "pipeline/stages").glob("*.py")), ROOT / "pipeline/build.py", ROOT / "queries/job.py"]:
        text = ast.parse(path.read_text())
        imported = {alias.name for node in ast.walk(text) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert "files" not in imported, path
        for node in ast.walk(text):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "storage":
                if node.attr in ("write_plain", "write_published", "writing", "temporary"):
                    found.add((str(path.relative_to(ROOT)), node.attr))
    assert found == set(plain)


# ------------------------------------------------------------------------------- all of pipeline works on a store, too

CALLS = {
    **dict.fromkeys("stat lstat listdir scandir walk rename replace unlink remove rmdir makedirs mkdir".split(), "os"),
    **dict.fromkeys("link symlink open truncate utime chmod".split(), "os"),
    **dict.fromkeys("exists lexists isfile isdir islink getsize getmtime".split(), "os.path"),
    **dict.fromkeys("copy copy2 copyfile copytree move rmtree".split(), "shutil"),
    **dict.fromkeys("memory_map OSFile input_stream output_stream".split(), "pa"),
    **dict.fromkeys("ParquetFile read_table read_schema read_metadata write_table".split(), "pq"),
    **dict.fromkeys("load memmap fromfile".split(), "np"),
    **dict.fromkeys("glob iglob".split(), "glob"),
    "mmap": "mmap",
}
# The modules that open or look for files without `storage`, and which files these are. All are of this machine alone.
LOCAL = {
    "demo": "the folder of the demo",
    "doctor": "tries what a folder of this machine can do",
    "engine.checks": "options that name files of this machine; URLs are looked at before",
    "engine.engine_checks": "jars and programs",
    "engine.fence": "beside OUT",
    "engine.files": "storage calls it",
    "engine.input_cache": "--input-cache",
    "engine.jit": "compiled kernels",
    "engine.lease": "the name of this machine, in the scratch folder",
    "engine.live_job": "processes, in /proc",
    "engine.log_file": "--log-file",
    "engine.log_options": "--log-file",
    "engine.object_cache": "the scratch folder; storage calls it",
    "engine.gcs_store": "files that are sent or written; storage calls it",
    "engine.s3_store": "files that are sent or written; storage calls it",
    "engine.object_view": "lists in the scratch folder; storage calls it",
    "engine.opening": "inputs of this machine",
    "engine.parquet_footer": "a temporary file of storage",
    "engine.remote": "the pace of requests, beside OUT",
    "engine.scratch": "the scratch folder",
    "engine.storage": "",
    "engine.watchdog": "OUT if it is a folder of this machine",
    "engine.work": "locks, beside OUT",
    "explore": "/dev/null",
    "explorer.building": "the user's cache",
    "explorer.coding": "the user's cache",
    "explorer.index": "the user's cache",
    "explorer.neighbours": "the user's cache",
    "explorer.watch": "the user's cache",
    "fetching.answer": "memory without a file",
    "fetching.helper": "/dev/null",
    "fetching.pieces": "pieces of a fetch, beside OUT",
    "inspect_shards": "/dev/null",
    "inspector.export": "--to",
    "inspector.find": "--image",
    "inspector.foreign": "files of other tools",
    "inspector.formats": "--to",
    "inspector.opening": "a folder of this machine; URLs go to storage",
    "engine.variables": "folders of this machine",
    "inspector.rows": "--to",
    "inspector.summary": "--to",
    "planning.plan": "the free space of a disk",
    "planning.sample": "temporary files",
    "sources.archive": "inputs of this machine",
    "sources.inputs": "inputs of this machine",
    "sources.pieces": "temporary files",
    "sources.tables": "inputs of this machine",
    "sources.tar_reader": "inputs of this machine",
    "sources.published_sets": "a published set of this machine",
    "sources.set_reader": "a published set of this machine",
    "stages.embeddings": "a temporary file of storage",
    "stages.evaluation_images": "a name with an equals sign in it",
    "stages.fetch_progress": "figures, beside OUT",
    "stages.left_out": "inputs of this machine",
    "stages.match": "--queries, if they are of this machine",
    "stages.other_sets": "a folder of this machine; URLs go to storage",
    "stages.robots_archive": "a copy that storage has checked",
    "text.fasttext_file": "a model: its copy on this machine",
}


_OPENS = re.compile(
    r"(?<![\w.])(?<!def )(?:open|" + "|".join(re.escape(f"{module}.{name}") for name, module in CALLS.items()) + r")\("
    r"(?!storage\.here\()"
)


def opens_files(path: Path) -> bool:
    """True if a module opens or looks for a file by its path. It may open a copy that `storage.here` gives."""
    return any(
        _OPENS.search(line) for line in path.read_text().splitlines() if not line.lstrip().startswith(("#", '"'))
    )


def test_no_module_looks_for_files_of_a_set_by_a_path_of_this_machine() -> None:
    top = ROOT / "pipeline"
    names = {path: ".".join(path.relative_to(top).with_suffix("").parts) for path in top.rglob("*.py")}
    found = {name.removesuffix(".__init__"): opens_files(path) for path, name in names.items()}
    assert {"demo" if name.startswith("demo.") else name for name, opens in found.items() if opens} == set(LOCAL)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/self/smaps")
def test_a_released_array_takes_no_memory_until_it_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "numbers.npy"
    storage.save_array(str(path), np.arange(1 << 19).reshape(-1, 512))
    array = storage.map_array(str(path))

    def held() -> int:
        lines = Path("/proc/self/smaps").read_text().split(f"{path}\n")[1]
        return int(re.search(r"Rss: +(\d+) kB", lines)[1])

    total = array.sum()
    assert held() > 4000
    storage.release(array)
    assert held() == 0
    assert array.sum() == total
    storage.release(np.zeros(3))  # not of a file: nothing happens


def test_an_arrow_file_without_batches_has_an_empty_one(tmp_path: Path) -> None:
    """`forget` may take all rows out of a part, and readers join the batches of a part."""
    path = str(tmp_path / "x.arrow")
    with storage.writing_batches(path, TABLE.schema):
        pass
    (batch,) = storage.read_batches(path)
    assert batch.num_rows == 0 and batch.schema == TABLE.schema
    (batch,) = storage.read_batches(path, TABLE.column_names[:1])
    assert batch.schema.names == TABLE.column_names[:1]
