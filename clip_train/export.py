"""Writes weights for another program: OpenAI's names in safetensors, open_clip's `.pt`, a Hugging Face folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from clip_train.errors import TrainError, UsageError
from clip_train.huggingface import card, config_of, preparation_of, to_huggingface, tokenizer_files
from clip_train.tokenizer import Tokenizer
from clip_train.weights import METADATA, Weights, describe


def export(weights: Weights, output: str, *, form: str, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """Writes weights for another program.

    The files name their architecture, so that they can be read again without a guess.

    Args:
        form: "safetensors" (OpenAI's names, which open_clip loads too), "open_clip" (its `.pt`, {"state_dict": ...}),
            or "huggingface" (a folder on which AutoModel, AutoProcessor and pipeline work; ViT only).
        tokenizer: of the weights; only "huggingface" needs it.
    """
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    plain = {name: value.contiguous() for name, value in weights.tensors.items()}
    try:
        if form == "safetensors":
            save_file(plain, partial, metadata={METADATA: describe(weights)})
        elif form == "open_clip":
            torch.save({"state_dict": plain, METADATA: describe(weights)}, partial)
        else:
            _write_huggingface(partial, weights, tokenizer)
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


def _write_huggingface(folder: Path, weights: Weights, tokenizer: Tokenizer | None) -> None:
    config = weights.config
    if config.is_resnet or config.logit_bias:
        raise UsageError("Hugging Face's CLIPModel has no ResNet tower and no logit bias: use another --format")
    folder.mkdir()
    tensors = to_huggingface({name: value.contiguous() for name, value in weights.tensors.items()}, config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    files = {
        "config.json": json.dumps(config_of(config), indent=1) + "\n",
        "preprocessor_config.json": json.dumps(preparation_of(config), indent=1) + "\n",
        "README.md": card(config, sum(value.numel() for value in tensors.values())),
    }
    if tokenizer is not None:
        files |= tokenizer_files(tokenizer, config)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
