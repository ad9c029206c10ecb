"""The Python API: its names, its shapes, and a run that its own recipe repeats."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

import clip_train  # noqa: E402
from clip_train import TrainOptions, embed, load, retrieval, train, zero_shot  # noqa: E402
from clip_train.__main__ import main  # noqa: E402
from clip_train.errors import InputMissing, TrainError, UsageError  # noqa: E402
from tests.clip_train.conftest import CAPTIONS, jpeg  # noqa: E402


def options_of(data: Path, output: Path, vocabulary: Path, **changes) -> TrainOptions:
    return TrainOptions(
        data=str(data), output=str(output), bpe=str(vocabulary), model="ViT-Tiny", batch_size=8, steps=3, threads=1,
        log_to=("none",), **changes,
    )  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_public_names_and_their_arguments():
    assert clip_train.__all__ == ["TrainOptions", "embed", "load", "retrieval", "score", "train", "zero_shot"]
    assert set(clip_train.__all__) <= set(dir(clip_train))
    arguments = {
        name: [*inspect.signature(getattr(clip_train, name)).parameters]
        for name in clip_train.__all__
        if name != "TrainOptions"
    }
    assert arguments == {
        "embed": ["model", "tokenizer", "data", "output", "texts", "batch_size"],
        "load": ["checkpoint", "ema", "model", "activation", "bpe"],
        "retrieval": ["model", "tokenizer", "data", "ks", "batch_size"],
        "score": ["model", "tokenizer", "data", "output", "batch_size"],
        "train": ["options", "on_step"],
        "zero_shot": ["model", "tokenizer", "data", "classes", "templates", "dataset", "batch_size"],
    }
    for name in clip_train.__all__:
        assert "Raises:" in getattr(clip_train, name).__doc__ or name == "TrainOptions", name
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        clip_train.tarin  # noqa: B018


def test_the_names_are_the_functions_whatever_was_imported_before():
    program = (
        "import sys, clip_train; assert not {'torch', 'numpy', 'pyarrow', 'yaml'} & set(sys.modules); "
        "import clip_train.evaluate, clip_train.training; "
        "assert 'torch._dynamo' not in sys.modules; from clip_train import TrainOptions, train, embed; "
        "assert callable(train) and callable(embed) and train.__module__ == 'clip_train.training'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100, cwd=Path(__file__).parents[2])


def test_train_load_encode_and_evaluate(tars, vocabulary, tmp_path):
    data = tars(samples=24, labelled=True)
    (data / "classnames.txt").write_text("red\ngreen\nblue\n")
    seen: list[int] = []
    result = train(options_of(data, tmp_path / "run", vocabulary), on_step=lambda line: seen.append(line["step"]))
    assert seen == [1, 2, 3] and result["steps"] == 3 and result["samples_seen"] == 24
    assert Path(result["checkpoint"]).is_dir()

    model, tokenizer, preprocess = loaded = load(tmp_path / "run")
    assert loaded.model is model and not model.training and preprocess.size == 32
    (tmp_path / "picture.jpg").write_bytes(jpeg(5))
    from PIL import Image

    forms = [jpeg(5), tmp_path / "picture.jpg", str(tmp_path / "picture.jpg"), Image.open(tmp_path / "picture.jpg")]
    pixels = [preprocess(form) for form in forms]
    assert pixels[0].shape == (3, 32, 32) and pixels[0].dtype == torch.float32 and pixels[0].is_contiguous()
    assert all(torch.equal(pixels[0], other) for other in pixels)
    ids = tokenizer(["a red square", CAPTIONS[5] * 9])
    assert ids.shape == (2, 77) and ids.dtype == torch.int64 and tokenizer("a red square").shape == (1, 77)
    assert ids[0].tolist()[:5] == tokenizer.encode_caption("a red square", context_length=77)
    assert ids[0, 5:].eq(0).all() and ids[1, 76] == tokenizer.end_id  # the text is cut, the end token stays
    with torch.no_grad():
        images, texts = model.encode_image(torch.stack(pixels[:2])), model.encode_text(ids)
        logits = model.logits(torch.stack(pixels[:2]), ids)
    assert images.shape == (2, 64) and texts.shape == (2, 64) and logits.shape == (2, 2)

    assert zero_shot(model, tokenizer, str(data))["images"] == 24
    assert retrieval(model, tokenizer, str(data), ks=(1,))["texts"] == 24
    table = tmp_path / "table.parquet"
    assert embed(model, tokenizer, str(data), str(table), texts=True)["rows"] == 24
    import pyarrow.parquet as pq

    row = pq.read_table(table).slice(5, 1).to_pylist()[0]
    unit = torch.nn.functional.normalize(images[0], dim=0)
    assert torch.tensor(row["embedding"]) == pytest.approx(unit, abs=1e-5)  # the picture of sample 5


def test_what_load_refuses(tars, vocabulary, tmp_path):
    with pytest.raises(InputMissing, match="nowhere: no such file or folder"):
        load(tmp_path / "nowhere")
    train(options_of(tars(samples=8), tmp_path / "run", vocabulary))
    with pytest.raises(InputMissing, match="nowhere: no such file"):
        load(tmp_path / "run", bpe="nowhere")
    preprocess = load(tmp_path / "run").preprocess
    with pytest.raises(InputMissing, match="no such file: .*nowhere"):
        preprocess(tmp_path / "nowhere.jpg")
    with pytest.raises(TrainError, match="image_not_decoded"):
        preprocess(b"no image")


@pytest.mark.parametrize("part", [False, True])
def test_the_config_of_a_run_gives_the_same_run(part, tars, vocabulary, tmp_path, capsys):
    data, first, second = tars(samples=24), tmp_path / "first", tmp_path / "second"
    options = options_of(data, first, vocabulary, ema=0.9, crop_scale=0.5, accumulate=2)
    train(dataclasses.replace(options, steps=None, epochs=1.0))
    recipe = first / "config.json"
    written = json.loads(recipe.read_text())
    assert written["options"]["lr"] == 2e-3 and written["options"]["precision"] != "auto"  # all are resolved
    assert {name for name, value in written["options"].items() if value is None} == {
        "init", "steps", "clip_norm", "cache", "zero_shot", "activation", "change", "compile", "suite",
        "batch_concepts", "distill",
    }  # fmt: skip
    if part:
        import yaml

        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(written["options"]))
    assert main(["train", "--config", str(recipe)]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert main(["train", "--config", str(recipe), "--output", str(second)]) == 0
    assert losses(second) == losses(first) and len(losses(first)) == 3
    again = json.loads((second / "config.json").read_text())
    assert again["options"] == written["options"] | {"output": str(second)}
    assert {**again, "options": 0, "notes": 0} == {**written, "options": 0, "notes": 0}


def test_a_run_that_is_refused_leaves_no_folder(tars, vocabulary, tmp_path):
    run = tmp_path / "run"
    options = options_of(tars(samples=8), run, vocabulary)
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"no weights")
    for changes, kind in (
        ({"online_balance": True}, UsageError),  # plain tars have no keep_probability
        ({"init": str(weights)}, TrainError),  # found when the model is made and the folder is locked
        ({"batch_size": 16}, UsageError),  # more than the pairs of the data
        ({"precision": "fp16"}, UsageError),
    ):
        if changes.get("precision") == "fp16" and torch.cuda.is_available():
            continue
        with pytest.raises(kind):
            train(dataclasses.replace(options, **changes))
        assert not run.exists(), changes
    run.mkdir()  # a folder that existed before stays
    with pytest.raises(TrainError):
        train(dataclasses.replace(options, init=str(weights)))
    assert run.exists()
    train(options)
