"""Checkpoints: they are whole or absent, and flipped bits, kills and full disks are detected."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from clip_train import checkpoint  # noqa: E402
from clip_train.errors import InputMissing, TrainError  # noqa: E402


def save(folder, step, *, keep=3, size=1000):
    generator = torch.Generator().manual_seed(step)
    tensors = {"w": torch.randn(size, generator=generator), "n": torch.tensor(step)}
    return checkpoint.save(
        folder, step=step, model=tensors, optimizer={"exp_avg.w": tensors["w"] * 2}, ema=None, keep=keep,
        info={"progress": {"step": step}},
    )  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path):
    path = save(tmp_path, 12)
    state = checkpoint.load(path)
    assert state.info["progress"] == {"step": 12} and state.ema is None
    assert torch.equal(state.model["w"] * 2, state.optimizer["exp_avg.w"])
    assert path.name == "step-00000012" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_old_checkpoints_go_and_a_step_can_be_saved_again(tmp_path):
    for step in (1, 2, 3, 4, 4):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoint.all_steps(tmp_path)] == ["step-00000004", "step-00000003"]


def test_every_flipped_bit_is_noticed(tmp_path):
    path = save(tmp_path, 1)
    rng = random.Random(0)
    files = sorted(path.iterdir())
    for trial in range(300):
        file = files[trial % len(files)]
        data = bytearray(file.read_bytes())
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        before = file.read_bytes()
        file.write_bytes(data)
        try:
            body = checkpoint.verify(path)
        except (TrainError, InputMissing):
            pass
        else:  # a blank between JSON values: the contents are the same
            assert file.name == "checkpoint.json" and body == json.loads(before)["body"]
        file.write_bytes(before)
    checkpoint.verify(path)


def test_the_newest_that_verifies_wins(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"cut")
    (tmp_path / "step-00000002" / "checkpoint.json").unlink()
    found = list(checkpoint.newest(tmp_path))
    assert [path.name for path, _ in found] == ["step-00000003", "step-00000002", "step-00000001"]
    assert "not as it was saved" in found[0][1] and "no checkpoint.json" in found[1][1] and found[2][1] is None


def test_a_full_disk_leaves_the_older_checkpoints_whole(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    for name in ("save_file", "_write", "_sync_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, full)
            with pytest.raises(TrainError, match="No space left on device.*free some space, then --resume"):
                save(tmp_path, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    checkpoint.verify(tmp_path / "step-00000001")


SAVING = """
import os, pathlib, sys
sys.path.insert(0, {tests!r})
import test_clip_checkpoint as t
for line in sys.stdin:  # the step to start from: a child saves from there on until it is killed
    child = os.fork()
    if not child:
        for step in range(int(line) + 1, 10**6):
            t.save(pathlib.Path({folder!r}), step, size=2_000_000)
    print(child, flush=True)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


def test_fifty_kills_during_saves(tmp_path):
    """One process imports torch. It forks the fifty processes that are killed."""
    code = SAVING.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    rng, newest, half_written = random.Random(1), 0, 0
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(50):
            process.stdin.write(f"{newest}\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            time.sleep(0.02 + rng.random() * 0.2)
            os.kill(child, signal.SIGKILL)
            assert int(process.stdout.readline()) == signal.SIGKILL
            half_written += any(path.name.startswith(".partial-") for path in tmp_path.iterdir())
            found = list(checkpoint.newest(tmp_path))
            if found:
                assert found[0][1] is None, "the newest is whole"
                assert int(found[0][0].name[5:]) >= newest
                newest = int(found[0][0].name[5:])
                assert checkpoint.load(found[0][0]).info["progress"]["step"] == newest
            checkpoint.clear_scratch(tmp_path)
        process.stdin.close()
    print(f"{newest} saves, {half_written} of 50 kills in the midst of one")
    assert newest > 0 and half_written >= 5


def test_another_model_is_refused():
    model = torch.nn.Linear(3, 2)
    with pytest.raises(TrainError, match="x belongs to another model: it lacks 'bias'"):
        checkpoint.restore_model(model, {"weight": torch.zeros(2, 3)}, origin="x")
    with pytest.raises(TrainError, match=r"weight is \(3, 2\), not \(2, 3\)"):
        checkpoint.restore_model(model, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, origin="x")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="cannot save .*step-00000001: .*free some space, then --resume"):
        save(tmp_path / "file" / "checkpoints", 1)
