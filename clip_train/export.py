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
from clip_train.huggingface import huggingface_config, to_huggingface
from clip_train.weights import Weights


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
