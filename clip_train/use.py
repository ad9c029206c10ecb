"""A trained model with its tokenizer, ready to embed: what evaluation commands and users' scripts start with.

    from clip_train.use import load_for_use
    model, tokenizer = load_for_use("RUN")
"""

from __future__ import annotations

from pathlib import Path

from clip_train.convert import load_model
from clip_train.distributed import pick_device
from clip_train.errors import UsageError
from clip_train.model import CLIP
from clip_train.tokenizer import VOCABULARY, Tokenizer, load_tokenizer


def load_for_use(
    path: str, *, ema: bool = False, activation: str | None = None, bpe: str | None = None
) -> tuple[CLIP, Tokenizer]:
    """The model in evaluation mode, on the GPU if there is one, and the vocabulary that it was trained with.

    Args:
        path: a run, a checkpoint of it, or weights of another program (see convert.py).
        bpe: the vocabulary; the run's own unless given, else what `find_vocabulary` finds.
    """
    model, weights = load_model(path, ema=ema, activation=activation)
    tokenizer = load_tokenizer(bpe or _vocabulary_of_run(Path(path)))
    if tokenizer.vocab_size != weights.config.vocab_size:
        raise UsageError(
            f"{path} has {weights.config.vocab_size} token ids, the vocabulary {tokenizer.name} has "
            f"{tokenizer.vocab_size}: name the one it was trained with by --bpe"
        )
    if weights.vocabulary and weights.vocabulary != tokenizer.fingerprint:
        raise UsageError(f"{path} was trained with another vocabulary than {tokenizer.name}: name it by --bpe")
    return model.to(pick_device()), tokenizer


def _vocabulary_of_run(path: Path) -> Path | None:
    """RUN/vocabulary.txt.gz, for RUN, RUN/checkpoints, a checkpoint of it, or a file in one."""
    for folder in (path, *path.resolve().parents[:3]):
        if (folder / VOCABULARY).exists():
            return folder / VOCABULARY
    return None
