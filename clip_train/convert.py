"""Reads and writes weights of other programs: OpenAI, open_clip, Hugging Face. No code of a file is run.

The content decides the form of a file: - a checkpoint folder of ours, or its model.safetensors - OpenAI's TorchScript
archives (`ViT-B-32.pt`): a zip with a `data.pkl`. The unpickler accepts tensors and attributes only   and ignores the
code in the archive - open_clip's `.pt` (torch.load with weights_only) and `.safetensors` - a Hugging Face folder:
`config.json` and `model.safetensors` of a CLIPModel
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_train import checkpoint
from clip_train.config import ModelConfig
from clip_train.errors import InputMissing, TrainError, UsageError
from clip_train.model import CLIP

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


# --- reading ----------------------------------------------------------------------------------------------------------


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


_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Module(dict):  # type: ignore[type-arg]
    """Replaces every class of the archive. It keeps the attributes and has no behaviour."""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, dict) else {})


class _TensorReader(pickle.Unpickler):
    """Unpickles modules as dictionaries and tensors as tensors, and refuses every other name."""

    def __init__(self, data: bytes, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(data))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _STORAGES:
            return name
        if module == "torch.jit._pickle":  # typed lists and the like: the content is enough
            return lambda *values: values[0] if values else None
        if module.startswith("__torch__"):
            return type(name, (_Module,), {})
        raise pickle.UnpicklingError(f"it needs {module}.{name}, which weights do not need")

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, _ = pid
        if key not in self._storages:
            data = self._archive.read(f"{self._root}/data/{key}")
            self._storages[key] = torch.frombuffer(bytearray(data), dtype=_STORAGES[kind])
        return self._storages[key]


def read_torchscript(file: str | Path) -> dict[str, Tensor]:
    """All tensors of a TorchScript archive by name. No code of the archive is run."""
    try:
        with zipfile.ZipFile(file) as archive:
            root = archive.namelist()[0].split("/")[0]
            top = _TensorReader(archive.read(f"{root}/data.pkl"), archive, root).load()
    except (pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ValueError, RuntimeError, EOFError) as error:
        raise TrainError(f"{file} cannot be read as a TorchScript archive: {error}") from error
    tensors: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", top)]
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.items() if isinstance(module, dict) else []:
            if isinstance(value, Tensor):
                tensors[prefix + name] = value
            elif isinstance(value, dict):
                waiting.append((f"{prefix}{name}.", value))
    return tensors


# --- Hugging Face -----------------------------------------------------------------------------------------------------

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


def _hf_names(config: ModelConfig) -> dict[str, list[str]]:
    """Our name -> their names. `in_proj` is three tensors there."""
    assert isinstance(config.vision_layers, int)
    names = {ours: [theirs] for ours, theirs in (_HF_PLAIN | _HF_TRANSPOSED).items()}
    for ours, theirs, layers in (
        ("visual.transformer", "vision_model", config.vision_layers),
        ("transformer", "text_model", config.text_layers),
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
    out: dict[str, Tensor] = {}
    for ours, theirs in _hf_names(config).items():
        value = tensors[ours].T if ours in _HF_TRANSPOSED else tensors[ours]
        for name, part in zip(theirs, value.chunk(len(theirs)) if len(theirs) > 1 else [value], strict=True):
            out[name] = part.contiguous()
    return out


def from_huggingface(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`."""
    out: dict[str, Tensor] = {}
    for ours, theirs in _hf_names(config).items():
        value = torch.cat([tensors[name] for name in theirs]) if len(theirs) > 1 else tensors[theirs[0]]
        out[ours] = value.T.contiguous() if ours in _HF_TRANSPOSED else value
    return out


def huggingface_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of a CLIPModel."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": config.vocab_size,
            "hidden_size": config.text_width,
            "intermediate_size": 4 * config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "max_position_embeddings": config.context_length,
            "hidden_act": config.activation,
            "projection_dim": config.embed_dim,
            "bos_token_id": config.vocab_size - 2,
            "eos_token_id": config.vocab_size - 1,
            "pad_token_id": 0,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": config.vision_width,
            "intermediate_size": 4 * config.vision_width,
            "num_hidden_layers": config.vision_layers,
            "num_attention_heads": config.vision_heads,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "hidden_act": config.activation,
            "projection_dim": config.embed_dim,
        },
    }


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


# --- writing ----------------------------------------------------------------------------------------------------------


def export(weights: Weights, output: str, *, form: str) -> dict[str, Any]:
    """Writes weights for another program.

    Args:
        form: "safetensors" (OpenAI's names, which open_clip loads too), "open_clip" (its `.pt`, {"state_dict": ...}),
            or "huggingface" (a folder with config.json and model.safetensors; ViT only).
    """
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    plain = {name: value.contiguous() for name, value in weights.tensors.items()}
    try:
        if form == "safetensors":
            save_file(plain, partial, metadata={"format": "pt"})
        elif form == "open_clip":
            torch.save({"state_dict": plain}, partial)
        else:
            if weights.config.is_resnet or weights.config.logit_bias:
                raise UsageError("Hugging Face's CLIPModel has no ResNet tower and no logit bias: use another --format")
            partial.mkdir()
            save_file(to_huggingface(plain, weights.config), partial / "model.safetensors", metadata={"format": "pt"})
            (partial / "config.json").write_text(json.dumps(huggingface_config(weights.config), indent=1) + "\n")
        if path.exists() and form == "huggingface":
            raise UsageError(f"{path} exists already")
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise TrainError(f"cannot write {path}: {error}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
    return {"output": str(path), "format": form, "parameters": sum(value.numel() for value in plain.values())}


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
