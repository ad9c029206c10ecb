"""Reads weights: of our checkpoints, OpenAI, open_clip and Hugging Face. No code of a file is run.

The content decides the form of a file:
- a checkpoint folder of ours, or its model.safetensors
- OpenAI's TorchScript archives (torchscript.py)
- open_clip's `.pt` (torch.load with weights_only) and `.safetensors`
- a Hugging Face folder: `config.json` and `model.safetensors` of a CLIPModel (huggingface.py)
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip_train import checkpoint
from clip_train.config import ModelConfig
from clip_train.errors import InputMissing, TrainError, UsageError
from clip_train.huggingface import from_huggingface
from clip_train.model import CLIP
from clip_train.torchscript import read_torchscript

NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's archives store as tensors


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors under OpenAI's names, and the architecture of their model."""

    tensors: dict[str, Tensor]
    config: ModelConfig
    kind: str  # "checkpoint", "openai", "open_clip", "huggingface"
    vocabulary: str | None = None  # the fingerprint of the tokenizer, if the file has it


def read_weights(path: str | Path, *, ema: bool = False, activation: str | None = None) -> Weights:
    """Reads weights in any of the forms above.

    Args:
        ema: read the moving average of one of our checkpoints.
        activation: "gelu" for open_clip weights that were trained with it. Their files do not name it.
    """
    file = Path(path)
    if not file.exists():
        raise InputMissing(f"no such file or folder: {file}")
    if (file.parent / "checkpoint.json").exists() and file.name in ("model.safetensors", "ema.safetensors"):
        file, ema = file.parent, file.name == "ema.safetensors"  # the folder has the digests and the vocabulary
    if file.is_dir():
        weights = _read_folder(file, ema=ema)
    elif zipfile.is_zipfile(file):
        weights = _read_zip(file)
    else:
        weights = _named(_load_safetensors(file), "open_clip", file)
    if activation:
        weights = dataclasses.replace(weights, config=dataclasses.replace(weights.config, activation=activation))
    return weights


def load_model(path: str | Path, *, ema: bool = False, activation: str | None = None) -> tuple[CLIP, Weights]:
    """A model in evaluation mode with these weights, fp32."""
    weights = read_weights(path, ema=ema, activation=activation)
    with torch.device("meta"):
        model = CLIP(weights.config)
    model.to_empty(device="cpu")
    checkpoint.restore_model(model, weights.tensors, origin=str(path))
    return model.eval(), weights


def _read_folder(folder: Path, *, ema: bool) -> Weights:
    if (folder / "checkpoint.json").exists():
        info = checkpoint.verify(folder)
        name = "ema.safetensors" if ema else "model.safetensors"
        if name not in info["files"]:
            raise UsageError(f"{folder} has no moving average: the run had no --ema")
        config = ModelConfig.from_json(info["model"])
        return Weights(load_file(folder / name), config, "checkpoint", info.get("vocabulary"))
    runs = checkpoint.all_steps(folder / "checkpoints") or checkpoint.all_steps(folder)
    if runs:
        faults = []
        for path, fault in checkpoint.newest(runs[0].parent):
            if fault is None:
                return _read_folder(path, ema=ema)
            faults.append(fault)
        raise TrainError(f"{folder}: none of the {len(runs)} checkpoints is valid; the newest: {faults[0]}")
    if (folder / "config.json").exists() and (folder / "model.safetensors").exists():
        return _read_huggingface(folder)
    raise InputMissing(f"{folder} holds neither checkpoints nor a Hugging Face model (config.json, model.safetensors)")


def _read_huggingface(folder: Path) -> Weights:
    try:
        found = json.loads((folder / "config.json").read_text())
        text, vision = found["text_config"], found["vision_config"]
        config = ModelConfig(
            embed_dim=found["projection_dim"],
            image_size=vision["image_size"],
            vision_layers=vision.get("num_hidden_layers", 12),
            vision_width=vision.get("hidden_size", 768),
            patch_size=vision.get("patch_size", 32),
            context_length=text.get("max_position_embeddings", 77),
            vocab_size=text.get("vocab_size", 49408),
            text_width=text.get("hidden_size", 512),
            text_heads=text.get("num_attention_heads", 8),
            text_layers=text.get("num_hidden_layers", 12),
            activation=vision.get("hidden_act", "quick_gelu"),
        )
        tensors = from_huggingface(_load_safetensors(folder / "model.safetensors"), config)
    except (ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{folder} is not a CLIPModel of Hugging Face: {error!r}") from error
    return Weights({name: value.float() for name, value in tensors.items()}, config, "huggingface")


def _read_zip(file: Path) -> Weights:
    with zipfile.ZipFile(file) as archive:
        scripted = any("/code/" in name for name in archive.namelist())
    if scripted:
        return _named(read_torchscript(file), "openai", file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise TrainError(f"{file} cannot be read as tensors alone: {error}") from error
    tensors = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(tensors, dict):
        raise TrainError(f"{file} holds no state dict")
    return _named({str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}, "open_clip", file)


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainError(f"{file} is neither a zip of torch nor safetensors, or it is truncated ({error})") from error


def _named(tensors: Mapping[str, Tensor], kind: str, origin: Path) -> Weights:
    """Removes prefixes of wrappers and tensors that are not weights, and infers the architecture."""
    plain = {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in tensors.items()}
    plain = {name: value.float() if value.is_floating_point() else value for name, value in plain.items()}
    for name in NOT_WEIGHTS:
        plain.pop(name, None)
    if "visual.proj" not in plain and "visual.attnpool.c_proj.weight" not in plain:
        raise TrainError(f"{origin} is not a CLIP model that this program knows: it has no visual.proj")
    return Weights(plain, infer_config(plain), kind)


def infer_config(tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The architecture of a model, from the shapes of its weights."""

    def count(pattern: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(pattern, name))})

    text_width = tensors["ln_final.weight"].shape[0]
    common: dict[str, Any] = {
        "embed_dim": tensors["text_projection"].shape[1],
        "context_length": tensors["positional_embedding"].shape[0],
        "vocab_size": tensors["token_embedding.weight"].shape[0],
        "text_width": text_width,
        "text_heads": max(1, text_width // 64),
        "text_layers": count(r"transformer\.resblocks\.(\d+)\."),
        "logit_bias": "logit_bias" in tensors,
    }
    if "visual.proj" in tensors:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        side = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        layers = count(r"visual\.transformer\.resblocks\.(\d+)\.")
        return ModelConfig(
            **common, image_size=side * patch, patch_size=patch, vision_width=width, vision_layers=layers
        )
    places = tensors["visual.attnpool.positional_embedding"].shape[0] - 1
    blocks = tuple(count(rf"visual\.layer{number}\.(\d+)\.") for number in (1, 2, 3, 4))
    assert len(blocks) == 4
    return ModelConfig(
        **common,
        image_size=round(places**0.5) * 32,
        vision_width=tensors["visual.layer1.0.conv1.weight"].shape[0],
        vision_layers=blocks,
    )


def fit_to(tensors: Mapping[str, Tensor], model: CLIP) -> dict[str, Tensor]:
    """The weights, with the position embedding of the image tower resized to the resolution of the model."""
    name = "visual.positional_embedding"
    fitted = dict(tensors)
    target = model.state_dict().get(name)
    if target is None or name not in fitted or fitted[name].shape == target.shape:
        return fitted
    first, rest = fitted[name][:1], fitted[name][1:]
    old, new = round(len(rest) ** 0.5), round((len(target) - 1) ** 0.5)
    grid = rest.T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False, antialias=new < old)
    fitted[name] = torch.cat([first, grid.reshape(rest.shape[1], -1).T])
    return fitted
