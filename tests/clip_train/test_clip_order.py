"""The order of the samples: a permutation at any size, windows, online balance; the file of the index."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_train import index_file, shards
from clip_train.errors import InputMissing, TrainError
from clip_train.index import Index, digest_of, key_of
from clip_train.index_file import KEEP_UNIT, Table, Writer
from clip_train.order import Stream
from clip_train.shards import open_index
from tests.clip_train.conftest import write_manifest


def index_of(counts: list[int], keep: np.ndarray | None = None) -> Index:
    """An index of shards with these numbers of samples, which are not anywhere."""
    columns = ["image_block", "image_size"] + (["keep"] if keep is not None else [])
    at = 0
    with tempfile.TemporaryFile() as file:
        with Writer(file, columns=columns, keys=False) as writer:
            writer.begin_metadata("x")
            for count in counts:
                shard = {"image_offset": np.arange(count) * 512, "image_size": np.full(count, 7)}
                if keep is not None:
                    shard["keep_probability"] = keep[at : at + count]
                writer.add_shard(shard, (), size=count * 512)
                at += count
            writer.finish([f"{number}.tar" for number in range(len(counts))])
        table = Table(file, "test")
    return Index(tuple(table.names), table)


COUNTS = st.lists(st.integers(0, 70), min_size=1, max_size=9).filter(any)


@settings(max_examples=40, deadline=None)
@given(counts=COUNTS, window=st.integers(0, 10), seed=st.integers(0, 2**40), cut=st.integers(1, 50))
@example(counts=[0, 3, 0, 0, 5, 0], window=1, seed=0, cut=1)
def test_every_sample_once_an_epoch_at_any_cut(counts, window, seed, cut):
    index = index_of(counts)
    stream, total = Stream(index, seed=seed, window=window), sum(counts)
    samples, epochs = stream.samples(0, 2 * total)
    for epoch in (0, 1):
        assert sorted(samples[epochs == epoch].tolist()) == list(range(total))
    pieces = [stream.samples(at, min(cut, 2 * total - at))[0] for at in range(0, 2 * total, cut)]
    assert np.array_equal(np.concatenate(pieces), samples)
    if window:
        numbers = stream.windows(samples, epochs)
        assert (np.diff(numbers) >= 0).all()
        for number in np.unique(numbers):
            assert set(index.shard_of(samples[numbers == number]).tolist()) <= set(stream.shards_of(int(number)))


@settings(max_examples=30, deadline=None)
@given(counts=COUNTS, window=st.integers(0, 4), seed=st.integers(0, 2**40), draw=st.randoms(use_true_random=False))
def test_online_balance_takes_each_pair_at_most_once_and_sure_ones_always(counts, window, seed, draw):
    keep = np.array([draw.choice([0.0, 1.0, draw.random(), 1e-6]) for _ in range(sum(counts))], np.float32)
    keep[draw.randrange(len(keep))] = 1
    stream = Stream(index_of(counts, keep), seed=seed, window=window, online_balance=True)
    length = int(3 * keep.sum()) + 3
    samples, epochs = stream.samples(0, length)
    for epoch in range(3):
        start, end = stream._bounds(epoch)
        assert abs((end - start) - keep.astype(np.float64).sum()) < 1
        chosen = stream.samples(start, end - start)[0]
        assert len(set(chosen.tolist())) == len(chosen) and (keep[chosen] > 0).all()
        assert set(np.flatnonzero(keep == 1).tolist()) <= set(chosen.tolist())
    pieces = [stream.samples(at, min(7, length - at))[0] for at in range(0, length, 7)]
    assert np.array_equal(np.concatenate(pieces), samples)
    if window:
        assert (np.diff(stream.windows(samples, epochs)) >= 0).all()


@pytest.mark.parametrize("window", [0, 2])
def test_online_balance_keeps_a_pair_as_often_as_its_probability_says(window):
    keep = np.random.default_rng(0).random(200) ** 2
    stream = Stream(index_of([90, 0, 110], keep), seed=3, window=window, online_balance=True)
    hits, together = np.zeros(200), np.zeros((200, 200))
    for epoch in range(600):
        start, end = stream._bounds(epoch)
        chosen = stream.samples(start, end - start)[0]
        hits[chosen] += 1
        together[np.ix_(chosen, chosen)] += 1
    stored = np.round(keep * KEEP_UNIT) / KEEP_UNIT
    assert np.abs(hits / 600 - stored).max() < 5 * 0.5 / 600**0.5
    # neighbours are drawn almost independently of each other
    expected = np.outer(keep, keep)[np.triu_indices(200, 1)]
    assert np.abs((together / 600)[np.triu_indices(200, 1)] - expected).mean() < 0.02


def test_an_epoch_without_a_pair_is_refused():
    stream = Stream(index_of([5, 5], np.zeros(10)), seed=0, online_balance=True)
    with pytest.raises(InputMissing, match="the keep probabilities leave no pair"):
        stream.epoch_of(0)


def test_an_order_over_400_million_samples_is_computed_where_it_is_asked(monkeypatch):
    index = index_of([10])
    monkeypatch.setattr(index.table, "samples", 400_000_000)
    monkeypatch.setattr(index.table, "bounds", np.arange(40_001) * 10_000)
    object.__setattr__(index, "paths", tuple(map(str, range(40_000))))
    for window in (0, 8):
        stream = Stream(index, seed=1, window=window)
        samples, _ = stream.samples(399_990_000, 20_000)
        assert len(set(samples[:10_000].tolist())) == 10_000 and samples.max() < 400_000_000
        assert len(set(index.shard_of(samples[:10_000]).tolist())) == (8 if window else pytest.approx(8850, rel=0.05))


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_published_pair_takes_32_bytes_and_one_of_tars_28_and_its_key(published, tars):
    for folder, bytes_a_pair in ((published(samples=480, shards=1), 32), (tars(samples=480, shards=1), 28)):
        open_index(str(folder))
        (kept,) = (folder / ".clip_train").glob("*.index")
        assert kept.stat().st_size - 480 * bytes_a_pair < 3000  # footer, and the keys of 480


def test_the_pages_are_given_back(monkeypatch):
    given_back = []
    index = index_of([3000])

    class Watched:
        def madvise(self, option: int) -> None:
            given_back.append(option)

    monkeypatch.setattr(index.table, "_map", Watched())
    index.rows(np.arange(2000))
    assert len(given_back) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_by_its_mode(tars, tmp_path):
    folder = tars(samples=4, shards=1)
    folder.chmod(0o500)
    try:
        assert len(open_index(str(folder), cache=str(tmp_path / "cache"))) == 4
    finally:
        folder.chmod(0o700)


def test_where_the_folder_cannot_be_written_the_index_is_kept_elsewhere(published, tmp_path, monkeypatch):
    folder = published(samples=12)
    cache = tmp_path / "cache"
    (folder / ".clip_train").write_bytes(b"a file is in the way")
    digest = digest_of(open_index(str(folder), cache=str(cache)))
    assert len(list(cache.rglob("*.index"))) == 1
    monkeypatch.setattr(shards, "write_index", None)  # it is not made again
    assert len(open_index(str(folder), cache=str(cache))) == 12
    monkeypatch.undo()
    monkeypatch.setattr(index_file, "_write_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
    index = open_index(str(folder), cache=str(tmp_path / "other"))
    assert digest_of(index) == digest and index.keys_of([11]) == ["0000200011"]
    assert not list((tmp_path / "other").rglob("*.index"))


def test_processes_make_it_once_and_share_it(tars, monkeypatch):
    folder = tars(samples=12, shards=3)
    open_index(str(folder))
    monkeypatch.setattr(shards, "scan_tar", None)
    one, two = open_index(str(folder)), open_index(str(folder))
    maps = Path("/proc/self/maps").read_text().count(".index")
    assert maps >= 2 and one.keys_of(range(12)) == two.keys_of(range(12))


def test_metadata_in_any_order_is_grouped_by_shard(published):
    folder = published(samples=30, shards=3)
    whole = open_index(str(folder))
    expected = {key: whole.place("image", row) for row, key in enumerate(whole.keys_of(range(30)))}
    files = sorted((folder / "metadata").iterdir())
    table = pa.concat_tables([pq.read_table(path) for path in files])
    mixed = table.take(pa.array(np.random.default_rng(1).permutation(30)))
    for number, path in enumerate(files):
        pq.write_table(mixed.slice(number * 10, 10), path)
    write_manifest(folder)
    index = open_index(str(folder))
    found = {key: index.place("image", row) for row, key in enumerate(index.keys_of(range(30)))}
    assert {key: (index.paths[shard], *place) for key, (shard, *place) in found.items()} == {
        key: (whole.paths[shard], *place) for key, (shard, *place) in expected.items()
    }


@pytest.mark.parametrize("column, value, message", [
    ("keep_probability", 1.5, "outside of \\[0, 1\\]"), ("keep_probability", float("nan"), "outside of \\[0, 1\\]"),
    ("jpg_offset", 513, "does not begin at a multiple of 512"), ("sha256", "0" * 63, "has another length"),
])  # fmt: skip
def test_metadata_that_cannot_be_true_is_refused(published, column, value, message):
    folder = published(samples=8, shards=2)
    file = folder / "metadata" / "00001.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[2][column] = value
    pq.write_table(pa.Table.from_pylist(rows), file)
    write_manifest(folder)
    with pytest.raises(TrainError, match=f"the metadata does not fit the shards .*{message}"):
        open_index(str(folder))
    assert not list((folder / ".clip_train").glob("*.index"))


def test_metadata_that_is_gone_after_the_index_was_made_is_said_where_a_key_is_needed(published):
    folder = published(samples=8, shards=2)
    index = open_index(str(folder))
    rows = pq.read_table(folder / "metadata" / "00001.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist(rows[:-1]), folder / "metadata" / "00001.parquet")
    with pytest.raises(TrainError, match="has 3 rows, the index has 4"):
        index.keys_of([5])
    assert key_of(index, 5) == "00001.tar:sample 5"
