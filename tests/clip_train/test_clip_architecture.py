"""Nothing of foreign weights is guessed: heads, activation, epsilon, pixels, end of text, tokenizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from safetensors.torch import save_file  # noqa: E402

from clip_train.architecture import of_open_clip  # noqa: E402
from clip_train.config import PRESETS, ModelConfig  # noqa: E402
from clip_train.errors import InputMissing, TrainError, UsageError  # noqa: E402
from clip_train.export import export  # noqa: E402
from clip_train.huggingface import config_of, preparation_of, read_config, read_merges, to_huggingface  # noqa: E402
from clip_train.model import CLIP  # noqa: E402
from clip_train.text import pack, pad  # noqa: E402
from clip_train.tokenizer import load_tokenizer  # noqa: E402
from clip_train.use import load  # noqa: E402
from clip_train.weights import OPENAI_VOCABULARY, Weights, load_model, read_weights  # noqa: E402
from tests.clip_train.conftest import CAPTIONS, fill, formula, jpeg  # noqa: E402

# head widths that are not 64, another activation, another epsilon, an MLP that is not four times the width
ODD = ModelConfig(
    embed_dim=48, image_size=32, vision_layers=2, vision_width=80, patch_size=8, vision_head_width=20,
    vision_mlp_width=130, text_width=60, text_heads=5, text_layers=2, vocab_size=600, activation="gelu",
    layer_norm_eps=1e-6, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), interpolation="bilinear",
)  # fmt: skip
OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 80, "patch_size": 8, "head_width": 20,
                       "mlp_ratio": 1.625, "norm_kwargs": {"eps": 1e-6}},
        "text_cfg": {"context_length": 77, "vocab_size": 600, "width": 60, "heads": 5, "layers": 2,
                     "norm_kwargs": {"eps": 1e-6}},
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear",
                       "resize_mode": "shortest"},
}  # fmt: skip


def made(config: ModelConfig = ODD) -> CLIP:
    model = CLIP(config).eval()
    fill(model)
    return model


def weights_of(model: CLIP) -> Weights:
    return Weights(dict(model.state_dict()), model.config, "checkpoint")


def changed(*path_and_value) -> dict:
    """OPEN_CLIP with one value set: changed("model_cfg", "text_cfg", "no_causal_mask", True)."""
    found = json.loads(json.dumps(OPEN_CLIP))
    *path, name, value = path_and_value
    part = found
    for step in path:
        part = part[step]
    part[name] = value
    return found


# --- a file alone -----------------------------------------------------------------------------------------------------


def test_a_bare_file_is_refused_until_its_model_and_activation_are_named(tmp_path):
    preset = dataclasses.replace(PRESETS["ViT-Tiny"].model, vocab_size=600)
    path = tmp_path / "bare.safetensors"
    save_file(made(preset).state_dict(), path)
    with pytest.raises(UsageError, match="does not name its heads and its activation.*--model ViT-Tiny, whose shapes"):
        read_weights(path)
    with pytest.raises(UsageError, match="does not name its activation: say --activation"):
        read_weights(path, model="ViT-Tiny")
    with pytest.raises(UsageError, match="another model than --model ViT-Mini: .*text_width 64, not 128"):
        read_weights(path, model="ViT-Mini", activation="gelu")
    wanted = dataclasses.replace(preset, activation="gelu")
    assert read_weights(path, model="ViT-Tiny", activation="gelu").config == wanted
    save_file(made().state_dict(), path)
    with pytest.raises(UsageError, match="no model of this program has these shapes"):
        read_weights(path)


@pytest.mark.parametrize("form", ["safetensors", "open_clip"])
def test_what_we_export_names_itself(tmp_path, form):
    path = tmp_path / "out"
    export(dataclasses.replace(weights_of(made()), vocabulary="abc"), str(path), form=form)
    found = read_weights(path)
    assert found.config == ODD and found.vocabulary == "abc"
    with pytest.raises(UsageError, match="was trained with the activation gelu, not quick_gelu"):
        read_weights(path, activation="quick_gelu")
    with pytest.raises(UsageError, match="another model than --model ViT-Tiny"):
        read_weights(path, model="ViT-Tiny")


# --- open_clip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_open_clips_json_beside_the_weights_decides(tmp_path, name):
    model = made()
    if name.endswith("bin"):
        torch.save(model.state_dict(), tmp_path / name)
    else:
        save_file(model.state_dict(), tmp_path / name)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    for path in (tmp_path, tmp_path / name):
        assert read_weights(path).config == ODD
    again, _ = load_model(tmp_path)
    images, text = formula("images", (2, 3, 32, 32)), pack([[598, 5, 599], [598, 7, 8, 599]])
    with torch.no_grad():
        assert torch.equal(again.logits(images, text), model.logits(images, text))
        heads = dataclasses.replace(ODD, vision_head_width=40)  # the head count matters, and no shape shows it
        other = CLIP(heads).eval()
        other.load_state_dict(model.state_dict())
        assert not torch.allclose(other.logits(images, text), model.logits(images, text), atol=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("model_cfg", "text_cfg", "no_causal_mask", True), "no_causal_mask True is not supported"),
        (changed("model_cfg", "text_cfg", "proj_bias", True), "proj_bias True is not supported"),
        (changed("model_cfg", "text_cfg", "hf_tokenizer_name", "x"), "hf_tokenizer_name 'x' is not supported"),
        (changed("model_cfg", "text_cfg", "pool_type", "last"), "pool_type 'last' is not supported"),
        (changed("model_cfg", "vision_cfg", "no_ln_pre", True), "no_ln_pre True is not supported"),
        (changed("model_cfg", "vision_cfg", "pool_type", "avg"), "pool_type 'avg' is not supported"),
        (changed("model_cfg", "vision_cfg", "timm_model_name", "vit"), "timm_model_name 'vit' is not supported"),
        (changed("model_cfg", "vision_cfg", "attentional_pool", True), "attentional_pool True is not supported"),
        (changed("model_cfg", "vision_cfg", "image_size", [32, 64]), "is not a square"),
        (changed("model_cfg", "vision_cfg", "norm_kwargs", {"eps": 1e-5}), "the towers differ"),
        (changed("model_cfg", "vision_cfg", "norm_kwargs", {"bias": 1}), "norm_kwargs .* is not supported"),
        (changed("preprocess_cfg", "resize_mode", "squash"), "resize_mode 'squash' is not supported"),
        (changed("preprocess_cfg", "interpolation", "nearest"), "interpolation 'nearest' is not supported"),
        (changed("preprocess_cfg", "mean", [0.5]), "three channels"),
        ({"model_cfg": {}}, "is not a config of open_clip"),
        (changed("model_cfg", "vision_cfg", 7), "is not a config of open_clip"),
        (changed("model_cfg", "text_cfg", "heads", 7), "60 channels do not divide into 7 heads"),
        (changed("model_cfg", "vision_cfg", "layers", 3), "do not fit their config: vision_layers 2, not 3"),
        (changed("model_cfg", "text_cfg", "context_length", 64), "context_length 77, not 64"),
    ],
)
def test_what_the_towers_do_not_have_is_refused(tmp_path, config, message):
    save_file(made().state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "w.json").write_text(json.dumps(config))
    with pytest.raises(TrainError, match=message):
        read_weights(tmp_path / "w.safetensors")


def test_values_that_change_nothing_are_taken():
    found = changed("model_cfg", "vision_cfg", "patch_dropout", 0.5)
    found["model_cfg"]["vision_cfg"] |= {"pool_type": "tok", "ls_init_value": None, "attentional_pool": False}
    assert of_open_clip(found, "x") == of_open_clip(OPEN_CLIP, "x")
    quick = of_open_clip(changed("model_cfg", "quick_gelu", True), "x")
    assert quick["activation"] == "quick_gelu"


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, vocabulary) -> Path:
    """A Hugging Face folder of an odd model with the vocabulary of the tests."""
    tokenizer = load_tokenizer(vocabulary)
    config = dataclasses.replace(ODD, vocab_size=tokenizer.vocab_size)
    export(weights_of(made(config)), str(tmp_path / "hf"), form="huggingface", tokenizer=tokenizer)
    return tmp_path / "hf"


def test_a_folder_of_hugging_face_is_complete_and_comes_back(folder, vocabulary):
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "config.json", "merges.txt", "model.safetensors", "preprocessor_config.json",
                     "special_tokens_map.json", "tokenizer_config.json", "vocab.json"}  # fmt: skip
    model, tokenizer, preprocess = load(folder)  # the vocabulary is that of the folder
    assert dataclasses.replace(model.config, vocab_size=600) == ODD
    assert tokenizer.fingerprint == load_tokenizer(vocabulary).fingerprint
    assert (preprocess.config.mean, preprocess.config.interpolation) == (ODD.mean, "bilinear")


def edit(folder: Path, name: str, **values) -> None:
    found = json.loads((folder / name).read_text())
    for key, value in values.items():
        if isinstance(value, dict):
            found[key] = {**found[key], **value}
        else:
            found[key] = value
    (folder / name).write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"model_type": "siglip"}, "its model_type is 'siglip'"),
        ("config.json", {"text_config": {"hidden_act": "quick_gelu"}}, "the towers differ in hidden_act"),
        ("config.json", {"text_config": {"layer_norm_eps": 1e-5}}, "the towers differ in layer_norm_eps"),
        ("config.json", {"text_config": {"eos_token_id": 5}}, "eos_token_id 5 is not the last id"),
        ("config.json", {"vision_config": {"num_attention_heads": 3}}, "3 heads do not divide 80"),
        ("config.json", {"vision_config": {"num_hidden_layers": 3}}, "not a CLIPModel .*: it has no"),
        ("config.json", {"vision_config": {"image_size": 64}}, "image_size 32, not 64"),
        ("config.json", {"projection_dim": 47}, "embed_dim 48, not 47"),
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop False is not supported"),
        ("preprocessor_config.json", {"resample": 0}, "resample 0 is not supported"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 36}}, "both must be one square"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor 1.0 is not supported"),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, "three channels"),
        ("vocab.json", {"a": 7}, "in another order than OpenAI's"),
    ],
)
def test_a_folder_that_needs_something_else_is_refused(folder, name, values, message):
    edit(folder, name, **values)
    with pytest.raises(TrainError, match=message):
        load(folder)


def test_the_head_count_of_hugging_face_counts(folder):
    before = read_weights(folder).config.vision_heads
    edit(folder, "config.json", vision_config={"num_attention_heads": 2})
    assert (before, read_weights(folder).config.vision_heads) == (4, 2)


def test_defaults_that_a_saved_config_leaves_out(tmp_path):
    named = read_config({"model_type": "clip", "projection_dim": 512}, "x")
    wanted = dataclasses.asdict(PRESETS["ViT-B-32"].model)
    assert all(named[name] == wanted[name] for name in named)
    old = read_config({"model_type": "clip", "text_config": {}, "text_config_dict": {"eos_token_id": 2}}, "x")
    assert old["vocab_size"] == 49408


def test_weights_in_parts_and_in_a_pickle_are_read(folder):
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    wanted = read_weights(folder)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for name, inside in parts.items():
        save_file({key: tensors[key] for key in inside}, folder / name)
    index = {"weight_map": {key: name for name, inside in parts.items() for key in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_weights(folder)
    assert found.config == wanted.config
    assert all(torch.equal(found.tensors[name], value) for name, value in wanted.tensors.items())
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(InputMissing, match="model-2.safetensors: missing"):
        read_weights(folder)


def test_a_tokenizer_json_alone_gives_the_merges(folder, vocabulary):
    ids = json.loads((folder / "vocab.json").read_text())
    merges = load_tokenizer(vocabulary).merges
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    for form in ([list(pair) for pair in merges], [" ".join(pair) for pair in merges]):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": ids, "merges": form}}))
        assert read_merges(folder) == merges
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": ids, "merges": ["a"]}}))
    with pytest.raises(TrainError, match="no byte-pair encoding"):
        read_merges(folder)


def test_openais_weights_do_not_take_another_vocabulary_of_the_same_size(tmp_path):
    """The packaged vocabulary has 49,408 ids too, and other merges."""
    config = dataclasses.replace(PRESETS["ViT-Tiny"].model, vocab_size=49408)
    save_file(made(config).state_dict(), tmp_path / "w.safetensors")
    from clip_train.tokenizer import OWN_VOCABULARY

    assert load_tokenizer(OWN_VOCABULARY).vocab_size == 49408
    assert load_tokenizer(OWN_VOCABULARY).fingerprint != OPENAI_VOCABULARY
    with pytest.raises(UsageError, match="trained with another vocabulary than .*: name it by --bpe"):
        load(tmp_path / "w.safetensors", model="ViT-Tiny", activation="gelu", bpe=str(OWN_VOCABULARY))


# --- beside the packages, where they are installed --------------------------------------------------------------------

LARGE = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-bigG-14", "RN50")


@pytest.mark.parametrize("name", LARGE)
def test_live_presets_are_open_clips(name, tmp_path):
    """The config and the number of parameters of the whole model, and the logits of two layers of it."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    theirs = open_clip.get_model_config(name)
    preset = PRESETS[name].model
    named = of_open_clip(theirs, name)
    wanted = dataclasses.asdict(preset) | {"activation": "gelu"}  # theirs says quick-GELU in the name of the model
    assert all(named[key] == wanted[key] for key in named), (named, wanted)
    with torch.device("meta"):
        whole = open_clip.CLIP(**{key: theirs[key] for key in ("embed_dim", "vision_cfg", "text_cfg")})
        ours = CLIP(preset)
    assert {key: value.shape for key, value in whole.state_dict().items() if key != "attn_mask"} == {
        key: value.shape for key, value in ours.state_dict().items()
    }
    if isinstance(preset.vision_layers, tuple):
        return
    theirs["vision_cfg"]["layers"] = theirs["text_cfg"]["layers"] = 2
    theirs["text_cfg"]["vocab_size"] = 600
    small = open_clip.CLIP(**{key: theirs[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}).eval()
    fill(small)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": theirs, "preprocess_cfg": {}}))
    save_file(small.state_dict(), tmp_path / "open_clip_model.safetensors")
    again, _ = load_model(tmp_path)
    images, text = formula("images", (1, 3, 224, 224)) * 3, [[598, 5, 17, 599], [598, *range(20, 60), 599]]
    with torch.no_grad():
        expected = small.get_logits(images, pad(text, context_length=77))[0]
        assert (again.logits(images, pack(text)) - expected).abs().max() < 2e-5


def test_live_auto_classes_and_pipeline_work_on_an_export(folder, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import io

    from PIL import Image

    ours, tokenizer, preprocess = load(folder)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    pictures = [Image.open(io.BytesIO(jpeg(number, size=(50, 44)))) for number in range(2)]
    inputs = processor(text=list(CAPTIONS), images=pictures, return_tensors="pt", padding=True)
    for row, caption in enumerate(CAPTIONS):
        wanted = tokenizer.encode_caption(caption, context_length=77)
        assert inputs["input_ids"][row, : len(wanted)].tolist() == wanted
    own = torch.stack([preprocess(picture) for picture in pictures])
    assert (inputs["pixel_values"] - own).abs().max() < 0.1  # their resize works on tensors: a level or two of 255
    with torch.no_grad():
        expected = theirs(pixel_values=own, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        found = ours.logits(own, tokenizer(list(CAPTIONS)))
    assert (expected.logits_per_image - found).abs().max() < 1e-5
    classify = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    answers = classify(pictures[0], candidate_labels=list(CAPTIONS), hypothesis_template="{}")
    best = CAPTIONS[int(found[0].argmax())]
    assert answers[0]["label"] == best and np.isclose(sum(answer["score"] for answer in answers), 1)
    theirs.save_pretrained(tmp_path / "back")
    processor.save_pretrained(tmp_path / "back")
    assert read_weights(tmp_path / "back").config == ours.config
    assert read_weights(tmp_path / "back").merges == tokenizer.merges


@pytest.mark.parametrize("changes", [{}, {"activation": "quick_gelu"}, {"activation": "gelu_tanh"}, {"text_heads": 3}])
def test_live_odd_models_equal_hugging_faces(changes):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = made(dataclasses.replace(ODD, **changes))
    theirs = transformers.CLIPModel(transformers.CLIPConfig(**config_of(model.config))).eval()
    theirs.load_state_dict(to_huggingface(model.state_dict(), model.config))
    images, text = formula("images", (2, 3, 32, 32)) * 3, [[598, 5, 599], [598, *range(20, 60), 599]]
    with torch.no_grad():
        expected = theirs(pixel_values=images, input_ids=pad(text, context_length=77)).logits_per_image
        assert (model.logits(images, pack(text)) - expected).abs().max() < 1e-5
    assert preparation_of(model.config)["resample"] == 2
