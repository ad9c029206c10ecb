"""The names and the config.json of Hugging Face's CLIPModel, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clip_train.config import ModelConfig

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
