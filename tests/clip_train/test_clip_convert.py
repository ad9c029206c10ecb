"""Weights of other programs: TorchScript archives without their code, open_clip, Hugging Face, and export to them."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from clip_train.architecture import UNDECIDED, read_shapes  # noqa: E402
from clip_train.checkpoint import restore_model  # noqa: E402
from clip_train.config import PRESETS  # noqa: E402
from clip_train.errors import InputMissing, TrainError, UsageError  # noqa: E402
from clip_train.export import export  # noqa: E402
from clip_train.huggingface import from_huggingface, to_huggingface  # noqa: E402
from clip_train.model import CLIP  # noqa: E402
from clip_train.torchscript import read_torchscript  # noqa: E402
from clip_train.weights import Weights, fit_to, load_model, read_weights  # noqa: E402
from tests.clip_train.conftest import fill  # noqa: E402


def made(name: str = "ViT-Tiny", **changes) -> CLIP:
    model = CLIP(dataclasses.replace(PRESETS[name].model, vocab_size=600, **changes)).eval()
    fill(model)
    return model


@pytest.mark.parametrize("name", [name for name in PRESETS])
def test_shapes_decide_all_but_what_is_listed(name):
    with torch.device("meta"):
        model = CLIP(PRESETS[name].model)
    wanted = dataclasses.asdict(PRESETS[name].model)
    assert read_shapes(model.state_dict()) == {key: value for key, value in wanted.items() if key not in UNDECIDED}


def hold(tensors: dict[str, torch.Tensor], *, half: bool) -> torch.nn.Module:
    """A module whose attributes have these dotted names, like those of a scripted CLIP."""
    top = torch.nn.Module()
    for name, value in tensors.items():
        module = top
        *path, last = name.split(".")
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_buffer(last, value.half() if half and value.is_floating_point() else value)
    return top


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["ViT-Tiny", "RN-Mini"])
def test_torchscript_archives_give_their_tensors(tmp_path, name):
    model = made(name)
    extra = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(600)}
    path = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.script(hold({**model.state_dict(), **extra}, half=True)), path)
    found = read_torchscript(path)
    assert set(found) == {*model.state_dict(), *extra}
    weights = read_weights(path)
    assert weights.kind == "openai" and weights.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(weights.tensors[key], value.half().float() if value.is_floating_point() else value)


def test_an_archive_that_wants_to_run_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/code/x.py", "")
        archive.writestr("evil/data.pkl", pickle.dumps(Evil()))
    with pytest.raises(TrainError, match="needs builtins.print"):
        read_weights(path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil2.pt")
    with pytest.raises(TrainError, match="cannot be read as tensors alone"):
        read_weights(tmp_path / "evil2.pt")


@pytest.mark.parametrize("form", ["safetensors", "open_clip", "huggingface"])
def test_exports_come_back(tmp_path, form):
    model = made()
    torch.save({"state_dict": {f"module.{n}": v for n, v in model.state_dict().items()}}, tmp_path / "given.pt")
    weights = read_weights(tmp_path / "given.pt", model="ViT-Tiny", activation="quick_gelu")
    assert weights.kind == "open_clip"
    output = tmp_path / ("folder" if form == "huggingface" else "out")
    export(dataclasses.replace(weights, vocabulary="of its tokenizer"), str(output), form=form)
    again, read = load_model(output)
    assert read.vocabulary == (None if form == "huggingface" else "of its tokenizer")
    assert read.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert not list(tmp_path.glob("*.partial"))


def test_hugging_face_names_go_both_ways_and_resnets_do_not(tmp_path):
    model = made()
    tensors = model.state_dict()
    theirs = to_huggingface(tensors, model.config)
    assert theirs["visual_projection.weight"].shape == (64, 64)
    assert "vision_model.encoder.layers.2.self_attn.k_proj.bias" in theirs
    back = from_huggingface(theirs, 3, 2)
    assert set(back) == set(tensors) and all(torch.equal(back[name], tensors[name]) for name in tensors)
    weights = _weights(made("RN-Mini"))
    with pytest.raises(UsageError, match="no ResNet"):
        export(weights, str(tmp_path / "hf"), form="huggingface")


def _weights(model: CLIP):
    return Weights(dict(model.state_dict()), model.config, "checkpoint")


def test_the_position_embedding_is_stretched():
    small, large = made(), made(image_size=64)
    fitted = fit_to(small.state_dict(), large)
    restore_model(large, fitted, origin="small")
    name = "visual.positional_embedding"
    assert fitted[name].shape == (65, 64) and torch.equal(fitted[name][0], small.state_dict()[name][0])
    assert fit_to(small.state_dict(), small)[name] is not None


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(InputMissing, match="no such file"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(TrainError, match="neither a zip of torch"):
        read_weights(tmp_path / "text")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(TrainError, match="not a CLIP model that this program knows"):
        read_weights(tmp_path / "other.pt")
    with pytest.raises(InputMissing, match="neither checkpoints nor"):
        read_weights(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"x" * 10)
    with pytest.raises(TrainError, match="not a CLIPModel of Hugging Face: its model_type is None"):
        read_weights(tmp_path / "hf")


def test_a_spoiled_checkpoint_is_refused_by_its_file_too(tmp_path):
    from clip_train import checkpoint

    model = made()
    path = checkpoint.save(
        tmp_path, step=1, model=model.state_dict(), optimizer={}, ema=None, keep=1,
        info={"model": dataclasses.asdict(model.config), "vocabulary": "abc"},
    )  # fmt: skip
    file = path / "model.safetensors"
    assert read_weights(file).vocabulary == "abc"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    for place in (file, path):
        with pytest.raises(TrainError, match="not as it was saved"):
            read_weights(place)
    with pytest.raises(TrainError, match="none of the 1 checkpoints is valid; the newest: .*not as it was saved"):
        read_weights(tmp_path)
