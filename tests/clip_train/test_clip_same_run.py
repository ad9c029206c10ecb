"""A resumed run is the same run: the same set, the same recipe, or a change that is said and logged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from clip_train.__main__ import main  # noqa: E402
from clip_train.checkpoint import all_steps  # noqa: E402
from clip_train.config import TrainOptions  # noqa: E402
from clip_train.errors import UsageError  # noqa: E402
from clip_train.index import digest_of  # noqa: E402
from clip_train.same_run import continued  # noqa: E402
from clip_train.shards import open_index  # noqa: E402
from clip_train.training import train  # noqa: E402
from tests.clip_train.conftest import write_tar  # noqa: E402


@pytest.fixture
def options(tars, vocabulary, tmp_path) -> TrainOptions:
    return TrainOptions(
        data=str(tars()), output=str(tmp_path / "run"), model="ViT-Tiny", bpe=str(vocabulary), batch_size=16, steps=4,
        save_every=2, log_to=("none",), threads=1, lr=1e-3,
    )  # fmt: skip


def config(options: TrainOptions) -> dict:
    return json.loads((Path(options.output) / "config.json").read_text())


def rates(options: TrainOptions) -> list[float]:
    return [json.loads(line)["lr"] for line in (Path(options.output) / "log.jsonl").read_text().splitlines()]


def resume(options: TrainOptions, **changes) -> dict:
    return train(dataclasses.replace(options, resume=True, **changes))


# --- the set ----------------------------------------------------------------------------------------------------------


def test_another_set_of_the_same_size_is_refused(options, tars, tmp_path):
    train(options)
    saved = json.loads((all_steps(Path(options.output) / "checkpoints")[0] / "checkpoint.json").read_text())
    assert saved["body"]["set"] == digest_of(open_index(options.data))
    other = tars(samples=48, shards=2, name="other")
    with pytest.raises(UsageError, match="trained on another set than --data .*other, of the same size"):
        resume(options, data=str(other), change=("steps=5",))
    moved = tmp_path / "moved"
    Path(options.data).rename(moved)
    assert resume(options, data=str(moved), change=("steps=5",))["steps"] == 5


def test_the_digest_of_tars_is_that_of_names_sizes_and_places(tmp_path):
    def made(name: str, members: list[tuple[str, bytes]]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        write_tar(folder / "0.tar", members)
        return digest_of(open_index(str(folder)))

    first = made("a", [("1.jpg", b"12"), ("1.txt", b"345")])
    assert made("b", [("1.jpg", b"12"), ("1.txt", b"345")]) == first
    assert made("c", [("1.jpg", b"123"), ("1.txt", b"345")]) != first
    assert made("d", [("1.jpg", b"12"), ("1.txt", b"34")]) != first
    assert made("e", [("1.txt", b"345"), ("1.jpg", b"12")]) != first
    (tmp_path / "b" / "0.tar").rename(tmp_path / "b" / "1.tar")
    assert digest_of(open_index(str(tmp_path / "b"))) != first


def test_the_digest_of_a_published_folder_is_that_of_its_manifest(published):
    import hashlib

    folder = published()
    without = digest_of(open_index(str(folder)))
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        entry["sha256"] = hashlib.sha256((folder / entry["path"]).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    first = digest_of(open_index(str(folder)))
    assert first != without
    manifest["files"][0]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert digest_of(open_index(str(folder))) != first


# --- the recipe -------------------------------------------------------------------------------------------------------

OTHERS = [
    {"lr": 2e-3}, {"batch_size": 8}, {"steps": 5}, {"epochs": 3.0, "steps": None}, {"warmup": 1},
    {"weight_decay": 0.1}, {"beta1": 0.8}, {"beta2": 0.9}, {"eps": 1e-7}, {"clip_norm": 1.0}, {"ema": 0.5},
    {"precision": "bf16"}, {"patch_dropout": 0.5}, {"crop_scale": 0.5}, {"verify": True},
]  # fmt: skip


def test_an_option_of_the_recipe_that_differs_is_refused(options):
    train(options)
    before = config(options)
    for other in OTHERS:
        name = next(iter(other)).replace("_", "-")
        with pytest.raises(UsageError, match=f"--{name} .* is not the run's .*--change NAME=VALUE"):
            resume(options, **other)
    assert config(options) == before


def test_options_that_are_not_said_are_the_runs(options, capsys):
    train(dataclasses.replace(options, ema=0.5, crop_scale=0.8))
    resume(TrainOptions(data=options.data, output=options.output, resume=True, log_to=("none",), threads=1))
    assert "nothing left to do: the run has all of its 4 steps" in capsys.readouterr().err
    kept = config(options)["options"]
    assert (kept["ema"], kept["crop_scale"], kept["lr"], kept["model"]) == (0.5, 0.8, 1e-3, "ViT-Tiny")


def test_a_change_counts_from_the_next_step_and_is_logged(options):
    train(options)
    assert resume(options, change=("lr=5e-4", "steps=6"))["steps"] == 6
    found = config(options)
    assert found["history"] == [
        {"option": "lr", "from": 1e-3, "to": 5e-4, "step": 4},
        {"option": "steps", "from": 4, "to": 6, "step": 4},
    ]
    assert (found["options"]["lr"], found["options"]["steps"], found["options"]["change"]) == (5e-4, 6, None)
    assert len(rates(options)) == 6 and max(rates(options)[4:]) < 5e-4
    # the same command again, as after a kill, changes nothing more; the old value is refused now
    assert resume(options, change=("lr=5e-4", "steps=6"))["steps"] == 6
    assert config(options)["history"] == found["history"]
    with pytest.raises(UsageError, match="--lr 0.001 is not the run's 0.0005"):
        resume(options)
    resume(options, lr=None, steps=None, change=("steps=7",))
    assert [entry["to"] for entry in config(options)["history"]] == [5e-4, 6, 7]


def test_a_change_of_epochs_replaces_the_steps(options):
    train(options)
    assert resume(options, change=("epochs=2",))["steps"] == 6
    assert (config(options)["options"]["epochs"], config(options)["options"]["steps"]) == (2.0, None)


def test_a_checkpoint_holds_the_recipe_too(options):
    train(options)
    path = Path(options.output) / "config.json"
    found = json.loads(path.read_text())
    found["options"]["weight_decay"] = 0.7
    path.write_text(json.dumps(found))
    with pytest.raises(UsageError, match="trained with another recipe: --weight-decay 0.7, not 0.2. Say it with"):
        resume(options)
    path.unlink()
    assert resume(options)["steps"] == 4


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lr", "--change 'lr': NAME=VALUE is expected"), ("=3", "NAME=VALUE is expected"),
        ("lrr=1", "did you mean lr"), ("seed=3", "NAME=VALUE is expected"), ("window=2", "NAME=VALUE is expected"),
        ("lr=fast", "--change lr 'fast': a number in"), ("lr=-1", "--change lr -1 must be in"),
        ("precision=fp8", "--change precision 'fp8' is unknown"), ("steps=1.5", "a whole number"),
        ("verify=7", "true or false"),
    ],
)  # fmt: skip
def test_a_change_that_is_wrong_is_refused(options, word, message):
    with pytest.raises(UsageError, match=message):
        continued(dataclasses.replace(options, resume=True, change=(word,)))


def test_names_and_values_of_a_change(options):
    made, _ = continued(dataclasses.replace(options, resume=True, change=("--clip-norm=2", "verify=TRUE")))
    assert (made.clip_norm, made.verify) == (2.0, True)
    made, _ = continued(dataclasses.replace(options, resume=True, clip_norm=1.0, change=("clip_norm=none",)))
    assert made.clip_norm is None


def test_a_new_run_has_nothing_to_change(options):
    with pytest.raises(UsageError, match="--change lr=1 needs --resume"):
        train(dataclasses.replace(options, change=("lr=1",)))
    assert not Path(options.output).exists()


def test_on_the_command_line_the_folder_is_enough_and_a_default_that_is_said_counts(options, capsys):
    train(dataclasses.replace(options, ema=0.5))
    words = ["train", "--output", options.output, "--resume", "--log-to", "none"]
    assert main([*words, "--change", "steps=5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 5
    assert main([*words, "--ema", "0"]) == 2
    assert "--ema 0.0 is not the run's 0.5" in capsys.readouterr().err


def test_the_optimizer_changes_only_by_change(options):
    """The state of the parameters that the other optimizer takes starts anew."""
    train(options)
    with pytest.raises(UsageError, match="--optimizer muon is not the run's adamw"):
        resume(options, optimizer="muon")
    path = Path(options.output) / "config.json"
    older = config(options)
    del older["options"]["optimizer"]  # of a version without the option
    path.write_text(json.dumps(older))
    with pytest.raises(UsageError, match="--optimizer muon is not the run's adamw"):
        resume(options, optimizer="muon")
    assert resume(options, change=("optimizer=muon", "steps=6"))["steps"] == 6
    assert resume(options, change=("optimizer=adamw", "steps=8"))["steps"] == 8
