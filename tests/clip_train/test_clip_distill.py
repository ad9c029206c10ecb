"""--distill: the loss against the formula, the table against its set, and runs that resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from clip_train.checkpoint import path_of  # noqa: E402
from clip_train.config import TrainOptions, check_run  # noqa: E402
from clip_train.distill import open_teacher, toward_teacher  # noqa: E402
from clip_train.errors import UsageError  # noqa: E402
from clip_train.evaluate import embed  # noqa: E402
from clip_train.loss import info_nce  # noqa: E402
from clip_train.shards import open_index  # noqa: E402
from clip_train.training import train  # noqa: E402
from clip_train.use import load  # noqa: E402
from tests.clip_train.conftest import jpeg, write_tar, write_teacher  # noqa: E402

KEYS = [f"{number:06d}" for number in range(48)]


@pytest.fixture
def table(tmp_path) -> Path:
    write_teacher(tmp_path / "teacher.parquet", KEYS)
    return tmp_path / "teacher.parquet"


@pytest.fixture
def options(tars, vocabulary, table, tmp_path) -> TrainOptions:
    return TrainOptions(
        data=str(tars()), output=str(tmp_path / "run"), model="ViT-Tiny", bpe=str(vocabulary), batch_size=16, steps=6,
        save_every=2, log_to=("none",), threads=1, distill=str(table),
    )  # fmt: skip


def losses(folder: str | Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "chunk", "weight"), [(1, 4, 0.5), (16, 1024, 1.0), (23, 5, 0.3)])
def test_the_loss_is_the_cross_entropy_against_the_teacher(count, chunk, weight):
    images, texts = (unit(count, 8, seed).requires_grad_() for seed in (1, 2))
    scale, teacher = torch.tensor(14.0, requires_grad=True), torch.stack([unit(count, 5, 3), unit(count, 5, 4)], 1)
    ours = info_nce(images, texts, scale) + weight * toward_teacher(images, texts, scale, teacher, 30.0, chunk=chunk)
    logits, affinity, expected = scale * images @ texts.T, 30 * teacher[:, 0] @ teacher[:, 1].T, 0
    for ranks, target in ((logits, affinity), (logits.T, affinity.T)):
        hard, soft = torch.arange(count), target.softmax(1)
        expected += ((1 - weight) * F.cross_entropy(ranks, hard) + weight * F.cross_entropy(ranks, soft)) / 2
    assert abs(expected - ours) < 2e-6 * max(1, expected.item())
    inputs = (images, texts, scale)
    for a, b in zip(torch.autograd.grad(expected, inputs), torch.autograd.grad(ours, inputs), strict=True):
        assert (a - b).abs().max() <= 1e-6 * max(1, a.abs().max().item())


def test_a_student_that_ranks_as_its_teacher_has_no_gradient():
    images, texts = (unit(9, 6, seed).requires_grad_() for seed in (1, 2))
    scale, teacher = torch.tensor(20.0, requires_grad=True), torch.stack([images, texts], 1).detach()
    whole = info_nce(images, texts, scale) + toward_teacher(images, texts, scale, teacher, 20.0)
    assert all(found.abs().max() < 1e-6 for found in torch.autograd.grad(whole, (images, texts, scale)))


# --- the table --------------------------------------------------------------------------------------------------------


def test_rows_are_found_by_key_in_any_order(tars, table, tmp_path):
    index, samples = open_index(str(tars())), np.array([40, 3, 3])
    found, missing = open_teacher(str(table), index).rows(samples)
    written = pq.read_table(table)
    for side, name in enumerate(("embedding", "text_embedding")):
        expected = np.array(written[name].to_pylist(), np.float32)[samples]
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.abs(found[:, side] - expected).max() < 5e-4 and not len(missing)
    more = pa.concat_tables([written.take(list(range(48))[::-1]), written.slice(0, 1).set_column(0, "key", [["x"]])])
    pq.write_table(more, tmp_path / "other.parquet", row_group_size=7)
    other = open_teacher(str(tmp_path / "other.parquet"), index)
    assert np.array_equal(other.rows(samples)[0], found) and other.digest != open_teacher(str(table), index).digest
    kept = list((tmp_path / ".clip_train").glob("*.teacher"))
    assert len(kept) == 2 and open_teacher(str(table), index).scale == 100


def test_pairs_without_a_row_are_bad_samples(options, table):
    pq.write_table(pq.read_table(table).slice(0, 46), table)
    with pytest.raises(UsageError, match=r"2 of the 48 pairs .* have no row, more than --max-bad 0.01 .* 000046"):
        train(options)
    assert not Path(options.output).exists()
    assert train(dataclasses.replace(options, steps=3, max_bad=0.1))["bad_samples"] == {"teacher_missing": 2}


def broken(table: pa.Table, name: str) -> pa.Table:
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(48 * 3, np.float32)), 3)
    zero = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(48 * 12, np.float32)), 12)
    return {
        "no text_embedding": lambda: table.drop_columns(["text_embedding"]),
        "text": lambda: table.set_column(1, "embedding", [KEYS]),
        "width": lambda: table.set_column(2, "text_embedding", numbers),
        "zero": lambda: table.set_column(1, "embedding", zero),
        "null": lambda: table.set_column(1, "embedding", pa.array([None] * 48, table.schema.field(1).type)),
        "twice": lambda: pa.concat_tables([table, table.slice(5, 1)]),
    }[name]()


@pytest.mark.parametrize(
    ("name", "message"),
    [("no text_embedding", "there is no column 'text_embedding'"), ("text", "embedding is string"),
     ("width", "vectors of images have 12 numbers, those of texts 3"), ("twice", "stands twice in the table"),
     ("zero", "embedding of row 0 is not a vector"), ("null", "the vectors cannot be read")],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_refused(options, table, name, message):
    pq.write_table(broken(pq.read_table(table), name), table)
    with pytest.raises(UsageError, match=message):
        train(options)
    assert not Path(options.output).exists()


def test_what_is_no_table_or_no_set_for_one_is_refused(options, table, published, tmp_path):
    table.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UsageError, match="this is no Parquet table"):
        train(options)
    with pytest.raises(UsageError, match="--loss infonce, not in --loss sigmoid"):
        check_run(dataclasses.replace(options, loss="sigmoid"))
    several = published(texts=lambda number: ["a cat", "a dog"])
    with pytest.raises(UsageError, match="have several texts"):
        open_teacher(str(table), open_index(str(several)))
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", [("0.jpg", jpeg(shard)), ("0.txt", b"a cat")])
    write_teacher(table, ["0", "0", "1"])
    with pytest.raises(UsageError, match="stands twice in the table"):
        open_teacher(str(table), open_index(str(tmp_path / "{0..1}.tar")))
    write_teacher(table, ["0", "0"])  # the order of the set: its own table
    assert open_teacher(str(table), open_index(str(tmp_path / "{0..1}.tar"))).missing == 0


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_its_teacher_and_no_other(options, table, tmp_path):
    whole = dataclasses.replace(options, output=str(tmp_path / "whole"))
    train(whole)
    with pytest.raises(StopIteration):
        train(options, on_step=stop_at_4)
    train(TrainOptions(output=options.output, data=options.data, resume=True, threads=1, log_to=("none",)))
    assert losses(options.output) == losses(whole.output)
    info = json.loads((path_of(Path(options.output, "checkpoints"), 6) / "checkpoint.json").read_text())["body"]
    assert info["recipe"]["distill_weight"] == 0.5 and info["teacher"]
    again = dataclasses.replace(options, resume=True)
    with pytest.raises(UsageError, match="--distill-weight 0.9 is not the run's 0.5"):
        train(dataclasses.replace(again, distill_weight=0.9))
    write_teacher(table, KEYS, seed=1)
    with pytest.raises(UsageError, match="trained with another table than --distill"):
        train(again)
    train(dataclasses.replace(again, distill=None, change=("distill=none", "steps=8")))
    assert len(losses(options.output)) == 8


def stop_at_4(line):
    if line["step"] == 4:
        raise StopIteration


def test_the_table_of_embed_is_a_teacher(options, tmp_path):
    """A run teaches another one; at its end the teacher's scale stands in the table."""
    train(dataclasses.replace(options, distill=None, steps=2, output=str(tmp_path / "first")))
    model, tokenizer, _ = load(str(tmp_path / "first"))
    embed(model, tokenizer, options.data, str(tmp_path / "e.parquet"), texts=True)
    teacher = open_teacher(str(tmp_path / "e.parquet"), open_index(options.data))
    assert teacher.scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-5) and teacher.missing == 0
    train(dataclasses.replace(options, distill=str(tmp_path / "e.parquet"), distill_weight=1.0, steps=2))
