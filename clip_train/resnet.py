"""ModifiedResNet (paper, section 2.4): ResNet-D stem, anti-aliased strides, attention instead of average pooling."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_train.config import ModelConfig


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions. A stride is an average pool after the 3x3, and before the 1x1 of the shortcut."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool: nn.Module = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            # the names of OpenAI's code; the pool has no weights, so a state dict has "0" and "1" only
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(inputs, outputs, 1, bias=False)),
                        ("1", nn.BatchNorm2d(outputs)),
                    ]
                )
            )
        nn.init.zeros_(self.bn3.weight)  # each block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return F.relu(out + shortcut)


class AttentionPool(nn.Module):
    """(B, C, h, w) -> (B, E): one attention layer in which the mean attends to all places and to itself."""

    def __init__(self, places: int, width: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(places + 1, width) * width**-0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, outputs)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        batch, width = x.shape[:2]
        x = x.flatten(2).transpose(1, 2)  # (B, h*w, C)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)

        def split(tokens: Tensor) -> Tensor:
            return tokens.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)  # (B, H, L, C/H)

        mixed = F.scaled_dot_product_attention(
            split(self.q_proj(x[:, :1])), split(self.k_proj(x)), split(self.v_proj(x))
        )
        return self.c_proj(mixed.reshape(batch, width))


class ModifiedResNet(nn.Module):
    """Images (B, 3, S, S) -> (B, E)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert isinstance(config.vision_layers, tuple)
        width, self.checkpointing = config.vision_width, False
        self.image_size = config.image_size
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        inputs = width
        for number, blocks in enumerate(config.vision_layers):
            planes = width * 2**number
            layer = [Bottleneck(inputs, planes, 1 if number == 0 else 2)]
            inputs = planes * Bottleneck.expansion
            layer += [Bottleneck(inputs, planes) for _ in range(1, blocks)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*layer))
        self.attnpool = AttentionPool((config.image_size // 32) ** 2, inputs, config.vision_heads, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = self.avgpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            assert isinstance(layer, nn.Sequential)
            for block in layer:
                if self.checkpointing and self.training and torch.is_grad_enabled():
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
        return self.attnpool(x)

    @staticmethod
    def count_flops(config: ModelConfig) -> float:
        """Floating-point operations of a forward pass over one image: convolutions and the attention pool."""
        assert isinstance(config.vision_layers, tuple)
        width, side = config.vision_width, config.image_size // 2
        half = width // 2
        flops = 2.0 * side**2 * 9 * (3 * half + half * half + half * width)
        side, inputs = side // 2, width
        for number, blocks in enumerate(config.vision_layers):
            planes = width * 2**number
            for block in range(blocks):
                stride = 2 if number > 0 and block == 0 else 1
                flops += 2.0 * side**2 * (inputs * planes + 9 * planes * planes)
                side //= stride
                flops += 2.0 * side**2 * planes * 4 * planes
                if block == 0:
                    flops += 2.0 * side**2 * inputs * 4 * planes
                inputs = 4 * planes
        places = side**2 + 1
        pool = 2.0 * inputs * inputs * (2 * places + 1) + 4.0 * places * inputs + 2.0 * inputs * config.embed_dim
        return flops + pool
