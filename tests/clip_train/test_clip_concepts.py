"""Batches chosen by the queries of their pairs: what they hold, exact resume, the same for any world size."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from clip_train.concepts import ConceptStream, choose_diverse, choose_first, entropy, open_concepts  # noqa: E402
from clip_train.config import BATCH_CONCEPTS, TrainOptions, resolve  # noqa: E402
from clip_train.data import Loader, LoaderOptions  # noqa: E402
from clip_train.errors import TrainError, UsageError  # noqa: E402
from clip_train.order import Stream  # noqa: E402
from clip_train.shards import open_index  # noqa: E402
from clip_train.tokenizer import load_tokenizer  # noqa: E402
from tests.clip_train.conftest import write_manifest  # noqa: E402


def queries_of(number: int) -> list[int]:
    """One of four frequent queries, some of many rare ones, and nothing for every tenth pair."""
    rare = [4 + (number * 7 + k) % 90 for k in range(number % 4)]
    return [] if number % 10 == 0 else sorted({number % 4, *rare})


@pytest.fixture
def tagged(published):
    """Makes a published folder whose metadata have queries."""

    def make(*, samples: int = 120, shards: int = 3, scattered: bool = False):
        folder = published(samples=samples, shards=shards)
        files = sorted((folder / "metadata").iterdir())
        table = pa.concat_tables([pq.read_table(path) for path in files])
        table = table.append_column(
            "query_ids", pa.array([queries_of(number) for number in range(samples)], pa.list_(pa.int32()))
        )
        if scattered:
            table = table.take(pa.array(np.random.default_rng(0).permutation(samples)))
        for number, path in enumerate(files):
            pq.write_table(table.slice(number * samples // shards, samples // shards), path)
        write_manifest(folder)
        return folder

    return make


def chosen_stream(index, mode: str, **order) -> ConceptStream:
    return ConceptStream(index, concepts=open_concepts(index), mode=mode, ratio=4, seed=5, **order)


@pytest.mark.parametrize("scattered", [False, True])
def test_the_concepts_of_a_pair_are_its_queries(tagged, scattered):
    index = open_index(str(tagged(scattered=scattered)))
    concepts = open_concepts(index)
    samples = np.array([3, 119, 0, 57])
    ids, sizes = concepts.of(samples)
    wanted = [queries_of(int(key[5:])) for key in index.keys_of(samples)]  # the key ends with the number of the pair
    assert ids.tolist() == list(itertools.chain(*wanted)) and sizes.tolist() == [len(each) for each in wanted]
    assert concepts.counts.sum() == sum(len(queries_of(number)) for number in range(120))


@pytest.mark.parametrize("mode", BATCH_CONCEPTS)
@pytest.mark.parametrize("order", [{}, {"window": 1}, {"online_balance": True}])
def test_a_batch_is_a_part_of_its_super_batch_and_depends_on_nothing_else(tagged, mode, order):
    index = open_index(str(tagged()))
    stream, plain = chosen_stream(index, mode, **order), Stream(index, seed=5, **order)
    for first in (24, 0, 8):  # in any order: the state is the number of samples seen
        samples, epochs = stream.samples(first, 8)
        pool, pool_epochs = plain.samples(first * 4, 32)
        pairs = list(zip(pool.tolist(), pool_epochs.tolist(), strict=True))
        places = [pairs.index(pair) for pair in zip(samples.tolist(), epochs.tolist(), strict=True)]
        assert len(places) == 8 and places == sorted(set(places))
        again = chosen_stream(open_index(str(index.paths[0]).rsplit("/shards", 1)[0]), mode, **order)
        assert np.array_equal(again.samples(first, 8)[0], samples)


def test_ranks_and_resumed_runs_see_the_same_batches(tagged, vocabulary):
    index = open_index(str(tagged()))

    def seen(first: int, count: int, **changes) -> list[list[int]]:
        options = LoaderOptions(image_size=16, context_length=20, batch_size=8, max_bad=1.0, **changes)
        with Loader(chosen_stream(index, "diverse"), load_tokenizer(vocabulary), options) as loader:
            steps = itertools.islice(loader.steps(first), count)
            return [[int(sample) for batch in step for sample in batch.samples] for step in steps]

    whole = seen(0, 4)
    assert seen(16, 2) == whole[2:] and seen(0, 4, accumulate=2) == whole
    ranks = [seen(0, 4, rank=rank, world_size=2) for rank in (0, 1)]
    assert [one + two for one, two in zip(*ranks, strict=True)] == whole


def test_each_manner_does_what_it_says(tagged):
    index = open_index(str(tagged(samples=480)))
    concepts = open_concepts(index)

    def measured(stream) -> np.ndarray:
        rows = []
        for step in range(4):
            samples, _ = stream.samples(step * 32, 32)
            ids, sizes = concepts.of(samples)
            head = sum(np.isin(ids, range(4)))
            rows.append([entropy(ids), len(set(ids.tolist())), sizes.mean(), head / len(ids)])
        return np.mean(rows, axis=0)

    plain = measured(Stream(index, seed=5))
    diverse, dense, balanced = (measured(chosen_stream(index, mode)) for mode in BATCH_CONCEPTS)
    assert diverse[0] > plain[0] + 0.5 and diverse[1] > 1.2 * plain[1]
    assert dense[2] > 1.5 * plain[2]
    assert balanced[0] > plain[0] + 0.2 and balanced[3] < 0.9 * plain[3]  # fewer of the frequent ones


def test_diverse_takes_what_the_batch_does_not_have_yet():
    ids, sizes = np.array([7, 7, 7, 2, 7, 2, 9]), np.array([1, 1, 1, 1, 2, 1, 0])
    assert choose_diverse(ids, sizes, 3).tolist() == [0, 3, 5]  # a 7, a 2, and the 9
    assert choose_diverse(ids[:0], np.zeros(4, int), 2).tolist() == [0, 1]
    assert choose_first(np.array([3, 1, 2, 1]), 2).tolist() == [1, 3]


@settings(max_examples=60, deadline=None)
@given(lists=st.lists(st.lists(st.integers(0, 50), max_size=5), min_size=1, max_size=60), data=st.data())
def test_a_choice_has_the_wanted_size(lists, data):
    count = data.draw(st.integers(1, len(lists)))
    chosen = choose_diverse(np.array(list(itertools.chain(*lists)), np.int64), np.array([len(x) for x in lists]), count)
    assert len(chosen) == count == len(set(chosen.tolist())) and sorted(chosen.tolist()) == chosen.tolist()


def test_entropy_is_in_bits():
    assert entropy(np.arange(8)) == 3.0 and entropy(np.zeros(5)) == 0.0
    assert math.isclose(entropy(np.array([0, 0, 1, 2])), 1.5)


def test_data_without_queries_is_refused(tars, published):
    with pytest.raises(UsageError, match="--batch-concepts needs query_ids, .*name that folder with --data"):
        open_concepts(open_index(str(tars())))
    with pytest.raises(TrainError, match="has no column 'query_ids'"):
        open_concepts(open_index(str(published())))


def test_a_super_batch_of_more_than_the_set_is_refused():
    options = TrainOptions(data="x", output="y", model="ViT-Tiny", batch_size=16, steps=1, batch_concepts="dense")
    with pytest.raises(UsageError, match="--super-batch 5 batches of 16 are more than the 79 pairs"):
        resolve(options, samples=79, world_size=1, vocab_size=500, has_gpu=False)
    resolve(options, samples=80, world_size=1, vocab_size=500, has_gpu=False)


def test_training_goes_on_with_the_manner_of_the_run(tagged, vocabulary, tmp_path):
    import dataclasses
    import json

    from clip_train.training import train

    options = TrainOptions(
        data=str(tagged()), output=str(tmp_path / "run"), model="ViT-Tiny", bpe=str(vocabulary), batch_size=16, steps=2,
        batch_concepts="diverse", log_to=("none",), threads=1, max_bad=1.0,
    )  # fmt: skip
    train(options)
    more = dataclasses.replace(options, resume=True, steps=2, change=("steps=4",))
    with pytest.raises(UsageError, match="batch_concepts.*the order of samples would differ"):
        train(dataclasses.replace(more, batch_concepts="dense"))
    train(dataclasses.replace(more, batch_concepts=None))  # not said: the run's
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]
