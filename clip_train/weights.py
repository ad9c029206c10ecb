"""Reads weights: of our checkpoints, OpenAI, open_clip and Hugging Face. No code of a file is run.

The content decides the form of a file:
- a checkpoint folder of ours, or its model.safetensors
- OpenAI's TorchScript archives (torchscript.py)
- open_clip's `.pt` or `.bin` (torch.load with weights_only) and `.safetensors`, or the folder of one with its
  open_clip_config.json
- a Hugging Face folder: config.json and weights of a CLIPModel (huggingface.py)

architecture.py says where the architecture comes from.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from clip_train import checkpoint, huggingface
from clip_train.architecture import UNDECIDED, beside, decide, of_open_clip, of_openai, of_preset, read_shapes
from clip_train.config import ModelConfig
from clip_train.errors import InputMissing, TrainError, UsageError
from clip_train.model import CLIP
from clip_train.places import OPEN_CLIP_CONFIG, OPEN_CLIP_FILES
from clip_train.torchscript import read_torchscript

NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's archives store as tensors
METADATA = "clip_train"  # the entry of our exports that has the architecture and the vocabulary
# the fingerprint of OpenAI's merges: all weights of OpenAI and open_clip with 49,408 ids were trained with them
OPENAI_VOCABULARY = "e01662df9f2f78e9"
OPENAI_IDS = 49408


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors under OpenAI's names, and the architecture of their model."""

    tensors: dict[str, Tensor]
    config: ModelConfig
    kind: str  # "checkpoint", "openai", "open_clip", "huggingface"
    vocabulary: str | None = None  # the fingerprint of the tokenizer, if it is known
    merges: list[tuple[str, str]] | None = None  # of the tokenizer, if it comes with the weights


def read_weights(
    path: str | Path, *, ema: bool = False, model: str | None = None, activation: str | None = None
) -> Weights:
    """Reads weights in any of the forms above.

    Args:
        ema: read the moving average of one of our checkpoints.
        model, activation: what weights without a config were trained as; see architecture.py.

    Raises:
        InputMissing: there is no such file or folder.
        UsageError: the weights do not name their architecture, or name another than `model` and `activation`.
        TrainError: the weights cannot be read, or need what these towers do not have.
    """
    file = Path(path)
    if not file.exists():
        raise InputMissing(f"no such file or folder: {file}")
    if (file.parent / "checkpoint.json").exists() and file.name in ("model.safetensors", "ema.safetensors"):
        file, ema = file.parent, file.name == "ema.safetensors"  # the folder has the digests and the vocabulary
    said = (model, activation)
    weights = _read_folder(file, ema=ema, said=said) if file.is_dir() else _read_file(file, *said)
    if activation and weights.config.activation != activation:
        raise UsageError(f"{path} was trained with the activation {weights.config.activation}, not {activation}")
    if model:  # also where the weights name their architecture themselves
        shapes = {name: value for name, value in dataclasses.asdict(weights.config).items() if name not in UNDECIDED}
        named = of_preset(shapes, model, weights.config.activation, str(path))
        heads = ("vision_head_width", "text_heads")
        if any(getattr(weights.config, name) != named[name] for name in heads):
            raise UsageError(f"{path} has other heads than --model {model}")
    return weights


def load_model(
    path: str | Path, *, ema: bool = False, model: str | None = None, activation: str | None = None
) -> tuple[CLIP, Weights]:
    """A model in evaluation mode with these weights, fp32."""
    weights = read_weights(path, ema=ema, model=model, activation=activation)
    with torch.device("meta"):
        made = CLIP(weights.config)
    made.to_empty(device="cpu")
    checkpoint.restore_model(made, weights.tensors, origin=str(path))
    return made.eval(), weights


# --- folders ----------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path, *, ema: bool, said: tuple[str | None, str | None]) -> Weights:
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
                return _read_folder(path, ema=ema, said=said)
            faults.append(fault)
        raise TrainError(f"{folder}: none of the {len(runs)} checkpoints is valid; the newest: {faults[0]}")
    if (folder / OPEN_CLIP_CONFIG).exists():
        for name in OPEN_CLIP_FILES:
            if (folder / name).exists():
                return _read_file(folder / name, *said)
    if (folder / "config.json").exists():
        return _read_huggingface(folder)
    raise InputMissing(
        f"{folder} holds neither checkpoints nor a model of Hugging Face (config.json, model.safetensors) or open_clip "
        f"({OPEN_CLIP_CONFIG}, {OPEN_CLIP_FILES[0]})"
    )


def _read_huggingface(folder: Path) -> Weights:
    found = _read_json(folder / "config.json")
    named = huggingface.read_config(found, str(folder)) | huggingface.read_preparation(folder)
    theirs: dict[str, Tensor] = {}
    for file in huggingface.weight_files(folder):
        theirs |= _load_safetensors(file) if file.suffix == ".safetensors" else _load_pickled(file)
    try:
        tensors = huggingface.from_huggingface(theirs, named["vision_layers"], named["text_layers"])
    except KeyError as error:
        raise TrainError(f"{folder} is not a CLIPModel of Hugging Face: it has no {error}") from error
    strange = [name for name in theirs if name.endswith("bias") and "projection" in name and "layers" not in name]
    if strange:
        raise TrainError(f"{folder} has {strange[0]!r}: a projection with a bias is not supported")
    merges = huggingface.read_merges(folder)
    named = {name: value for name, value in named.items() if value is not None}
    weights = _decided(tensors, "huggingface", named, str(folder))
    if merges is None:
        return weights
    return dataclasses.replace(weights, merges=merges, vocabulary=None)


# --- files ------------------------------------------------------------------------------------------------------------


def _read_file(file: Path, model: str | None, activation: str | None) -> Weights:
    if not zipfile.is_zipfile(file):
        tensors, own = _load_safetensors(file), _metadata(file)
    elif _is_scripted(file):
        tensors = _plain(read_torchscript(file), file)
        return _decided(tensors, "openai", of_openai(read_shapes(tensors)), str(file))
    else:
        tensors, own = _load_pickled(file), None
        if METADATA in tensors:
            own = tensors.pop(METADATA)  # type: ignore[assignment]
    tensors = _plain(tensors, file)
    if own:
        try:
            config = ModelConfig.from_json(own["model"])
        except (KeyError, TypeError, AttributeError) as error:
            raise TrainError(f"{file}: the architecture in its metadata cannot be read: {error!r}") from error
        named = dataclasses.asdict(config)
        return dataclasses.replace(_decided(tensors, "open_clip", named, str(file)), vocabulary=own.get("vocabulary"))
    config_file = beside(file)
    if config_file:
        return _decided(tensors, "open_clip", of_open_clip(_read_json(config_file), str(config_file)), str(file))
    return _decided(tensors, "open_clip", of_preset(read_shapes(tensors), model, activation, str(file)), str(file))


def _decided(tensors: dict[str, Tensor], kind: str, named: Mapping[str, Any], origin: str) -> Weights:
    try:
        shapes = read_shapes(tensors)
    except (KeyError, ValueError) as error:
        raise TrainError(f"{origin} is not a CLIP model that this program knows: it has no {error}") from error
    config = decide(shapes, named, origin)
    foreign = config.vocab_size == OPENAI_IDS
    return Weights(
        {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()},
        config, kind, OPENAI_VOCABULARY if foreign else None,
    )  # fmt: skip


def _plain(tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """Removes prefixes of wrappers and tensors that are not weights."""
    plain = {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in tensors.items()}
    if "text.token_embedding.weight" in plain:  # open_clip's models with "custom_text"
        plain = {name.removeprefix("text."): value for name, value in plain.items()}
    for name in (*NOT_WEIGHTS, "attn_mask"):
        plain.pop(name, None)
    if "visual.proj" not in plain and "visual.attnpool.c_proj.weight" not in plain:
        raise TrainError(f"{origin} is not a CLIP model that this program knows: it has no visual.proj")
    missing = [
        name
        for name in ("text_projection", "ln_final.weight", "positional_embedding", "token_embedding.weight")
        if name not in plain
    ]
    if missing:
        raise TrainError(f"{origin} is not a CLIP model that this program knows: it has no {missing[0]}")
    return plain


def _is_scripted(file: Path) -> bool:
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _load_pickled(file: Path) -> dict[str, Tensor]:
    """The state dict of a zip of torch, and what our exports say of it under METADATA."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise TrainError(f"{file} cannot be read as tensors alone: {error}") from error
    tensors = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(tensors, dict):
        raise TrainError(f"{file} holds no state dict")
    plain = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
    return plain | ({METADATA: json.loads(found[METADATA])} if METADATA in found else {})


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainError(f"{file} is neither a zip of torch nor safetensors, or it is truncated ({error})") from error


def _metadata(file: Path) -> dict[str, Any] | None:
    """What our exports say of themselves."""
    with safe_open(file, framework="pt") as opened:
        said = (opened.metadata() or {}).get(METADATA)
    try:
        return json.loads(said) if said else None
    except ValueError as error:
        raise TrainError(f"{file}: its metadata is damaged ({error})") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise TrainError(f"{file}: a JSON object is expected")
    return found


def describe(weights: Weights) -> str:
    """The JSON that our exports carry, so that they name their own architecture and vocabulary."""
    return json.dumps({"model": dataclasses.asdict(weights.config), "vocabulary": weights.vocabulary})


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
