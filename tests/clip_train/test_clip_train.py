"""The loop: exact accumulation, exact resume, guards, signals, several processes."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from safetensors.torch import load_file  # noqa: E402

from clip_train import run_config  # noqa: E402
from clip_train import training as train_module  # noqa: E402
from clip_train.checkpoint import all_steps, optimizer_state, restore_optimizer  # noqa: E402
from clip_train.config import PRESETS, TrainOptions, resolve  # noqa: E402
from clip_train.data import Batch, Loader  # noqa: E402
from clip_train.distributed import process_group, rank, together, world_size  # noqa: E402
from clip_train.errors import BelowThreshold, InputMissing, TrainError, UsageError  # noqa: E402
from clip_train.launch import _cause  # noqa: E402
from clip_train.log import StepLog  # noqa: E402
from clip_train.model import CLIP  # noqa: E402
from clip_train.muon import matrices_of_blocks  # noqa: E402
from clip_train.optim import learning_rate, set_learning_rate  # noqa: E402
from clip_train.order import Stream  # noqa: E402
from clip_train.run import Run  # noqa: E402
from clip_train.sharded import whole  # noqa: E402
from clip_train.shards import open_index  # noqa: E402
from clip_train.start import find_teacher, loader_options, start_run  # noqa: E402
from clip_train.suite import Suite, SuiteSet  # noqa: E402
from clip_train.suite_run import Evaluator, run_suite  # noqa: E402
from clip_train.tokenizer import load_tokenizer, read_merges, write_merges  # noqa: E402
from clip_train.training import forward_backward, train, training_step  # noqa: E402


@pytest.fixture
def options(tars, vocabulary, tmp_path) -> TrainOptions:
    return TrainOptions(
        data=str(tars()), output=str(tmp_path / "run"), model="ViT-Tiny", bpe=str(vocabulary), batch_size=16, steps=6,
        save_every=2, log_to=("none",), threads=1,
    )  # fmt: skip


def losses(folder: str | Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def first_step(options: TrainOptions) -> tuple[Run, list[Batch]]:
    """A run before its first step, and the batches of that step."""
    index, tokenizer = open_index(options.data), load_tokenizer(options.bpe)
    plan = resolve(options, samples=len(index), world_size=world_size(), vocab_size=tokenizer.vocab_size, has_gpu=False)
    teacher = find_teacher(index, options)
    run = start_run(plan, torch.device("cpu"), teacher=teacher)
    with Loader(Stream(index, seed=options.seed), tokenizer, loader_options(run.plan, run.device), teacher) as loader:
        return run, next(loader.steps(0))


def gradients(options: TrainOptions) -> tuple[float, dict[str, torch.Tensor], CLIP]:
    """Loss and gradients of the first step.

    On several ranks, every rank has those of the whole batch.
    """
    run, batches = first_step(options)
    for name, value in run.model.named_parameters():
        if name.endswith("bn3.weight"):
            value.data.fill_(0.5)  # it starts at zero, which would stop all gradients
    loss = forward_backward(run, batches).item()
    run.towers.finish_gradients()
    return loss, {n: whole(p.grad) for n, p in run.model.named_parameters() if p.grad is not None}, run.model


@pytest.mark.parametrize("changes", [{}, {"patch_dropout": 0.5}, {"text": "padded"}, {"loss": "sigmoid"}])
def test_accumulation_and_chunks_give_the_same_gradient(options, changes):
    options = dataclasses.replace(options, **changes)
    expected_loss, expected, model = gradients(options)
    assert set(expected) == {name for name, _ in model.named_parameters()}
    for accumulate, chunk in ((2, 1024), (4, 3), (1, 5)):
        loss, found, _ = gradients(dataclasses.replace(options, accumulate=accumulate, loss_chunk=chunk))
        assert loss == pytest.approx(expected_loss, abs=1e-6)
        for name, value in expected.items():
            assert (value - found[name]).norm() < 1e-6 * max(1.0, value.norm().item()), name


CASES = [
    (parallel, loss, accumulate, chunk)
    for parallel in ("ddp", "fsdp")
    for loss, accumulate, chunk in (
        *(("infonce", accumulate, chunk) for accumulate in (1, 2, 4) for chunk in (1024, 3)),
        ("sigmoid", 2, 3),
        ("distill", 1, 1024),
        ("distill", 2, 3),
    )
]


def loss_of(options: TrainOptions, name: str) -> TrainOptions:
    """The options with one of the losses."""
    if name == "distill":
        return dataclasses.replace(options, distill=str(Path(options.output).parent / "teacher.parquet"))
    return dataclasses.replace(options, loss=name)


def as_one_of_two(rank: int, options: TrainOptions, port: int, output: str) -> None:
    """The work of each of two processes: the gradients of every case. The first process writes them to a file."""
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2"
    )
    found = {}
    with process_group(torch.device("cpu")):
        for parallel, loss, accumulate, chunk in CASES:
            changes = {"parallel": parallel, "accumulate": accumulate, "loss_chunk": chunk}
            value, grads, _ = gradients(dataclasses.replace(loss_of(options, loss), **changes))
            found[parallel, loss, accumulate, chunk] = {"": torch.tensor(value), **grads}
        found["evaluation"] = evaluation(Path(output).parent)
        with pytest.raises(InputMissing, match="of rank 1"):
            together(fail_on_rank_1)
        half = {}
        for parallel in ("ddp", "fsdp"):
            half[parallel] = gradients(dataclasses.replace(options, parallel=parallel, precision="bf16"))[1]
        found["bf16"] = {
            name: torch.cosine_similarity(value.flatten(), half["fsdp"][name].flatten(), dim=0).item()
            for name, value in half["ddp"].items()
            if value.ndim >= 2
        }
        sharded = dataclasses.replace(options, parallel="fsdp")
        found["optimizer"] = restored_optimizer(sharded)
        muon = dataclasses.replace(sharded, optimizer="muon", lr=0.01)
        found["optimizer"] += restored_optimizer(muon)
        found["muon"] = {way: weights_after(dataclasses.replace(muon, parallel=way)) for way in ("ddp", "fsdp")}
    if rank == 0:
        torch.save(found, output)


def fail_on_rank_1() -> None:
    if rank() == 1:
        raise InputMissing("of rank 1")


def evaluation(folder: Path) -> list[dict]:
    """The rows of a suite over labelled tars, in batches of 5, by all ranks."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(folder / "bpe.txt.gz")
    model = CLIP(dataclasses.replace(PRESETS["ViT-Tiny"].model, vocab_size=tokenizer.vocab_size)).eval()
    kinds = ({"kind": "zero-shot"}, {"kind": "retrieval", "metric": "recall"}, *({"kind": "probe", "l2": 0.1},) * 2)
    sets = tuple(
        SuiteSet(**{"name": f"{number}", "data": ("labelled",), "metric": "accuracy", "train": "", **kind})
        for number, kind in enumerate(kinds)
    )
    with_model = Evaluator(model, tokenizer, batch_size=5, threads=1)
    rows = run_suite(with_model, Suite("s", sets), str(folder), folder / "out", say=lambda line: None, fresh=True)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def restored_optimizer(options: TrainOptions) -> float:
    """Takes a step, restores the optimizer's state in a new run, and returns the largest difference between them."""
    run, batches = first_step(options)
    training_step(run, batches)
    expected = {name: whole(value).clone() for name, value in optimizer_state(run.model, run.optimizer).items()}
    again, _ = first_step(options)
    restore_optimizer(again.model, again.optimizer, expected)
    found = {name: whole(value) for name, value in optimizer_state(again.model, again.optimizer).items()}
    assert set(found) == set(expected)
    return max((found[name] - value).abs().max().item() for name, value in expected.items())


def weights_after(options: TrainOptions, *, steps: int = 2) -> dict[str, torch.Tensor]:
    """The weights after steps on the batch of the first step."""
    run, batches = first_step(options)
    set_learning_rate(run.optimizer, options.lr)
    for _ in range(steps):
        training_step(run, batches)
    return {name: whole(value).detach().clone() for name, value in run.model.named_parameters()}


@pytest.mark.timeout(600)
def test_two_ranks_give_the_gradient_of_one_process(options, tmp_path, tars):
    """Ranks x accumulation x chunks x DDP and FSDP2, for every parameter, logit_scale and logit_bias.

    Two ranks also evaluate as one does. One start of two processes serves both.
    """
    (tars(labelled=True, name="labelled") / "classnames.txt").write_text("red\ngreen\nblue\n")
    from tests.clip_train.conftest import in_two_processes, write_teacher

    write_teacher(tmp_path / "teacher.parquet", [f"{number:06d}" for number in range(48)])
    port = free_port()
    in_two_processes(as_one_of_two, options, port, str(tmp_path / "found.pt"))
    found, largest = torch.load(tmp_path / "found.pt"), 0.0
    for loss in ("infonce", "sigmoid", "distill"):
        value, grads, _ = gradients(loss_of(options, loss))
        expected = {"": torch.tensor(value), **grads}
        for case in (case for case in CASES if case[1] == loss):
            assert set(found[case]) == set(expected)
            for name, gradient in expected.items():
                difference = (found[case][name] - gradient).norm().item() / max(1.0, gradient.norm().item())
                largest = max(largest, difference)
                assert difference < 1e-6, (case, name)
    print(f"{len(CASES)} cases: largest difference {largest:.1e}")
    assert found["optimizer"] == 0
    muon = dataclasses.replace(options, optimizer="muon", lr=0.01)
    one, before = weights_after(muon), dict(first_step(muon)[0].model.named_parameters())
    for parallel in ("ddp", "fsdp"):
        for name in matrices_of_blocks(one.items()):  # AdamW's first step is the sign, also of a gradient near zero
            moved = (found["muon"][parallel][name] - one[name]).norm() / (one[name] - before[name]).norm()
            assert moved < 1e-3, (parallel, name)
    assert min(found["bf16"].values()) > 0.99  # FSDP gathers the blocks in bf16
    assert found["evaluation"] == evaluation(tmp_path) and len(found["evaluation"]) == 4


def test_batch_norm_statistics_move_once_a_micro_batch(options):
    options = dataclasses.replace(options, model="RN-Mini", accumulate=2)
    _, _, model = gradients(options)
    assert int(model.visual.bn1.num_batches_tracked) == 2


@pytest.mark.parametrize(("model", "lock"), [("RN-Mini", "lock_image"), ("ViT-Tiny", "lock_text")])
def test_a_locked_tower_stays_as_it_is(options, tmp_path, model, lock):
    """With its batch statistics; also over a resume and with micro-batches."""
    first = dataclasses.replace(options, model=model, steps=1, output=str(tmp_path / "first"))
    train(first)
    changes = {"model": model, "init": first.output, "precision": "fp32", "steps": 4, lock: True}
    whole_run, part = (dataclasses.replace(options, **changes, output=str(tmp_path / name)) for name in ("w", "p"))
    train(whole_run)
    with pytest.raises(StopIteration):
        train(part, on_step=_stop_at(3))
    train(dataclasses.replace(part, resume=True, accumulate=2))
    assert losses(part.output) == pytest.approx(losses(whole_run.output), abs=1e-4)
    before, after = (load_file(all_steps(Path(run.output) / "checkpoints")[0] / "model.safetensors")
                     for run in (first, part))  # fmt: skip
    for name, value in before.items():
        locked = name.startswith("visual.") == (lock == "lock_image") and not name.startswith("logit_scale")
        assert torch.equal(value, after[name]) == locked, name
    saved = load_file(all_steps(Path(part.output) / "checkpoints")[0] / "optimizer.safetensors")
    assert not any(name.split(".")[1] == "visual" for name in saved) == (lock == "lock_image")


def test_packed_and_padded_text_give_the_same_losses(options, tmp_path):
    found = []
    for text in ("packed", "padded"):
        output = str(tmp_path / text)
        train(dataclasses.replace(options, text=text, output=output))
        found.append(losses(output))
    assert found[0] == pytest.approx(found[1], abs=2e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_is_bitwise(options, tmp_path, optimizer):
    changes = {"steps": 7, "ema": 0.9, "patch_dropout": 0.25, "save_every": 3, "optimizer": optimizer}
    whole = dataclasses.replace(options, output=str(tmp_path / "whole"), **changes)
    train(whole)

    class Crash(Exception):
        pass

    def crash(line):
        if line["step"] == 5:
            raise Crash

    part = dataclasses.replace(options, output=str(tmp_path / "part"), **changes)
    with pytest.raises(Crash):
        train(part, on_step=crash)
    assert len(losses(part.output)) == 5
    train(dataclasses.replace(part, resume=True))
    assert losses(part.output) == losses(whole.output)
    for name in ("model", "ema", "optimizer"):
        files = [all_steps(Path(run.output) / "checkpoints")[0] / f"{name}.safetensors" for run in (whole, part)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_resume_with_other_micro_batches_goes_on(options, tmp_path):
    whole = dataclasses.replace(options, output=str(tmp_path / "whole"))
    train(whole)
    part = dataclasses.replace(options, steps=6)
    with pytest.raises(StopIteration):
        train(part, on_step=_stop_at(4))
    train(dataclasses.replace(part, resume=True, accumulate=4))
    assert losses(part.output) == pytest.approx(losses(whole.output), abs=1e-4)


def _stop_at(step):
    def stop(line):
        if line["step"] == step:
            raise StopIteration

    return stop


def test_a_spoiled_checkpoint_is_passed_over(options, capsys):
    train(options)
    expected = losses(options.output)
    newest, older = all_steps(Path(options.output) / "checkpoints")[:2]
    for name in ("model.safetensors", "optimizer.safetensors"):
        path = newest / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    train(dataclasses.replace(options, resume=True))
    said = capsys.readouterr().err
    assert "is not as it was saved" in said and f"resuming from {older}" in said
    assert losses(options.output) == expected


def test_a_run_is_not_written_over_and_another_is_not_resumed(options):
    train(options)
    with pytest.raises(UsageError, match="--resume continues it"):
        train(options)
    with pytest.raises(UsageError, match="another model"):
        train(dataclasses.replace(options, resume=True, model="ViT-Mini"))
    with pytest.raises(UsageError, match="seed"):
        train(dataclasses.replace(options, resume=True, seed=1))


def test_a_run_keeps_its_vocabulary(options, tmp_path, vocabulary):
    train(options)
    train(dataclasses.replace(options, resume=True, bpe=None, change=("steps=7",)))  # not the default vocabulary
    other = tmp_path / "other.txt.gz"
    write_merges(other, reversed(read_merges(vocabulary)))  # of the same size, so that the shapes fit
    for changes in ({"resume": True, "steps": 7}, {"init": options.output, "output": str(tmp_path / "new")}):
        with pytest.raises(UsageError, match="trained with another vocabulary"):
            train(dataclasses.replace(options, bpe=str(other), **changes))
    write_merges(other, read_merges(vocabulary)[:50])
    with pytest.raises(UsageError, match="614 token ids, the vocabulary has 564.*--bpe"):
        train(dataclasses.replace(options, bpe=str(other), init=options.output, output=str(tmp_path / "new")))
    with pytest.raises(UsageError, match="vision_width 64, not 16.*--model"):
        train(dataclasses.replace(options, model="RN-Mini", init=options.output, output=str(tmp_path / "new")))


def test_another_order_is_not_resumed(options):
    train(options)
    with pytest.raises(UsageError, match="the order of samples would differ"):
        train(dataclasses.replace(options, resume=True, window=2))


def test_a_run_whose_checkpoints_are_all_spoiled_is_not_begun_anew(options):
    train(options)
    for path in all_steps(Path(options.output) / "checkpoints"):
        (path / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(TrainError, match="none of the 3 checkpoints .* is valid"):
        train(dataclasses.replace(options, resume=True))
    assert len(losses(options.output)) == 6


def test_two_runs_do_not_share_a_folder(options):
    seen = []

    def again(line):
        with pytest.raises(UsageError, match="another process trains into"):
            train(dataclasses.replace(options, steps=1, resume=True))
        seen.append(line["step"])

    train(dataclasses.replace(options, steps=1), on_step=again)
    assert seen == [1]


def test_a_folder_that_cannot_be_written_is_named(options, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file cannot be written"):
        train(dataclasses.replace(options, output=str(tmp_path / "file")))

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_config, "write_merges", full)
    with pytest.raises(TrainError, match="run: .*No space left on device.*free some space"):
        train(options)


def test_a_log_that_cannot_be_written_stops_the_run(options):
    class Full:
        name = "log.jsonl"

        def write(self, *_):
            raise OSError(28, "No space left on device")

        close = write  # close() tries to write again

    log = StepLog(Path(options.output), first_step=0)
    log._lines.close()
    log._lines = Full()
    with pytest.raises(TrainError, match="cannot write log.jsonl: .*free some space, then --resume"):
        log.write({"step": 1})
    log.close()


def test_zero_shot_data_are_looked_at_first_and_do_not_stop_a_run_later(options, tars, capsys):
    with pytest.raises(InputMissing, match="nowhere"):
        train(dataclasses.replace(options, zero_shot="nowhere"))
    assert not Path(options.output).exists()
    labelled = tars(labelled=True, name="labelled")
    (labelled / "classnames.txt").write_text("red\ngreen\nblue\n")

    def spoil(line):
        if line["step"] == 3:
            (labelled / "classnames.txt").write_text("red\n")

    assert train(dataclasses.replace(options, zero_shot=str(labelled)), on_step=spoil)["steps"] == 6
    results = [json.loads(line) for line in (Path(options.output) / "zero_shot.jsonl").read_text().splitlines()]
    assert [result["step"] for result in results] == [2]
    assert "step 4: no zero-shot accuracy" in capsys.readouterr().err


def test_a_suite_is_evaluated_beside_the_run(options, tmp_path, capsys):
    with pytest.raises(InputMissing, match="--suite-root .*none of the sets of clip is there"):
        train(dataclasses.replace(options, suite="clip", suite_root=str(tmp_path)))
    assert not Path(options.output).exists()
    from tests.clip_train.conftest import jpeg

    (tmp_path / "x" / "red").mkdir(parents=True)
    (tmp_path / "x" / "red" / "1.jpg").write_bytes(jpeg(1))
    suite = tmp_path / "suite.json"
    suite.write_text(json.dumps({"sets": [{"name": "x", "kind": "zero-shot", "data": "x", "metric": "accuracy"}]}))
    options = dataclasses.replace(options, suite=str(suite), suite_root=str(tmp_path), save_every=3)
    assert train(options)["steps"] == 6
    folder = Path(options.output)
    lines = [json.loads(line) for line in (folder / "suite.jsonl").read_text().splitlines()]
    assert lines[-1] == {"step": 6, "suite": "suite", "mean": 1.0, "sets": {"x": 1.0}}
    assert "step 6: suite suite: mean 1.0000 of 1 sets" in capsys.readouterr().err
    assert list((folder / "evaluation").glob("suite-*/results.csv"))


@pytest.mark.slow
def test_a_suite_that_fails_does_not_stop_the_run(options, tmp_path, capsys):
    (tmp_path / "x" / "red").mkdir(parents=True)
    (tmp_path / "x" / "red" / "1.jpg").write_bytes(b"x")
    suite = tmp_path / "suite.json"
    suite.write_text(json.dumps({"sets": [{"name": "x", "kind": "zero-shot", "data": "x", "metric": "accuracy"}]}))
    options = dataclasses.replace(options, suite=str(suite), suite_root=str(tmp_path), save_every=0)
    assert train(options)["steps"] == 6
    assert "step 6: no suite: clip_train: x: no result" in capsys.readouterr().err


def test_what_a_run_leaves(options):
    result = train(dataclasses.replace(options, log_to=("tensorboard",)))
    folder = Path(options.output)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    wanted = {"step", "loss", "lr", "logit_scale", "samples_seen", "pairs_per_s", "data_wait"}
    assert all(wanted <= set(line) for line in lines)
    config = json.loads((folder / "config.json").read_text())
    assert config["options"]["batch_size"] == 16 and config["recipe"]["weight_decay"] == 0.2
    assert result["samples_seen"] == 96 and result["checkpoint"].endswith("step-00000006")
    (events,) = (folder / "tensorboard").iterdir()
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        return
    reader = EventAccumulator(str(events))
    reader.Reload()
    assert [event.value for event in reader.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])


def test_a_step_that_is_not_finite_leaves_muon_as_it_was(options, monkeypatch):
    run, batches = first_step(dataclasses.replace(options, optimizer="muon"))
    training_step(run, batches)
    before = {name: whole(value).clone() for name, value in optimizer_state(run.model, run.optimizer).items()}
    before |= {name: value.detach().clone() for name, value in run.model.named_parameters()}
    assert any(name.startswith("momentum.") for name in before)
    monkeypatch.setattr(train_module, "pair_loss", lambda run, images, texts, _: (images * texts).sum() * float("inf"))
    training_step(run, batches)
    after = {**optimizer_state(run.model, run.optimizer), **dict(run.model.named_parameters())}
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_step_that_is_not_finite_is_skipped_and_three_stop_the_run(options, monkeypatch):
    true_loss, calls = train_module.pair_loss, []

    def poisoned(run, *given):
        calls.append(run.step)
        return true_loss(run, *given) * (float("nan") if run.step in (1, 3, 4, 5) else 1.0)

    monkeypatch.setattr(train_module, "pair_loss", poisoned)
    with pytest.raises(TrainError, match="not finite in 3 steps in a row"):
        train(dataclasses.replace(options, save_every=1))
    lines = [json.loads(line) for line in (Path(options.output) / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("skipped")] == [2, 4, 5, 6] and lines[1]["loss"] is None
    newest = all_steps(Path(options.output) / "checkpoints")[0]
    assert newest.name == "step-00000003"
    assert all(torch.isfinite(value).all() for value in load_file(newest / "model.safetensors").values())


def test_too_many_bad_samples_stop_the_run(options):
    for path in Path(options.data).glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b"\xff\xd8\xff", b"\xff\xd9\xff"))
    with pytest.raises(BelowThreshold, match=r"16 of 16 samples could not be used \(16 image_not_decoded\)"):
        train(options)  # batches that were decoded in advance are not counted
    with pytest.raises(TrainError, match="not finite.*could not be used: {'image_not_decoded': 64}"):
        train(dataclasses.replace(options, max_bad=1.0))


def test_precisions_and_optimiser_options_run(options, tmp_path):
    for number, changes in enumerate(
        ({"precision": "bf16"}, {"activation_checkpointing": True, "clip_norm": 1.0}, {"model": "RN-Mini"})
    ):
        result = train(dataclasses.replace(options, output=str(tmp_path / str(number)), steps=2, **changes))
        assert result["loss"] > 0
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        train(dataclasses.replace(options, output=str(tmp_path / "f"), precision="fp16"))


def test_options_that_do_not_fit_are_refused(options):
    def check(match, **changes):
        with pytest.raises(UsageError, match=match):
            train(dataclasses.replace(options, **changes))

    check("does not divide by 1 ranks x --accumulate 3: take a multiple of 3", accumulate=3)
    check("more than the 48 pairs", batch_size=64)
    check("exclude each other", epochs=1.0)
    check("needs a ViT", patch_dropout=0.5, model="RN-Mini")
    check("unknown model", model="ViT-X")


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", -1.0), ("lr", float("nan")), ("steps", 0), ("epochs", 0.0), ("batch_size", 0), ("accumulate", 0),
     ("warmup", -1), ("weight_decay", -0.1), ("beta1", 1.0), ("beta2", 2.0), ("eps", 0.0), ("clip_norm", -1.0),
     ("ema", 1.0), ("loss_chunk", 0), ("patch_dropout", 1.0), ("threads", -1), ("prefetch", -1), ("crop_scale", 0.0),
     ("max_bad", 1.1), ("window", -1), ("cache_gb", 0.0), ("save_every", -1), ("save_minutes", -1.0), ("keep", 0),
     ("seed", 2**63)],
)  # fmt: skip
def test_numbers_out_of_their_range_are_refused(option, value):
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} .* must be in "):
        resolve(TrainOptions(**{option: value}), samples=100, world_size=1, vocab_size=600, has_gpu=False)


def test_every_number_has_a_range():
    for field in dataclasses.fields(TrainOptions):
        assert ("within" in field.metadata) == ("int" in field.type or "float" in field.type), field.name


def test_the_papers_schedule():
    plan = resolve(TrainOptions(model="ViT-B-32"), samples=400_000_000, world_size=32, vocab_size=49408, has_gpu=True)
    assert (plan.batch_size, plan.steps, plan.recipe.warmup) == (32768, 390625, 2000)
    rates = [learning_rate(step, recipe=plan.recipe, steps=plan.steps) for step in (0, 1999, 2000, 390624)]
    assert rates[:3] == pytest.approx([5e-4 / 2000, 5e-4, 5e-4]) and rates[3] < 1e-12
    assert (plan.recipe.beta2, plan.recipe.eps) == (0.98, 1e-6)


# --- processes --------------------------------------------------------------------------------------------------------


def command(options: TrainOptions, *extra: str) -> list[str]:
    flags = ["--data", options.data, "--output", options.output, "--model", options.model, "--bpe", str(options.bpe),
             "--batch-size", "16", "--steps", str(options.steps), "--save-every", str(options.save_every),
             "--log-to", "none", "--threads", "1"]  # fmt: skip
    return [sys.executable, "-m", "clip_train", "train", *flags, *extra]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}


def wait_for_lines(path: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not reach {count} lines; exit code {process.poll()}")


def test_sigterm_saves_and_resume_continues_to_the_bit(options, tmp_path):
    options = dataclasses.replace(options, steps=100, save_every=0)
    process = subprocess.Popen(command(options), env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_lines(Path(options.output) / "log.jsonl", 3, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in said
    done = len(losses(options.output))
    (saved,) = all_steps(Path(options.output) / "checkpoints")
    assert int(saved.name[5:]) == done < 100
    train(dataclasses.replace(options, resume=True))
    whole = dataclasses.replace(options, output=str(tmp_path / "whole"))
    train(whole)
    assert losses(options.output) == losses(whole.output)


TRAINING = """
import os, shlex, sys
import clip_train.training
from clip_train.__main__ import main
for line in sys.stdin:  # the words of a command: a child runs it until it is killed
    child = os.fork()
    if not child:
        os._exit(main(shlex.split(line)))
    print(child, flush=True)
    os.waitpid(child, 0)
"""


@pytest.mark.timeout(600)
def test_kill_9_at_random_steps_and_resume(options, tmp_path):
    """One process loads torch. It forks the three processes that are killed."""
    whole = dataclasses.replace(options, steps=30, output=str(tmp_path / "whole"))
    train(whole)
    part = dataclasses.replace(options, steps=30, save_every=4)
    words = shlex.join(command(part, "--resume")[3:])  # behind `python -m clip_train`
    rng = random.Random(3)
    start = [sys.executable, "-c", TRAINING]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(start, env=environment(), **pipes) as parent:
        for _ in range(3):
            log = Path(part.output) / "log.jsonl"
            done = len(losses(part.output)) if log.exists() else 0
            print(words, file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            running = SimpleNamespace(poll=lambda child=child: None if Path(f"/proc/{child}").exists() else "unknown")
            wait_for_lines(log, min(28, done - done % 4 + rng.randrange(1, 8)), running)
            os.kill(child, signal.SIGKILL)
            wait_for_end([child])
        parent.stdin.close()
    train(dataclasses.replace(part, resume=True))
    assert losses(part.output) == losses(whole.output)


def start_two(run: TrainOptions, *extra: str, hosts: int = 1) -> list[subprocess.Popen]:
    """Starts the launcher of each host, with two processes in all. Host 1 has a folder of its own."""
    port, started = free_port(), []
    for host in range(hosts):
        meet = ("--nnodes", str(hosts), "--node-rank", str(host), "--rdzv-endpoint", f"127.0.0.1:{port}")
        flags = ("--processes", str(2 // hosts), *(meet if hosts > 1 else ()), *extra)
        own = dataclasses.replace(run, output=f"{run.output}-{host}" if host else run.output)
        started.append(subprocess.Popen(command(own, *flags), env=environment(), stderr=subprocess.PIPE, text=True))
    return started


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("parallel", "hosts"), [("ddp", 2), ("fsdp", 1)])
def test_two_processes_train_as_one(options, tmp_path, parallel, hosts):
    """The same losses and the same evaluation. Of two hosts the second writes nothing."""
    from tests.clip_train.conftest import jpeg

    for name in ("red", "blue"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        (tmp_path / "labelled" / name / "1.jpg").write_bytes(jpeg(len(name)))
    labelled = str(tmp_path / "labelled")
    one = dataclasses.replace(options, steps=12, save_every=4, output=str(tmp_path / "one"))
    train(dataclasses.replace(one, zero_shot=labelled))
    two = dataclasses.replace(one, output=str(tmp_path / "two"))
    for process in start_two(two, "--parallel", parallel, "--zero-shot", labelled, hosts=hosts):
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
    assert not Path(f"{two.output}-1").exists()
    assert losses(two.output) == pytest.approx(losses(one.output), abs=1e-6)
    results = [(tmp_path / name / "zero_shot.jsonl").read_text() for name in ("two", "one")]
    assert results[0] == results[1] and results[0].count("\n") == 3


def begin(options: TrainOptions, tmp_path: Path) -> TrainOptions:
    """A run without an end that one process has begun and left between two checkpoints."""
    part = dataclasses.replace(options, steps=5000, save_every=4, output=str(tmp_path / "part"))
    with pytest.raises(StopIteration):
        train(part, on_step=_stop_at(6))
    return part


def lines_of(part: TrainOptions, process: subprocess.Popen, *, beyond: int) -> int:
    """Waits until the run has gone on two steps beyond a step, and returns the number of its lines."""
    log = Path(part.output) / "log.jsonl"
    wait_for_lines(log, beyond + 2, process)
    return log.read_text().count("\n")


def check_against_one_process(part: TrainOptions, tmp_path: Path) -> None:
    """One process continues the run for two steps. The losses are those of one that did all steps."""
    last = len(losses(part.output)) + 2
    alone = dataclasses.replace(part, output=str(tmp_path / "alone"))
    for run in (dataclasses.replace(part, resume=True), alone):
        with pytest.raises(StopIteration):
            train(run, on_step=_stop_at(last))
    assert losses(part.output) == pytest.approx(losses(alone.output), abs=1e-6)


@pytest.mark.timeout(600)
def test_a_host_that_is_gone_ends_the_run_and_one_process_continues(options, tmp_path):
    """The second host finds no checkpoint in its folder: it gets that of the first."""
    part = begin(options, tmp_path)
    started = start_two(part, "--parallel", "ddp", "--accumulate", "2", "--resume", hosts=2)
    lines_of(part, started[0], beyond=6)
    children = children_of(started[1].pid)
    for process in [*children, started[1].pid]:
        os.kill(process, signal.SIGKILL)
    said = [process.communicate(timeout=120)[1] for process in started]
    wait_for_end(children)
    assert started[0].returncode == 1, said[0]
    assert said[0].splitlines()[1:] == [
        "clip_train: host 1 was lost: no sign of life for 10 seconds; continue with --resume"
    ]
    check_against_one_process(part, tmp_path)


@pytest.mark.timeout(600)
def test_a_lost_process_and_a_lost_launcher_end_the_run_and_one_process_continues(options, tmp_path):
    """Where a process is lost the launcher ends the run. Where the launcher is killed its processes save, and end."""
    part = begin(options, tmp_path)
    flags = ("--parallel", "fsdp", "--accumulate", "2", "--resume")
    (launcher,) = start_two(part, *flags)
    lines_of(part, launcher, beyond=6)
    os.kill(children_of(launcher.pid)[-1], signal.SIGKILL)
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 1 and "was lost" in said and "--resume" in said, said
    assert "Traceback" not in said

    done = len(losses(part.output))
    (launcher,) = start_two(part, *flags)
    lines_of(part, launcher, beyond=done)
    children = children_of(launcher.pid)
    launcher.kill()
    launcher.communicate()
    wait_for_end(children)
    assert int(all_steps(Path(part.output) / "checkpoints")[0].name[5:]) == len(losses(part.output)) > done
    check_against_one_process(part, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_compile_as_one_does_not(options, tmp_path, parallel):
    """Both towers, block by block, after the sharding. The compiler takes minutes."""
    options = dataclasses.replace(options, text="padded")
    train(dataclasses.replace(options, output=str(tmp_path / "one")))
    flags = ("--processes", "2", "--parallel", parallel, "--compile", "--text", "padded")
    given = {**environment(), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run(command(options, *flags), env=given, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert losses(options.output) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def wait_for_end(processes: list[int]) -> None:
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    return [int(line) for line in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True).stdout.split()]


def test_a_process_that_was_killed_ended_the_run():
    for codes, first, with_words in (((1, -9), 1, 1), ((-15, -6), 1, 1), ((3, -15), 0, 0), ((2, 1), 0, 1)):
        failures = {number: SimpleNamespace(exitcode=code) for number, code in enumerate(codes)}
        error = SimpleNamespace(failures=failures, get_first_failure=lambda found=failures: (0, found[0]))
        assert _cause(error, {})[0] == first
        said = {1: {"message": "the disk is full", "peer": False, "time": 2.0}}
        said[0] = {"message": "another process has ended", "peer": True, "time": 1.0}
        assert _cause(error, said)[0] == with_words
