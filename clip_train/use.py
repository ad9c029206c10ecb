"""A trained model with its tokenizer and its image transform: what evaluation and users' scripts start with.

    from clip_train import load

    model, tokenizer, preprocess = load("RUN")
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess("cat.jpg"), preprocess("dog.jpg")]))  # (2, E)
        texts = model.encode_text(tokenizer(["a cat", "a dog"]))  # (2, E)
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from clip_train.config import ModelConfig
from clip_train.distributed import pick_device
from clip_train.errors import InputMissing, TrainError, UsageError
from clip_train.image import BadImage, evaluation_transform, middle_square, normalize
from clip_train.model import CLIP
from clip_train.places import readable_file
from clip_train.places import weights as check_weights
from clip_train.tokenizer import VOCABULARY, Tokenizer, load_tokenizer
from clip_train.weights import Weights, load_model

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """OpenAI's evaluation transform: the shorter side to the size of the model, the middle, normalised."""

    config: ModelConfig
    device: torch.device

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.config.image_size

    def __call__(self, image: str | os.PathLike[str] | bytes | Image.Image) -> torch.Tensor:
        """(3, size, size) fp32 on the model's device.

        Args:
            image: the path of a file, the bytes of one, or an image of Pillow.

        Raises:
            InputMissing: there is no such file.
            TrainError: these are no bytes of an image, or of one that is too large.
        """
        config = self.config
        try:
            if isinstance(image, str | os.PathLike):
                image = Path(image).read_bytes()
            if isinstance(image, bytes):
                pixels = evaluation_transform(image, config.image_size, interpolation=config.interpolation)
            else:
                pixels = middle_square(image, config.image_size, interpolation=config.interpolation)
        except FileNotFoundError as error:
            raise InputMissing(f"no such file: {error.filename}") from None
        except BadImage as error:
            raise TrainError(f"the image cannot be used: {error}") from None
        batch = torch.from_numpy(pixels.copy())[None].to(self.device)
        return normalize(batch, mean=config.mean, std=config.std)[0].contiguous()


class Loaded(NamedTuple):
    """What `load` returns."""

    model: CLIP
    tokenizer: Tokenizer
    preprocess: Preprocess


def load(
    checkpoint: str | os.PathLike[str], *, ema: bool = False, model: str | None = None,
    activation: str | None = None, bpe: str | None = None,
) -> Loaded:  # fmt: skip
    """The model in evaluation mode, on the GPU if there is one, with its vocabulary and its image transform.

    `model.encode_image` takes (B, 3, S, S) of `preprocess`, `model.encode_text` takes (B, L) of `tokenizer`. Both give
    (B, E) features that are not normalised. The ids of `tokenizer` lie on the CPU.

    Args:
        checkpoint: a run, a checkpoint of it, or weights of another program (see weights.py).
        ema: take the moving average of the weights.
        model, activation: what weights were trained as whose file does not name it ("ViT-H-14", "gelu").
        bpe: the vocabulary. That of the run or of the folder unless given, else the one that `find_vocabulary` finds.

    Raises:
        InputMissing: there is no such file or folder, or no weights in it.
        UsageError: the vocabulary is not the one that the weights were trained with, or their architecture is not
            known.
        TrainError: the weights cannot be read, or a digest differs.
    """
    path = os.fspath(checkpoint)
    check_weights("the checkpoint", path)
    if bpe is not None:
        readable_file("the vocabulary", bpe)
    made, weights = load_model(path, ema=ema, model=model, activation=activation)
    device = pick_device()
    return Loaded(made.to(device), tokenizer_of(weights, path, bpe=bpe), Preprocess(weights.config, device))


def tokenizer_of(weights: Weights, path: str, *, bpe: str | None = None) -> Tokenizer:
    """The tokenizer of some weights. UsageError where the vocabulary is not the one they were trained with."""
    if bpe is None and weights.merges is not None:
        tokenizer = Tokenizer(weights.merges, name=path)
    else:
        tokenizer = load_tokenizer(bpe or _vocabulary_of_run(Path(path)))
    if tokenizer.vocab_size != weights.config.vocab_size:
        raise UsageError(
            f"{path} has {weights.config.vocab_size} token ids, the vocabulary {tokenizer.name} has "
            f"{tokenizer.vocab_size}: name the one it was trained with by --bpe"
        )
    if weights.vocabulary and weights.vocabulary != tokenizer.fingerprint:
        raise UsageError(f"{path} was trained with another vocabulary than {tokenizer.name}: name it by --bpe")
    return tokenizer


def _vocabulary_of_run(path: Path) -> Path | None:
    """RUN/vocabulary.txt.gz, for RUN, RUN/checkpoints, a checkpoint of it, or a file in one."""
    for folder in (path, *path.resolve().parents[:3]):
        if (folder / VOCABULARY).exists():
            return folder / VOCABULARY
    return None
