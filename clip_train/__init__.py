"""clip_train: train CLIP from image-text shards as the paper did (Radford et al. 2021, arXiv 2103.00020).

On the command line:

    python -m clip_train train --data DIR --model ViT-B-32 --output RUN

In Python:

    from clip_train import TrainOptions, load, train

    train(TrainOptions(data="DIR", model="ViT-B-32", output="RUN"))
    model, tokenizer, preprocess = load("RUN")

The way of a run, one file a role:

    commandline.py  commands.py           the parser; the options and the work of each command
    fields.py  places.py  recipe.py       how options are declared and checked; paths; recipe files
    config.py                             models, recipes of the paper, options of a run
    shards.py  published.py  tar_scan.py  index.py  index_file.py    where the samples are, in a mapped file
    order.py  keyed.py  concepts.py       the order of the samples, which is one integer and a seed; chosen batches
    data.py  reader.py  decoder.py        shards -> batches of uint8 crops and packed token ids
    decode_processes.py                   the same decoding in processes of their own
    image.py  tokenizer.py  ragged.py     bytes -> pixels; texts -> ids
    model.py  resnet.py  text.py          the two towers, with the names and the numerics of OpenAI's code
    loss.py  loss_triton.py  cosines.py   symmetric InfoNCE in chunks, exact over ranks and accumulation
    distill.py                            the loss that a teacher's embeddings give, and their mapped file
    optim.py  distributed.py  checkpoint.py
    training.py                           the loop and its step
    run.py  start.py  report.py           the state of a run, its beginning, the numbers of its steps
    run_config.py  lock.py  resume.py     the folder of a run: options, one run at a time, checkpoints of its state
    same_run.py                           what a resumed run keeps of its options, and --change
    at_checkpoint.py                      evaluation at checkpoints
    evaluate.py  probe.py  overlap.py     zero-shot, retrieval, linear probe, data overlap
    weights.py  architecture.py           weights of OpenAI, open_clip and Hugging Face, and what decides their model
    torchscript.py  huggingface.py  export.py
    use.py                                a trained model for scripts

Nothing heavy is imported here: a public name loads its module, and torch with it, when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_train.config import TrainOptions
    from clip_train.evaluate import embed, retrieval, score, zero_shot
    from clip_train.training import train
    from clip_train.use import load

__version__ = "0.2.0"  # that of `pipeline`: one package holds both

_PUBLIC = {
    "TrainOptions": "config",
    "train": "training",
    "load": "use",
    "zero_shot": "evaluate",
    "retrieval": "evaluate",
    "embed": "evaluate",
    "score": "evaluate",
}

__all__ = ["TrainOptions", "embed", "load", "retrieval", "score", "train", "zero_shot"]


def __getattr__(name: str) -> Any:
    """Loads a public name (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
