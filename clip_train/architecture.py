"""What decides the architecture of foreign weights: shapes where they do, else a config that comes with the weights.

Shapes do not show how many heads there are, the activation, the epsilon of the layer norms, nor how images are
prepared. Logits are silently wrong where one of them is. So each is read from open_clip's JSON, Hugging Face's
config.json (huggingface.py) or our own metadata, or is named by --model and --activation. None is guessed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clip_train.config import MEAN, PRESETS, STD, ModelConfig, preset
from clip_train.errors import TrainError, UsageError

UNDECIDED = ("vision_head_width", "text_heads", "activation", "layer_norm_eps", "mean", "std", "interpolation")
# OpenAI's archives come without a config: its code takes one head per 64 channels (clip/model.py, build_model)
_OPENAI = {
    "vision_head_width": 64, "activation": "quick_gelu", "layer_norm_eps": 1e-5, "mean": MEAN, "std": STD,
    "interpolation": "bicubic",
}  # fmt: skip


def read_shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of ModelConfig that the shapes of the weights decide."""

    def count(pattern: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(pattern, name))})

    def mlp(tower: str, width: int) -> int:
        hidden = tensors[f"{tower}.resblocks.0.mlp.c_fc.weight"].shape[0]
        return 0 if hidden == 4 * width else hidden

    width = tensors["ln_final.weight"].shape[0]
    found: dict[str, Any] = {
        "embed_dim": tensors["text_projection"].shape[1],
        "context_length": tensors["positional_embedding"].shape[0],
        "vocab_size": tensors["token_embedding.weight"].shape[0],
        "text_width": width,
        "text_layers": count(r"transformer\.resblocks\.(\d+)\."),
        "text_mlp_width": mlp("transformer", width),
        "logit_bias": "logit_bias" in tensors,
    }
    if "visual.proj" in tensors:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        side = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        found |= {
            "image_size": side * patch, "patch_size": patch, "vision_width": width,
            "vision_layers": count(r"visual\.transformer\.resblocks\.(\d+)\."),
            "vision_mlp_width": mlp("visual.transformer", width),
        }  # fmt: skip
        return found
    places = tensors["visual.attnpool.positional_embedding"].shape[0] - 1
    return found | {
        "image_size": round(places**0.5) * 32, "patch_size": None, "vision_mlp_width": 0,
        "vision_width": tensors["visual.layer1.0.conv1.weight"].shape[0],
        "vision_layers": tuple(count(rf"visual\.layer{number}\.(\d+)\.") for number in (1, 2, 3, 4)),
    }  # fmt: skip


def decide(shapes: Mapping[str, Any], named: Mapping[str, Any], origin: str) -> ModelConfig:
    """The architecture. TrainError where the config that names it does not fit the shapes.

    Args:
        named: fields of ModelConfig. Those of UNDECIDED must be there, others may.
    """
    differing = [
        f"{name} {value}, not {named[name]}" for name, value in shapes.items() if named.get(name, value) != value
    ]
    if differing:
        raise TrainError(f"{origin}: the weights do not fit their config: {'; '.join(differing)}")
    config = ModelConfig(**shapes, **{name: named[name] for name in UNDECIDED})
    for width, heads in (
        (config.vision_width * (32 if config.is_resnet else 1), config.vision_heads),
        (config.text_width, config.text_heads),
    ):
        if heads < 1 or width % heads:
            raise TrainError(f"{origin}: {width} channels do not divide into {heads} heads")
    return config


def of_openai(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenAI's archives leave to its code."""
    return {**_OPENAI, "text_heads": max(1, shapes["text_width"] // 64)}


def of_preset(shapes: Mapping[str, Any], model: str | None, activation: str | None, origin: str) -> dict[str, Any]:
    """What --model and --activation name. UsageError where one is missing, or the model has other shapes."""
    if model is None:
        fitting = [name for name, known in PRESETS.items() if not _differing(shapes, known.model)]
        hint = f"--model {fitting[0]}, whose shapes fit" if fitting else "no model of this program has these shapes"
        raise UsageError(
            f"{origin} does not name its heads and its activation, and shapes do not show them: put its "
            f"open_clip_config.json beside it, or name its model ({hint}) and its --activation"
        )
    known = preset(model).model
    differing = _differing(shapes, known)
    if differing:
        raise UsageError(f"{origin} belongs to another model than --model {model}: {'; '.join(differing)}")
    if activation is None:
        raise UsageError(
            f"{origin} does not name its activation: say --activation quick_gelu (OpenAI's models, and those whose "
            "name in open_clip ends in -quickgelu) or --activation gelu (open_clip's other models)"
        )
    return {name: getattr(known, name) for name in UNDECIDED} | {"activation": activation}


def _differing(shapes: Mapping[str, Any], known: ModelConfig) -> list[str]:
    free = ("vocab_size", "logit_bias", "image_size")  # a preset has one vocabulary; the grid is stretched
    wanted = dataclasses.asdict(known)
    differing = (name for name, value in shapes.items() if name not in free and value != wanted[name])
    return [f"{name} {shapes[name]}, not {wanted[name]}" for name in differing]


# --- open_clip --------------------------------------------------------------------------------------------------------

# Keys that do not change what a trained model computes, or whose value is the one of these towers.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "pos_embed_type": ("learnable",), "pool_type": ("tok", "argmax"), "proj_type": ("linear",),
    "output_tokens": (True,), "norm_kwargs": (), "act_kwargs": (),
}  # fmt: skip
_IGNORED = {"patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "pad_id", "mlp_ratio", "init_logit_scale",
            "init_logit_bias", "nonscalar_logit_scale", "custom_text", "tokenizer_kwargs"}  # fmt: skip
_VISION = {"image_size", "layers", "width", "patch_size", "head_width"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}


def of_open_clip(found: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The fields of ModelConfig that an open_clip JSON names: a `model_configs/NAME.json`, or `open_clip_config.json`.

    Raises:
        TrainError: it is not such a file, or names something that these towers do not have.
    """
    try:
        model, images = found.get("model_cfg", found), found.get("preprocess_cfg", {})
        vision, text = model["vision_cfg"], model["text_cfg"]
        _refuse_others(model, {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}, origin)
        _refuse_others(vision, _VISION, f"{origin}, vision_cfg")
        _refuse_others(text, _TEXT, f"{origin}, text_cfg")
        layers = vision["layers"]
        width, resnet = vision["width"], isinstance(layers, list)
        named = {
            "embed_dim": model["embed_dim"],
            "image_size": _square(vision.get("image_size", 224), origin),
            "vision_layers": tuple(layers) if resnet else layers,
            "vision_width": width,
            "patch_size": None if resnet else _square(vision["patch_size"], origin),
            "vision_head_width": vision.get("head_width", 64),
            "context_length": text.get("context_length", 77),
            "vocab_size": text.get("vocab_size", 49408),
            "text_width": text.get("width", 512),
            "text_heads": text.get("heads", 8),
            "text_layers": text.get("layers", 12),
        }
        activations = {_activation(model, part) for part in (vision, text)}
        eps = {(part.get("norm_kwargs") or {}).get("eps", 1e-5) for part in (vision, text)}
        if len(activations) > 1 or len(eps) > 1:
            raise TrainError(f"{origin}: the towers differ in their activation or layer norm, which is not supported")
        return named | _preparation(images, origin) | {"activation": activations.pop(), "layer_norm_eps": eps.pop()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TrainError(f"{origin} is not a config of open_clip: {error!r}") from error


def _refuse_others(found: Mapping[str, Any], known: set[str], origin: str) -> None:
    for name, value in found.items():
        if name not in known | _IGNORED and value and value not in _NEUTRAL.get(name, ()):
            if name in ("norm_kwargs", "act_kwargs") and set(value) <= {"eps", "approximate"}:
                continue
            raise TrainError(f"{origin}: {name} {value!r} is not supported by the towers of this program")


def _activation(model: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    if model.get("quick_gelu"):
        return "quick_gelu"
    return "gelu_tanh" if (part.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu"


def _square(size: Any, origin: str) -> int:
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise TrainError(f"{origin}: {size} is not a square, which is not supported")
    return int(sides.pop())


def _preparation(images: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """How images are prepared; open_clip's defaults are OpenAI's."""
    if images.get("resize_mode", "shortest") != "shortest":
        raise TrainError(f"{origin}: resize_mode {images['resize_mode']!r} is not supported: the shorter side is")
    interpolation = images.get("interpolation", "bicubic")
    if interpolation not in ("bicubic", "bilinear"):
        raise TrainError(f"{origin}: interpolation {interpolation!r} is not supported (bicubic, bilinear)")
    return {
        "mean": channels(images.get("mean", MEAN)), "std": channels(images.get("std", STD)),
        "interpolation": interpolation,
    }  # fmt: skip


def channels(values: Any) -> tuple[float, float, float]:
    """Three numbers, or one for all. ValueError for anything else."""
    found = [float(values)] * 3 if isinstance(values, int | float) else [float(value) for value in values]
    if len(found) != 3:
        raise ValueError(f"three channels are expected, not {values}")
    return found[0], found[1], found[2]


def beside(file: Path) -> Path | None:
    """The open_clip JSON of a file: NAME.json, or open_clip_config.json in its folder."""
    for path in (file.with_suffix(".json"), file.parent / "open_clip_config.json"):
        if path.is_file() and path != file:
            return path
    return None
