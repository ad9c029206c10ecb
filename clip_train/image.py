"""Bytes to pixels: the training crop, the evaluation transform, and the normalisation on the device.

Pixels stay uint8 until they are on the device that trains. The evaluation transform is OpenAI's, bit for bit (Pillow's
bicubic); the training crop may use any filter and takes the cheaper OpenCV, whose JPEG pixels equal Pillow's.
"""

from __future__ import annotations

import functools
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_train.errors import TrainError

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 1 << 26  # 67 Mpx: a larger image is refused before it is decoded
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's preprocessing, RGB
STD = (0.26862954, 0.26130258, 0.27577711)


class BadImage(Exception):
    """These bytes are no image that we take; the message is the reason, one word."""


@functools.cache
def _cv2() -> Any:
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # read once, when OpenCV is loaded
    try:
        import cv2
    except ImportError as error:
        raise TrainError("the loader needs OpenCV: pip install openwit[train]") from error
    cv2.setNumThreads(0)  # our own threads work on samples; each stays on its core
    return cv2


def decode(data: bytes, *, reduce: int = 1) -> np.ndarray:
    """(H, W, 3) uint8 RGB. `reduce` 2, 4 or 8 decodes a JPEG at that fraction of its size, for less work."""
    cv2 = _cv2()
    flag = {1: cv2.IMREAD_COLOR_RGB, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
            8: cv2.IMREAD_REDUCED_COLOR_8}[reduce]  # fmt: skip
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise BadImage("image_too_large" if "pixels" in str(error).lower() else "image_not_decoded") from None
    if image is None:
        raise BadImage("image_not_decoded")
    return image if reduce == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def random_crop(image: np.ndarray, out: np.ndarray, draws: np.ndarray, *, min_scale: float) -> None:
    """A random square of the image, resized into `out` (S, S, 3): the paper's only augmentation.

    Args:
        draws: three numbers in [0, 1): how large the square is, and where.
        min_scale: smallest area, as a share of the largest square's.
    """
    cv2 = _cv2()
    height, width = image.shape[:2]
    scale = min_scale + (1 - min_scale) * draws[0]
    side = max(1, round(min(height, width) * scale**0.5))
    top, left = int(draws[1] * (height - side + 1)), int(draws[2] * (width - side + 1))
    crop = image[top : top + side, left : left + side]
    size = out.shape[0]
    # a cubic filter looks at 4 x 4 pixels: enough down to half the size, below that every pixel has to count
    cv2.resize(crop, (size, size), dst=out, interpolation=cv2.INTER_CUBIC if side < 2 * size else cv2.INTER_AREA)


def reduction(width: int, height: int, size: int, *, min_scale: float) -> int:
    """How far a JPEG may be shrunk while it is decoded, so that the smallest crop still has `size` pixels."""
    smallest = min(width, height) * min_scale**0.5
    return max((factor for factor in (2, 4, 8) if smallest / factor >= size), default=1)


def evaluation_transform(data: bytes, size: int) -> np.ndarray:
    """(S, S, 3) uint8: shorter side to `size` by Pillow's bicubic filter, then the middle. OpenAI's `preprocess`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadImage("image_too_large")
            width, height = opened.size
            scale = size / min(width, height)
            # the longer side is truncated, as torchvision does
            target = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
            image = opened.resize(target, Image.Resampling.BICUBIC) if scale != 1 else opened.copy()
            left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
            return np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"))
    except BadImage:
        raise
    except Exception as error:  # Pillow raises nearly anything on a broken file
        raise BadImage("image_not_decoded") from error


def normalize(images: torch.Tensor) -> torch.Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) fp32, in the memory order that convolutions like (channels last)."""
    import torch

    batch, height, width, _ = images.shape
    # a row of pixels at a time: an inner dimension of three values is slow on a CPU
    mean = (torch.tensor(MEAN, device=images.device) * 255).repeat(width)
    std = (torch.tensor(STD, device=images.device) * 255).repeat(width)
    rows = images.reshape(batch, height, width * 3).float().sub_(mean).div_(std)
    return rows.view(batch, height, width, 3).permute(0, 3, 1, 2)
