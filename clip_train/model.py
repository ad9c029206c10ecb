"""CLIP: an image tower and a text tower with one embedding space (paper, section 2.4), with OpenAI's numerics.

Shapes: B pairs, L tokens per image or caption, T tokens of a packed batch of captions, d width, H heads, E embedding.
The names in the state dict are OpenAI's (`visual.transformer.resblocks.0.attn.in_proj_weight`, ...), so that their
weights, and open_clip's, load unchanged.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_train.config import ModelConfig
from clip_train.resnet import ModifiedResNet
from clip_train.text import PackedText

varlen_attn: Any = None  # of torch, from the first model on that is made where there is a GPU
_CAUSAL: dict[str, Any] = {}

MAX_LOGIT_SCALE = math.log(100)  # paper, section 2.5: logits are never scaled by more than 100


class LayerNorm(nn.LayerNorm):
    """Computes in fp32 and returns the type of the input. FSDP may have gathered its weights in half precision."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP models."""

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:  # torch.compile fuses it
            return input * torch.sigmoid(1.702 * input)
        return _QuickGELU.apply(input)


class _QuickGELU(torch.autograd.Function):
    """The same as silu(1.702 x) / 1.702: half the passes over memory, and only the input is saved."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return F.silu(1.702 * input, inplace=True).div_(1.702)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # type: ignore[override]
        (input,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(upstream, 1.702 * input)


def make_activation(name: str) -> nn.Module:
    """One of ACTIVATIONS of config.py."""
    return QuickGELU() if name == "quick_gelu" else nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


def dense_attention(qkv: Tensor, *, heads: int, causal: bool) -> Tensor:
    """(B, L, 3d) -> (B, L, d)."""
    batch, length, width = qkv.shape
    q, k, v = qkv.view(batch, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)  # each (B, H, L, d/H)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return mixed.transpose(1, 2).reshape(batch, length, width // 3)


def find_varlen() -> None:
    """Looks for torch's attention over captions of any length. Its import takes longer than that of torch itself."""
    global varlen_attn
    if varlen_attn is not None or not torch.cuda.is_available():
        return
    try:
        from torch.nn.attention.varlen import varlen_attn as found
    except ImportError:  # before torch 2.10
        return
    has_window = "window_size" in inspect.signature(found).parameters  # torch 2.11 replaced is_causal
    _CAUSAL.update({"window_size": (-1, 0)} if has_window else {"is_causal": True})
    varlen_attn = found


def has_varlen(device: torch.device, kind: torch.dtype) -> bool:
    """Can one kernel of torch compute attention over captions of any length, on this device and in this type?"""
    return device.type == "cuda" and kind in (torch.float16, torch.bfloat16) and varlen_attn is not None


def packed_attention(qkv: Tensor, *, heads: int, packing: PackedText) -> Tensor:
    """(T, 3d) -> (T, d), causal within each caption, without padding.

    On a GPU in half precision one variable-length kernel computes all captions. Otherwise the captions of one length
    are a dense batch, without a copy.
    """
    total, width = qkv.shape
    if has_varlen(qkv.device, qkv.dtype):
        q, k, v = qkv.view(total, 3, heads, width // 3 // heads).unbind(1)
        bounds, longest = packing.boundaries, packing.longest
        mixed = varlen_attn(q, k, v, bounds, bounds, longest, longest, **_CAUSAL)
        assert isinstance(mixed, Tensor)
        return mixed.reshape(total, width // 3)
    parts = qkv.split([captions * length for captions, length in packing.blocks])
    blocks = [
        dense_attention(part.view(captions, length, width), heads=heads, causal=True).view(-1, width // 3)
        for part, (captions, length) in zip(parts, packing.blocks, strict=True)
    ]
    return torch.cat(blocks)


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names and initialisation of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, packing: PackedText | None = None) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        if packing is None:
            return self.out_proj(dense_attention(qkv, heads=self.heads, causal=self.causal))
        return self.out_proj(packed_attention(qkv, heads=self.heads, packing=packing))


class Block(nn.Module):
    """Pre-norm residual block: attention, then an MLP."""

    def __init__(self, width: int, heads: int, *, causal: bool, mlp_width: int, activation: str, eps: float) -> None:
        super().__init__()
        self.attn = Attention(width, heads, causal=causal)
        self.ln_1 = LayerNorm(width, eps)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, mlp_width), gelu=make_activation(activation), c_proj=nn.Linear(mlp_width, width)
            )
        )
        self.ln_2 = LayerNorm(width, eps)

    def forward(self, x: Tensor, packing: PackedText | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), packing)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks over (B, L, d), or over the (T, d) of a packed batch."""

    def __init__(
        self, width: int, layers: int, heads: int, *, causal: bool, mlp_width: int, activation: str, eps: float
    ) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.checkpointing = False  # recompute each block in the backward pass
        self.resblocks = nn.ModuleList(
            Block(width, heads, causal=causal, mlp_width=mlp_width or 4 * width, activation=activation, eps=eps)
            for _ in range(layers)
        )

    def forward(self, x: Tensor, packing: PackedText | None = None) -> Tensor:
        for block in self.resblocks:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, packing, use_reentrant=False)
            else:
                x = block(x, packing)
        return x


class VisionTransformer(nn.Module):
    """Images (B, 3, S, S) -> (B, E). Layer norms are before the blocks and, on the class token, after them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert isinstance(config.vision_layers, int) and config.patch_size is not None
        width, patch = config.vision_width, config.patch_size
        self.patch_size, self.image_size = patch, config.image_size
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((config.image_size // patch) ** 2 + 1, width))
        self.ln_pre = LayerNorm(width, config.layer_norm_eps)
        self.transformer = Transformer(
            width, config.vision_layers, config.vision_heads, causal=False, mlp_width=config.vision_mlp_width,
            activation=config.activation, eps=config.layer_norm_eps,
        )  # fmt: skip
        self.ln_post = LayerNorm(width, config.layer_norm_eps)
        self.proj = nn.Parameter(scale * torch.randn(width, config.embed_dim))

    def forward(self, images: Tensor, kept_patches: Tensor | None = None) -> Tensor:
        """`kept_patches` (B, K) are the indices of the patches that patch dropout keeps. None: all patches."""
        x = self._patches(images)  # (B, N, d)
        positions = self.positional_embedding.to(x.dtype)
        x = x + positions[1:]
        if kept_patches is not None:
            x = x.gather(1, kept_patches[:, :, None].expand(-1, -1, x.shape[2]))
        first = (self.class_embedding.to(x.dtype) + positions[0]).expand(len(x), 1, -1)
        x = self.transformer(self.ln_pre(torch.cat([first, x], dim=1)))
        return self.ln_post(x[:, 0]) @ self.proj

    def _patches(self, images: Tensor) -> Tensor:
        """The patch convolution as one matrix product: its kernel is as large as its stride."""
        batch, channels, height, width = images.shape
        patch = self.patch_size
        tiles = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)
        return F.linear(tiles, self.conv1.weight.flatten(1))


class CLIP(nn.Module):
    """Both towers and the temperature. `forward` returns the unit vectors for the loss."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        find_varlen()
        self.config = config
        self.image_is_locked = False
        self.visual: nn.Module = ModifiedResNet(config) if config.is_resnet else VisionTransformer(config)
        self.transformer = Transformer(
            config.text_width, config.text_layers, config.text_heads, causal=True, mlp_width=config.text_mlp_width,
            activation=config.activation, eps=config.layer_norm_eps,
        )  # fmt: skip
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.text_width))
        self.ln_final = LayerNorm(config.text_width, config.layer_norm_eps)
        self.text_projection = nn.Parameter(torch.empty(config.text_width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10 if config.logit_bias else 1 / 0.07)))  # section 2.5
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if config.logit_bias else None
        self._initialise()

    def _initialise(self) -> None:
        """OpenAI's initialisation. Their vision transformer keeps the defaults of torch, and so does this one."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        width, layers = self.config.text_width, self.config.text_layers
        for block in self.transformer.resblocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)  # type: ignore[union-attr,arg-type]
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)  # type: ignore[union-attr,arg-type]
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def encode_image(self, images: Tensor, kept_patches: Tensor | None = None) -> Tensor:
        """(B, 3, S, S) normalised images -> (B, E) features, not normalised."""
        return self.visual(images) if kept_patches is None else self.visual(images, kept_patches)

    def encode_text(self, text: Tensor | PackedText) -> Tensor:
        """(B, L) padded ids, or a packed batch -> (B, E) features at the first end-of-text token, not normalised."""
        if isinstance(text, PackedText):
            x = self.token_embedding(text.tokens) + F.embedding(text.positions, self.positional_embedding)  # (T, d)
            # the layer norm is needed at the end-of-text tokens only
            return self.ln_final(self.transformer(x, text)[text.ends]) @ self.text_projection
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]  # (B, L, d)
        x = self.transformer(x)
        ends = text.argmax(dim=1)  # end-of-text is the largest id; argmax returns the first
        return self.ln_final(x[torch.arange(len(x), device=x.device), ends]) @ self.text_projection

    def forward(
        self, images: Tensor, text: Tensor | PackedText, kept_patches: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors in fp32, (B, E) each."""
        image_features = F.normalize(self.encode_image(images, kept_patches).float(), dim=1)
        text_features = F.normalize(self.encode_text(text).float(), dim=1)
        return image_features, text_features

    def logits(self, images: Tensor, text: Tensor | PackedText) -> Tensor:
        """(images, texts) scaled cosine similarities, OpenAI's `logits_per_image`."""
        image_features, text_features = self(images, text)
        return self.logit_scale.exp() * image_features @ text_features.T

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keeps the temperature within the bound of the paper. Call it after each step."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def lock(self, *, image: bool = False, text: bool = False) -> None:
        """Locks towers (LiT, Zhai et al. 2022, arXiv 2111.07991): their weights and batch statistics stay as they are.

        Both logit parameters go on learning.
        """
        texts = (self.transformer, self.token_embedding, self.positional_embedding, self.ln_final, self.text_projection)
        for part in ((self.visual,) if image else ()) + (texts if text else ()):
            part.requires_grad_(False)
        self.image_is_locked = image
        self.train(self.training)

    def train(self, mode: bool = True) -> CLIP:
        """As in torch, but a locked image tower stays in evaluation mode, which its batch norms go by."""
        super().train(mode)
        if self.image_is_locked:
            self.visual.eval()
        return self

    def set_activation_checkpointing(self, on: bool) -> None:
        """Saves the memory of activations at the cost of a second forward pass of every block."""
        for module in self.modules():
            if isinstance(module, Transformer | ModifiedResNet):
                module.checkpointing = on


def count_flops(config: ModelConfig, *, text_tokens: float | None = None) -> float:
    """Floating-point operations of a forward pass over one pair: matrix products and convolutions only, as in MFU.

    Args:
        text_tokens: mean number of tokens per caption that are computed; the whole context unless given.
    """
    return sum(tower_flops(config, text_tokens=text_tokens))


def tower_flops(config: ModelConfig, *, text_tokens: float | None = None) -> tuple[float, float]:
    """`count_flops` of the image tower and of the text tower."""
    length = config.context_length if text_tokens is None else text_tokens
    text = _transformer_flops(config.text_width, config.text_layers, length, config.text_mlp_width)
    text += 2 * config.text_width * config.embed_dim
    if config.is_resnet:
        return ModifiedResNet.count_flops(config), text
    assert isinstance(config.vision_layers, int) and config.patch_size is not None
    patches = (config.image_size // config.patch_size) ** 2
    width = config.vision_width
    image = _transformer_flops(width, config.vision_layers, patches + 1, config.vision_mlp_width)
    return image + 2 * 3 * config.patch_size**2 * width * patches + 2 * width * config.embed_dim, text


def _transformer_flops(width: int, layers: int, length: float, mlp_width: int) -> float:
    products = 8 * width * width + 4 * width * (mlp_width or 4 * width)  # of a token
    return layers * (products * length + 4 * length * length * width)
