"""The names, the config.json, the tokenizer and the preprocessor of Hugging Face's CLIPModel, both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_train.architecture import channels
from clip_train.config import MEAN, STD, ModelConfig
from clip_train.errors import InputMissing, TrainError
from clip_train.tokenizer import Tokenizer
from clip_train.tokenizer import read_merges as read_vocabulary

_START, _END = "<|startoftext|>", "<|endoftext|>"

_HF_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

_HF_PLAIN = {  # ours -> theirs; "pre_layrnorm" is their spelling
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}

_HF_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def _hf_names(vision_layers: int, text_layers: int) -> dict[str, list[str]]:
    """Our name -> their names. `in_proj` is three tensors there."""
    names = {ours: [theirs] for ours, theirs in (_HF_PLAIN | _HF_TRANSPOSED).items()}
    for ours, theirs, layers in (
        ("visual.transformer", "vision_model", vision_layers),
        ("transformer", "text_model", text_layers),
    ):
        for layer in range(layers):
            a, b = f"{ours}.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}"
            for part in ("weight", "bias"):
                names[f"{a}.attn.in_proj_{part}"] = [f"{b}.self_attn.{which}_proj.{part}" for which in "qkv"]
                for mine, other in _HF_BLOCK.items():
                    names[f"{a}.{mine}.{part}"] = [f"{b}.{other}.{part}"]
    return names


def to_huggingface(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The state dict of transformers.CLIPModel."""
    assert isinstance(config.vision_layers, int)
    out: dict[str, Tensor] = {}
    for ours, theirs in _hf_names(config.vision_layers, config.text_layers).items():
        value = tensors[ours].T if ours in _HF_TRANSPOSED else tensors[ours]
        for name, part in zip(theirs, value.chunk(len(theirs)) if len(theirs) > 1 else [value], strict=True):
            out[name] = part.contiguous()
    return out


def from_huggingface(tensors: Mapping[str, Tensor], vision_layers: int, text_layers: int) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`. KeyError for a tensor that is not there."""
    out: dict[str, Tensor] = {}
    for ours, theirs in _hf_names(vision_layers, text_layers).items():
        value = torch.cat([tensors[name] for name in theirs]) if len(theirs) > 1 else tensors[theirs[0]]
        out[ours] = value.T.contiguous() if ours in _HF_TRANSPOSED else value
    return out


# --- reading ----------------------------------------------------------------------------------------------------------

# The defaults of transformers' CLIPTextConfig, CLIPVisionConfig and CLIPConfig: a saved config leaves them out.
_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip
_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_OLD_END = 2  # an eos_token_id with which transformers takes the largest id, as OpenAI does


def read_config(found: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The fields of ModelConfig that the config.json of a CLIPModel names.

    Raises:
        TrainError: it is another model's, or names something that these towers do not have.
    """
    if found.get("model_type") != "clip":
        raise TrainError(f"{origin} is not a CLIPModel of Hugging Face: its model_type is {found.get('model_type')!r}")
    try:
        text = {**_TEXT, **found.get("text_config", {}), **(found.get("text_config_dict") or {})}
        vision = {**_VISION, **found.get("vision_config", {}), **(found.get("vision_config_dict") or {})}
        for name in ("hidden_act", "layer_norm_eps"):
            if text[name] != vision[name]:
                raise TrainError(f"{origin}: the towers differ in {name}, which is not supported")
        if text["hidden_act"] not in _ACTIVATIONS:
            raise TrainError(f"{origin}: hidden_act {text['hidden_act']!r} is not one of {', '.join(_ACTIVATIONS)}")
        if text["eos_token_id"] not in (_OLD_END, text["vocab_size"] - 1):
            raise TrainError(f"{origin}: eos_token_id {text['eos_token_id']} is not the last id: not supported")
        if vision["num_channels"] != 3:
            raise TrainError(f"{origin}: num_channels {vision['num_channels']} is not supported")
        if vision["hidden_size"] % vision["num_attention_heads"]:
            raise TrainError(f"{origin}: {vision['num_attention_heads']} heads do not divide {vision['hidden_size']}")
        return {
            "embed_dim": found.get("projection_dim", 512),
            "image_size": vision["image_size"],
            "vision_layers": vision["num_hidden_layers"],
            "vision_width": vision["hidden_size"],
            "patch_size": vision["patch_size"],
            "vision_head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "vision_mlp_width": _hidden(vision),
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "text_width": text["hidden_size"],
            "text_heads": text["num_attention_heads"],
            "text_layers": text["num_hidden_layers"],
            "text_mlp_width": _hidden(text),
            "activation": _ACTIVATIONS[text["hidden_act"]],
            "layer_norm_eps": text["layer_norm_eps"],
        }
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise TrainError(f"{origin} is not a CLIPModel of Hugging Face: {error!r}") from error


def _hidden(part: Mapping[str, Any]) -> int:
    return 0 if part["intermediate_size"] == 4 * part["hidden_size"] else part["intermediate_size"]


def read_preparation(folder: Path) -> dict[str, Any]:
    """Mean, deviation and filter from preprocessor_config.json, or from the newer processor_config.json.

    Without either, those of CLIPImageProcessor, which are OpenAI's. TrainError for another way to prepare images.
    """
    nothing = {"mean": MEAN, "std": STD, "interpolation": "bicubic"}
    found = _optional(folder / "preprocessor_config.json")
    if found is None:
        found = (_optional(folder / "processor_config.json") or {}).get("image_processor")
    if found is None:
        return nothing
    origin = f"{folder}, preprocessor"
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if found.get(name, True) is not True:
            raise TrainError(f"{origin}: {name} {found[name]!r} is not supported")
    size, crop = found.get("size", 224), found.get("crop_size", 224)
    short = size.get("shortest_edge") if isinstance(size, dict) else size
    sides = {short, *(crop.get(name) for name in ("height", "width"))} if isinstance(crop, dict) else {short, crop}
    if len(sides) != 1 or None in sides:
        raise TrainError(f"{origin}: size {size} with crop_size {crop} is not supported: both must be one square")
    if abs(found.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise TrainError(f"{origin}: rescale_factor {found['rescale_factor']} is not supported")
    if found.get("resample", 3) not in _RESAMPLE:
        raise TrainError(f"{origin}: resample {found['resample']} is not supported (2 bilinear, 3 bicubic)")
    try:
        return {
            "mean": channels(found.get("image_mean", MEAN)), "std": channels(found.get("image_std", STD)),
            "interpolation": _RESAMPLE[found.get("resample", 3)],
        }  # fmt: skip
    except (TypeError, ValueError) as error:
        raise TrainError(f"{origin}: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, its parts, or pytorch_model.bin. InputMissing without any."""
    index = _optional(folder / "model.safetensors.index.json")
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return [folder / name]
    if index is None:
        raise InputMissing(f"{folder} has a config.json, but neither model.safetensors nor pytorch_model.bin")
    files = [folder / Path(str(name)).name for name in sorted(set(index.get("weight_map", {}).values()))]
    missing = [file for file in files if not file.exists()]
    if missing or not files:
        raise InputMissing(f"{missing[0] if missing else folder}: missing, the index of the weights lists it")
    return files


def read_merges(folder: Path) -> list[tuple[str, str]] | None:
    """The merges of the tokenizer in the folder; None without one. TrainError for one whose ids are not these."""
    whole = _optional(folder / "tokenizer.json")
    if whole is not None:
        try:
            model = whole["model"]
            pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
            merges = [(str(first), str(second)) for first, second in pairs]
            ids = model["vocab"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise TrainError(f"{folder / 'tokenizer.json'} is no byte-pair encoding: {error!r}") from error
    elif (folder / "merges.txt").exists():
        merges, ids = list(read_vocabulary(folder / "merges.txt")), _optional(folder / "vocab.json") or {}
    else:
        return None
    tokens = Tokenizer(merges, name=str(folder)).tokens
    if any(ids.get(token, number) != number for number, token in enumerate(tokens)):
        raise TrainError(f"{folder}: the ids of its tokenizer are in another order than OpenAI's")
    return merges


def _optional(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise TrainError(f"{file} cannot be read as JSON: {error}") from error
    return found if isinstance(found, dict) else {}


# --- writing ----------------------------------------------------------------------------------------------------------


def config_of(config: ModelConfig) -> dict[str, Any]:
    """config.json of a CLIPModel."""
    assert isinstance(config.vision_layers, int)
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation)
    common = {"hidden_act": activation, "layer_norm_eps": config.layer_norm_eps, "projection_dim": config.embed_dim}
    start, end = config.vocab_size - 2, config.vocab_size - 1
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": config.vocab_size,
            "hidden_size": config.text_width,
            "intermediate_size": config.text_mlp_width or 4 * config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "max_position_embeddings": config.context_length,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
            **common,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": config.vision_width,
            "intermediate_size": config.vision_mlp_width or 4 * config.vision_width,
            "num_hidden_layers": config.vision_layers,
            "num_attention_heads": config.vision_heads,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            **common,
        },
    }


def preparation_of(config: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json: OpenAI's transform with the size, mean and deviation of the model."""
    resample = next(number for number, name in _RESAMPLE.items() if name == config.interpolation)
    side = config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor",
        "do_resize": True, "size": {"shortest_edge": side}, "resample": resample,
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(config.mean), "image_std": list(config.std), "do_convert_rgb": True,
    }  # fmt: skip


def tokenizer_files(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, str]:
    """The files of a CLIPTokenizer, by name. It pads with the end of text, as OpenAI's models there do."""
    ids = {token: number for number, token in enumerate(tokenizer.tokens)}
    ids |= {_START: tokenizer.start_id, _END: tokenizer.end_id}
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    merges = "\n".join(["#version: 0.2", *(f"{first} {second}" for first, second in tokenizer.merges)]) + "\n"
    settings = {
        "tokenizer_class": "CLIPTokenizer", "processor_class": "CLIPProcessor", "do_lower_case": True,
        "errors": "replace", "add_prefix_space": False, "model_max_length": config.context_length, **special,
    }  # fmt: skip
    return {
        "vocab.json": json.dumps(ids, ensure_ascii=False),
        "merges.txt": merges,
        "tokenizer_config.json": json.dumps(settings, indent=1) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=1) + "\n",
    }


def card(config: ModelConfig, parameters: int) -> str:
    """README.md of the folder, with the header that the hub reads."""
    towers = (
        f"image tower: ViT, {config.vision_layers} layers of {config.vision_width} channels and "
        f"{config.vision_heads} heads, patches of {config.patch_size} px, {config.image_size} px\n"
        f"- text tower: {config.text_layers} layers of {config.text_width} channels and {config.text_heads} heads, "
        f"{config.context_length} tokens"
    )
    return f"""---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
- clip
---

# CLIP model

A CLIP model with {parameters:,} parameters, exported by `clip_train` of OpenWIT.

- {towers}
- activation: {config.activation}
- both towers project to {config.embed_dim} dimensions

```python
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="THIS_FOLDER")
classify("cat.jpg", candidate_labels=["a photo of a cat", "a photo of a dog"], hypothesis_template="{{}}")
```

Say here what the model was trained on, how it was evaluated, its licence, and what it must not be used for.
"""
