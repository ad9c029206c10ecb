"""The numbers of the steps, the logs beside log.jsonl, and what the machine gives to a process."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from clip_train import devices, training  # noqa: E402
from clip_train.config import TrainOptions, check_together, resolve  # noqa: E402
from clip_train.errors import TrainError, UsageError  # noqa: E402
from clip_train.log import WandbWriter  # noqa: E402
from clip_train.model import VisionTransformer  # noqa: E402
from clip_train.training import train  # noqa: E402


@pytest.fixture
def options(tars, vocabulary, tmp_path) -> TrainOptions:
    return TrainOptions(
        data=str(tars()), output=str(tmp_path / "run"), model="ViT-Tiny", bpe=str(vocabulary), batch_size=16, steps=3,
        log_to=("none",), threads=1,
    )  # fmt: skip


class FakeRun:
    def __init__(self, **given) -> None:
        self.given, self.lines, self.finished = given, [], False

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axis = step_metric

    def log(self, line: dict) -> None:
        self.lines.append(line)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch) -> types.SimpleNamespace:
    """A stand-in for the package, because the real one starts a service."""
    made: list[FakeRun] = []
    module = types.SimpleNamespace(made=made, errors=types.SimpleNamespace(Error=RuntimeError))
    module.init = lambda **given: made.append(FakeRun(**given)) or made[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_each_step_and_a_resumed_run_goes_on_with_its_curves(options, wandb):
    options = dataclasses.replace(options, log_to=("tensorboard", "wandb"))
    train(options)
    train(dataclasses.replace(options, resume=True))
    first, second = wandb.made
    assert [line["step"] for line in first.lines] == [1, 2, 3] and first.axis == "step" and first.finished
    lines = [json.loads(line) for line in (Path(options.output) / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in first.lines] == [line["loss"] for line in lines]
    assert first.given["id"] == second.given["id"] and first.given["resume"] == "allow"
    assert first.given["config"]["batch_size"] == 16 and (Path(options.output) / "tensorboard").is_dir()


def test_wandb_that_is_missing_or_does_not_start_is_one_line(tmp_path, wandb, monkeypatch):
    def fail(**_given):
        raise RuntimeError("no API key")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(TrainError, match="--log-to wandb does not start: no API key"):
        WandbWriter(tmp_path, {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainError, match="pip install wandb"):
        WandbWriter(tmp_path, {})


def test_no_log_is_no_log(options):
    with pytest.raises(UsageError, match="none excludes the others"):
        check_together(dataclasses.replace(options, log_to=("none", "wandb")), world_size=1)
    train(options)
    assert not (Path(options.output) / "tensorboard").exists()


def test_each_line_is_given_to_the_caller_before_the_checkpoint_of_its_step(options):
    seen = []

    def note(line):
        seen.append((line["step"], len(list((Path(options.output) / "checkpoints").glob("step-*")))))

    train(dataclasses.replace(options, save_every=1), on_step=note)
    assert [step for step, _ in seen] == [1, 2, 3]
    assert all(step - 2 <= saved < step for step, saved in seen)  # one checkpoint may still be in writing


def test_fsdp_on_one_process_says_that_it_does_nothing(options):
    made = [
        resolve(
            dataclasses.replace(options, parallel=kind), samples=64, world_size=ranks, vocab_size=600, has_gpu=False
        ).notes
        for kind, ranks in (("fsdp", 1), ("fsdp", 2), ("ddp", 1))
    ]
    assert [any("--parallel fsdp does nothing" in note for note in notes) for notes in made] == [True, False, False]


def test_the_peak_of_a_gpu_goes_by_its_whole_name(monkeypatch):
    for name, peak in (("NVIDIA L4", 121e12), ("NVIDIA L40", 181e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4000", None)):
        monkeypatch.setattr(devices, "device_name", lambda _device, name=name: name)
        assert devices.peak_flops(torch.device("cuda")) == peak
    monkeypatch.undo()
    assert devices.peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("files", "lines", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu.max": "max 100000\n"}, "0::/\n", float("inf")),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5),
        ({"cpu/d/cpu.cfs_quota_us": "400000", "cpu/d/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/d\n", 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/\n", float("inf")),
        ({"cpu.max": "nonsense"}, "0::/\n", float("inf")),
        ({"cpu.max": "100000 100000"}, "1:memory:/\n", float("inf")),
    ],
)
def test_the_quota_of_a_container_counts(files, lines, cores, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(devices, "_CGROUPS", tmp_path)
    assert devices.quota(lines.splitlines()) == cores
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _pid: range(8))
    monkeypatch.setattr(devices, "quota", lambda _lines: cores)
    assert devices.cpu_count() == (8 if cores == float("inf") else max(1, round(cores + 0.4)))


@pytest.mark.parametrize(
    ("options", "waited", "due"),
    [
        ({"save_minutes": 0.5}, 31, True), ({"save_minutes": 0.5}, 29, False), ({"save_minutes": 1.0}, 61, True),
        ({"save_minutes": 0.0}, 1e6, False), ({"save_every": 7}, 0, True), ({"save_every": 6}, 0, False),
        ({"save_every": 1}, 0, True),
    ],
)  # fmt: skip
def test_when_a_checkpoint_is_due(options, waited, due, monkeypatch):
    given = types.SimpleNamespace(**{"save_every": 0, "save_minutes": 0.0, **options})
    run = types.SimpleNamespace(step=14, plan=types.SimpleNamespace(options=given))
    monkeypatch.setattr(training.time, "monotonic", lambda: 1000.0 + waited)
    if "save_every" in options:
        run.step = 14 if options["save_every"] != 1 else 1
    assert training.save_is_due(run, 1000.0) is due


def test_patch_dropout_reaches_the_image_tower(options, monkeypatch):
    """The tower gets the share of patches that stays, other ones for each picture and each epoch."""
    seen = []
    whole = VisionTransformer.forward

    def watched(self, images, kept_patches=None):
        seen.append(kept_patches)
        return whole(self, images, kept_patches)

    monkeypatch.setattr(VisionTransformer, "forward", watched)
    train(dataclasses.replace(options, patch_dropout=0.75, steps=1))
    (kept,) = seen
    assert kept.shape == (16, 4) and kept.min() >= 0 and kept.max() < 16  # of 4 x 4 patches
    assert all(len(set(row)) == 4 and row == sorted(row) for row in kept.tolist())
    assert len({tuple(row) for row in kept.tolist()}) > 8
    seen.clear()
    train(dataclasses.replace(options, steps=1, output=options.output + "2"))
    assert seen == [None]
