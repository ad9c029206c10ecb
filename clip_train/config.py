"""Models and recipes (tables 18 to 20 of the paper) as presets, and the options of a training run.

This file does not import torch: the command line needs it for `--help`.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from clip_train import places
from clip_train.errors import UsageError
from clip_train.fields import check_files, check_values, nearest, option
from clip_train.remote import DEFAULT_CACHE_GB, DEFAULT_WINDOW, is_url
from clip_train.suite import check_suite, shipped

# of OpenAI's preprocessing, RGB
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
BATCH_CONCEPTS = ("diverse", "dense", "balanced")  # of concepts.py
MEASURES = ("tokenizer", "loader", "loss", "model", "step")  # of bench.py


DECODE_IN = ("auto", "threads", "processes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a CLIP model (paper, tables 19 and 20). Four `vision_layers` in a tuple: ModifiedResNet."""

    embed_dim: int
    image_size: int
    vision_layers: int | tuple[int, int, int, int]
    vision_width: int
    patch_size: int | None = None  # None: ResNet
    context_length: int = 77
    vocab_size: int = 49408
    text_width: int = 512
    text_heads: int = 8
    text_layers: int = 12
    vision_head_width: int = 64  # channels a head; of the attention pool too
    vision_mlp_width: int = 0  # hidden channels of a block; 0: four times its width
    text_mlp_width: int = 0
    activation: str = "quick_gelu"  # one of ACTIVATIONS
    layer_norm_eps: float = 1e-5
    mean: tuple[float, float, float] = MEAN  # of the pixels, which are in [0, 1]
    std: tuple[float, float, float] = STD
    interpolation: str = "bicubic"  # of the evaluation transform; or "bilinear"
    logit_bias: bool = False  # for the sigmoid loss: starts at scale 10, bias -10 (arXiv 2303.15343)

    @property
    def is_resnet(self) -> bool:
        """True for the ModifiedResNet family."""
        return isinstance(self.vision_layers, tuple)

    @property
    def vision_heads(self) -> int:
        """Heads of a block. The attention pool of a ResNet has 32 times its width."""
        return max(1, self.vision_width * (32 if self.is_resnet else 1) // self.vision_head_width)

    @classmethod
    def from_json(cls, data: dict) -> ModelConfig:
        """The inverse of `dataclasses.asdict` after a trip through JSON (lists become tuples again)."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimiser settings of the paper (table 18; learning rates from tables 19 and 20)."""

    lr: float = 5e-4
    batch_size: int = 32768
    epochs: float = 32
    warmup: int = 2000  # steps
    weight_decay: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.98  # ViT; ResNets use 0.999
    eps: float = 1e-6  # ViT; ResNets use 1e-8


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model with the recipe that trained it."""

    model: ModelConfig
    recipe: Recipe
    note: str


def _resnet(
    embed: int, size: int, layers: tuple[int, int, int, int], width: int, text: int, lr: float, note: str
) -> Preset:
    model = ModelConfig(
        embed_dim=embed, image_size=size, vision_layers=layers, vision_width=width, text_width=text,
        text_heads=text // 64,
    )  # fmt: skip
    return Preset(model, Recipe(lr=lr, beta2=0.999, eps=1e-8), note)


def _vit(
    embed: int, size: int, patch: int, layers: int, width: int, text: int, lr: float, note: str, epochs: float = 32
) -> Preset:
    model = ModelConfig(
        embed_dim=embed, image_size=size, vision_layers=layers, vision_width=width, patch_size=patch,
        text_width=text, text_heads=text // 64,
    )  # fmt: skip
    return Preset(model, Recipe(lr=lr, epochs=epochs), note)


def _large(
    embed: int, layers: int, width: int, head: int, mlp: int, text: tuple[int, int, int], note: str
) -> Preset:  # fmt: skip
    model = ModelConfig(
        embed_dim=embed, image_size=224, vision_layers=layers, vision_width=width, patch_size=14,
        vision_head_width=head, vision_mlp_width=0 if mlp == 4 * width else mlp,
        text_width=text[0], text_heads=text[1], text_layers=text[2], activation="gelu",
    )  # fmt: skip
    return Preset(model, Recipe(lr=4e-4), note)


def _wide(size: int, patch: int, layers: int, width: int, lr: float, note: str) -> Preset:
    model = ModelConfig(
        embed_dim=width, image_size=size, vision_layers=layers, vision_width=width, patch_size=patch,
        context_length=64, text_width=width, text_heads=width // 64, text_layers=layers, activation="gelu_tanh",
        layer_norm_eps=1e-6, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    )  # fmt: skip
    return Preset(model, Recipe(lr=lr), note)


def _small(model: ModelConfig, note: str, *, batch_size: int = 128, lr: float = 1e-3, beta2: float = 0.98) -> Preset:
    return Preset(model, Recipe(lr=lr, batch_size=batch_size, epochs=10, warmup=100, beta2=beta2), note)


PRESETS: dict[str, Preset] = {
    # paper, table 19
    "RN50": _resnet(1024, 224, (3, 4, 6, 3), 64, 512, 5e-4, "ResNet-50, 102 M parameters"),
    "RN101": _resnet(512, 224, (3, 4, 23, 3), 64, 512, 5e-4, "ResNet-101, 120 M"),
    "RN50x4": _resnet(640, 288, (4, 6, 10, 6), 80, 640, 5e-4, "4x the compute of RN50, 288 px, 178 M"),
    "RN50x16": _resnet(768, 384, (6, 8, 18, 8), 96, 768, 4e-4, "16x, 384 px, 291 M"),
    "RN50x64": _resnet(1024, 448, (3, 15, 36, 10), 128, 1024, 3.6e-4, "64x, 448 px, 623 M"),
    # paper, table 20
    "ViT-B-32": _vit(512, 224, 32, 12, 768, 512, 5e-4, "151 M"),
    "ViT-B-16": _vit(512, 224, 16, 12, 768, 512, 5e-4, "150 M"),
    "ViT-L-14": _vit(768, 224, 14, 24, 1024, 768, 4e-4, "428 M"),
    "ViT-L-14-336": _vit(
        768, 336, 14, 24, 1024, 768, 2e-5, "one more epoch of ViT-L-14 at 336 px: start with --init", epochs=1
    ),
    # LAION's (Cherti et al. 2022, arXiv 2212.07143); the learning rate is that of MetaCLIP's H/14
    "ViT-H-14": _large(1024, 32, 1280, 80, 5120, (1024, 16, 24), "LAION's huge one, 986 M"),
    "ViT-g-14": _large(1024, 40, 1408, 88, 6144, (1024, 16, 24), "1.37 G"),
    "ViT-bigG-14": _large(1280, 48, 1664, 104, 8192, (1280, 20, 32), "2.54 G"),
    # the widths of SigLIP (Zhai et al. 2023, arXiv 2303.15343): a text tower as large as the image tower, 64 tokens.
    # The towers stay CLIP's: a class token and causal text, where SigLIP has an attention pool and text that sees all.
    "ViT-B-16-wide": _wide(224, 16, 12, 768, 5e-4, "widths of SigLIP's B/16, for --loss sigmoid, 204 M"),
    "ViT-L-14-wide": _wide(224, 14, 24, 1024, 4e-4, "widths of SigLIP's L, for --loss sigmoid, 659 M"),
    # not in the paper: for a first try on a CPU, and for tests
    "ViT-Mini": _small(
        ModelConfig(
            embed_dim=128, image_size=64, patch_size=8, vision_layers=6, vision_width=192,
            text_width=128, text_heads=2, text_layers=4,
        ),
        "64 px, 10 M parameters, for a first try on a CPU",
    ),
    "ViT-Tiny": _small(
        ModelConfig(
            embed_dim=64, image_size=32, patch_size=8, vision_layers=3, vision_width=64,
            text_width=64, text_heads=1, text_layers=2,
        ),
        "32 px, for tests",
        lr=2e-3,
    ),
    "RN-Mini": _small(
        ModelConfig(
            embed_dim=64, image_size=64, vision_layers=(1, 1, 1, 1), vision_width=16,
            text_width=64, text_heads=1, text_layers=2,
        ),
        "64 px ResNet, for tests",
        beta2=0.999,
    ),
}  # fmt: skip


def find_preset(name: str) -> str | None:
    """The key of PRESETS; OpenAI's spelling ("ViT-B/32", "ViT-L/14@336px") is understood too. None: not known."""
    plain = name.replace("/", "-").replace("@", "-").removesuffix("px")
    return plain if plain in PRESETS else None


def check_model(said: str, name: str) -> None:
    """UsageError for a model that is not known."""
    if find_preset(name) is None:
        raise UsageError(f"{said} {name!r} is an unknown model{nearest(name, PRESETS)}")


def preset(name: str) -> Preset:
    """The preset of that name. UsageError names the nearest."""
    check_model("--model", name)
    return PRESETS[find_preset(name) or ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Every option of a training run; the field names are the flags. None: the preset's value."""

    # what
    data: str = option("", "folder that the pipeline published, or brace pattern of WebDataset tars; or the URL of one",
                       files=places.shards)  # fmt: skip
    model: str = option("ViT-B-32", "one of: " + ", ".join(PRESETS), metavar="NAME", value=check_model)
    output: str = option("", "folder of the run: log.jsonl, config.json, checkpoints/", files=places.run_folder)
    activation: str | None = option(None, "activation of both towers; by the model unless given",
                                    choices=ACTIVATIONS)  # fmt: skip
    init: str | None = option(None, "initial weights: a checkpoint, or a file of OpenAI, open_clip or Hugging Face",
                              files=places.weights)  # fmt: skip
    resume: bool = option(False, "continue from the newest valid checkpoint in the output folder")
    change: tuple[str, ...] | None = option(None, "with --resume: change options of the run, such as lr=1e-4",
                                            metavar="NAME=VALUE")  # fmt: skip
    seed: int = option(0, "seed of the initial weights, the order of samples, the crops and patch dropout",
                        within="[0, 9223372036854775808)")  # fmt: skip
    # how long
    batch_size: int | None = option(None, "pairs per step, over all ranks and micro-batches; by the model unless given",
                                     within="[1, inf)")  # fmt: skip
    epochs: float | None = option(None, "passes over the data, each in another order; by the model unless given",
                                   within="(0, inf)", replaces="steps")  # fmt: skip
    steps: int | None = option(None, "total number of steps, instead of --epochs", within="[1, inf)", replaces="epochs")
    # optimiser (paper, table 18)
    optimizer: str = option("adamw", "muon: orthogonal updates of the matrices of the blocks, AdamW for the rest",
                            choices=("adamw", "muon"))  # fmt: skip
    lr: float | None = option(None, "peak learning rate; by the model unless given", within="(0, inf)")
    warmup: int | None = option(None, "steps of linear warm-up; by the model, or a tenth of the run, unless given",
                                 within="[0, inf)")  # fmt: skip
    weight_decay: float | None = option(None, "weight decay of all but gains and biases; 0.2 unless given",
                                        within="[0, inf)")  # fmt: skip
    beta1: float | None = option(None, "Adam beta 1; 0.9 unless given", within="[0, 1)")
    beta2: float | None = option(None, "Adam beta 2; 0.98 (ViT) or 0.999 (ResNet) unless given", within="[0, 1)")
    eps: float | None = option(None, "Adam epsilon; 1e-6 (ViT) or 1e-8 (ResNet) unless given", within="(0, inf)")
    clip_norm: float | None = option(None, "largest norm of the gradient; not clipped unless given", within="(0, inf)")
    ema: float = option(0.0, "decay of a moving average of the weights, such as 0.9999; 0: none", within="[0, 1)")
    lock_image: bool = option(False, "train the text tower only (LiT); needs --init with an image tower to keep")
    lock_text: bool = option(False, "train the image tower only; needs --init")
    # loss
    loss: str = option("infonce", "infonce (as in the paper) or sigmoid", choices=("infonce", "sigmoid"))
    distill: str | None = option(None, "table of a teacher's embeddings of --data, written by embed --texts: the "
                                 "towers learn its ranking too", files=places.readable_file)  # fmt: skip
    distill_weight: float = option(0.5, "share of the loss that the teacher has, with --distill", within="(0, 1]")
    loss_chunk: int = option(1024, "rows of the logits in memory at a time, with all columns", within="[1, inf)")
    # memory and speed
    accumulate: int = option(1, "micro-batches per step; the gradient is that of the whole batch", within="[1, inf)")
    precision: str = option("auto", "auto: bf16 on a GPU that has it, else fp32",
                             choices=("auto", "fp32", "bf16", "fp16"))  # fmt: skip
    compile: bool | None = option(None, "torch.compile the blocks of both towers; on a GPU unless given")
    parallel: str = option("ddp", "how ranks share the weights", choices=("ddp", "fsdp"))
    timeout_minutes: float = option(30.0, "how long a rank waits for the others before it gives up",
                                    within="(0, inf)")  # fmt: skip
    activation_checkpointing: bool = option(False, "recompute activations in the backward pass")
    patch_dropout: float = option(0.0, "share of the image patches that a ViT drops in training", within="[0, 1)")
    text: str = option("packed", "packed: compute each caption up to its end, same numbers; padded: all positions",
                        choices=("packed", "padded"))  # fmt: skip
    threads: int = option(0, "decoders; 0: one per core of this rank", within="[0, 1024]")
    decode_in: str = option("auto", "threads of this process, or processes of their own, which a fast GPU needs; auto: "
                            "processes on a GPU with more than two decoders", choices=DECODE_IN)  # fmt: skip
    prefetch: int = option(3, "batches that are decoded ahead", within="[0, 1024]")
    # data
    bpe: str | None = option(None, "BPE vocabulary, OpenAI's file or your own; see docs/training.md for the default",
                             files=places.readable_file)  # fmt: skip
    crop_scale: float = option(0.9, "smallest random square crop, as a share of the area of the largest",
                               within="(0, 1]")  # fmt: skip
    verify: bool = option(False, "check the sha256 of every image")
    max_bad: float = option(0.01, "share of unusable samples above which the run stops", within="[0, 1]")
    online_balance: bool = option(False, "keep each pair with its keep_probability, drawn again in each epoch")
    batch_concepts: str | None = option(None, "choose each batch from a larger one by its queries: many different, "
                                        "many a pair, or each at its own rate",
                                        choices=BATCH_CONCEPTS)  # fmt: skip
    super_batch: int = option(5, "size of that larger batch, in batches", within="[2, 1000]")
    window: int = option(0, "shuffle within windows of this many shards, for slow storage; 0: over all samples, "
                          f"or {DEFAULT_WINDOW} where --data is a URL", within="[0, inf)")  # fmt: skip
    cache: str | None = option(None, "folder for shards from a URL; below the temporary folder unless given",
                               files=places.writable_folder)  # fmt: skip
    cache_gb: float = option(DEFAULT_CACHE_GB, "size of that folder, in 10^9 bytes",
                              within="(0, inf)")  # fmt: skip
    # checkpoints and logs
    save_every: int = option(1000, "steps between checkpoints; 0: by time and at the end only", within="[0, inf)")
    save_minutes: float = option(30.0, "minutes between checkpoints; 0: by steps and at the end only",
                                 within="[0, inf)")  # fmt: skip
    keep: int = option(3, "number of checkpoints to keep, the newest", within="[1, inf)")
    log_to: tuple[str, ...] = option(
        ("tensorboard",), "where the numbers of the steps go, beside log.jsonl: RUN/tensorboard, Weights & Biases",
        choices=("tensorboard", "wandb", "none"),
    )  # fmt: skip
    zero_shot: str | None = option(None, "labelled images, a folder or shards, to classify at every checkpoint",
                                   files=places.labelled_images)  # fmt: skip
    suite: str | None = option(None, "suite of test sets to evaluate at checkpoints, in a process of its own: a YAML "
                               f"file, or one of: {', '.join(shipped())}", metavar="NAME",
                               files=check_suite)  # fmt: skip
    suite_root: str = option(".", "folder below which the sets of the suite lie", files=places.folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The resolved options of a run: no value is left to a preset. RUN/config.json has them."""

    options: TrainOptions
    model: ModelConfig
    recipe: Recipe
    steps: int
    samples: int  # in one epoch
    world_size: int
    vocabulary: str = ""  # the tokenizer's fingerprint
    notes: tuple[str, ...] = ()
    history: tuple[dict[str, Any], ...] = ()  # options that --change has changed: option, from, to, step

    @property
    def batch_size(self) -> int:
        """Pairs a step, over all ranks."""
        return self.recipe.batch_size


def resolve(
    options: TrainOptions, *, samples: int, world_size: int, vocab_size: int, has_gpu: bool, vocabulary: str = "",
    history: tuple[dict[str, Any], ...] = (),
) -> Plan:  # fmt: skip
    """Fills the options from the preset and checks that they fit together.

    Args:
        samples: pairs in the data.
        vocab_size: ids of the tokenizer; the text tower's embedding takes this size.
        history: of the options that --change has changed.
        vocabulary: names the tokenizer's merges; a checkpoint of another vocabulary is refused.
        has_gpu: without a GPU the default batch is 256, because the paper's 32,768 would not fit.
    """
    check_values(options)
    check_together(options, world_size=world_size)
    chosen, notes = preset(options.model), list[str]()
    recipe = _recipe(options)
    if options.batch_size is None:
        limit = (1024 * world_size if has_gpu else 256) * options.accumulate
        size = min(recipe.batch_size, limit, max(1, samples))
        size -= size % (world_size * options.accumulate) if size >= world_size * options.accumulate else 0
        if size != recipe.batch_size:
            notes.append(f"batch size {size}, not the recipe's {recipe.batch_size}: set --batch-size for another")
        recipe = dataclasses.replace(recipe, batch_size=size)
    _check_divides(recipe.batch_size, options.accumulate, world_size)
    if recipe.batch_size > samples:
        raise UsageError(f"--batch-size {recipe.batch_size} is more than the {samples} pairs of the data")
    if options.batch_concepts and recipe.batch_size * options.super_batch > samples:
        raise UsageError(
            f"--super-batch {options.super_batch} batches of {recipe.batch_size} are more than the {samples} pairs of "
            f"the data"
        )
    if is_url(options.data) and not options.window:
        options = dataclasses.replace(options, window=DEFAULT_WINDOW)
        notes.append(f"--data is a URL: shuffling within windows of {DEFAULT_WINDOW} shards (--window)")
    if options.parallel == "fsdp" and world_size == 1:
        notes.append("--parallel fsdp does nothing on one process: there is no other to share the weights with")
    steps = options.steps if options.steps is not None else max(1, int(recipe.epochs * samples) // recipe.batch_size)
    if options.warmup is None and recipe.warmup > steps // 10:
        notes.append(f"warm-up {steps // 10} steps, a tenth of the run, not the recipe's {recipe.warmup}")
        recipe = dataclasses.replace(recipe, warmup=steps // 10)
    model = dataclasses.replace(
        chosen.model, vocab_size=vocab_size, logit_bias=options.loss == "sigmoid",
        activation=options.activation or chosen.model.activation,
    )  # fmt: skip
    return Plan(
        options=_filled(options, recipe, _RECIPE_NAMES), model=model, recipe=recipe, steps=steps, samples=samples,
        world_size=world_size, vocabulary=vocabulary, notes=tuple(notes), history=history,
    )  # fmt: skip


_RECIPE_NAMES = tuple(field.name for field in dataclasses.fields(Recipe))


def _recipe(options: TrainOptions) -> Recipe:
    given = {name: value for name in _RECIPE_NAMES if (value := getattr(options, name)) is not None}
    return dataclasses.replace(preset(options.model).recipe, **given)


def _filled(options: TrainOptions, recipe: Recipe, names: tuple[str, ...]) -> TrainOptions:
    """The options with the recipe's values; --steps keeps --epochs out."""
    values = {name: getattr(recipe, name) for name in names if name != "epochs" or options.steps is None}
    return dataclasses.replace(options, **values)


def fill_from_preset(options: TrainOptions) -> TrainOptions:
    """The options with all values of the preset that do not depend on the data and the machine.

    `batch_size` and `warmup` stay None where they are not given: `resolve` needs the number of pairs for them.
    """
    names = tuple(name for name in _RECIPE_NAMES if name not in ("batch_size", "warmup"))
    return _filled(options, _recipe(options), names)


def check_together(options: TrainOptions, *, world_size: int) -> None:
    """UsageError where options exclude each other. Looks at no file."""
    if options.epochs is not None and options.steps is not None:
        raise UsageError(
            f"--epochs {options.epochs:g} and --steps {options.steps} exclude each other: give one of them"
        )
    if "none" in options.log_to and len(options.log_to) > 1:
        raise UsageError(f"--log-to {' '.join(options.log_to)}: none excludes the others")
    if options.patch_dropout and preset(options.model).model.is_resnet:
        raise UsageError(f"--patch-dropout {options.patch_dropout:g} needs a ViT, --model {options.model} is a ResNet")
    if options.decode_in == "processes" and is_url(options.data):
        raise UsageError("--decode-in processes reads shards on this machine, --data is a URL: must be threads or auto")
    if options.decode_in == "processes" and not hasattr(os, "memfd_create"):
        raise UsageError("--decode-in processes needs Linux: must be threads or auto")
    if options.distill and options.loss != "infonce":
        raise UsageError(f"--distill takes the place of pairs in --loss infonce, not in --loss {options.loss}")
    if options.lock_image and options.lock_text:
        raise UsageError("--lock-image and --lock-text exclude each other: nothing but the temperature would learn")
    if (options.lock_image or options.lock_text) and not options.init and not options.resume:
        flag = "--lock-image" if options.lock_image else "--lock-text"
        raise UsageError(f"{flag} needs --init: a tower with random weights would stay as it is")
    if options.batch_size is not None:
        _check_divides(options.batch_size, options.accumulate, world_size)


def _check_divides(batch_size: int, accumulate: int, world_size: int) -> None:
    parts = world_size * accumulate
    if batch_size % parts:
        raise UsageError(
            f"--batch-size {batch_size} does not divide by {world_size} ranks x --accumulate {accumulate}: "
            f"take a multiple of {parts}"
        )


def check_run(options: TrainOptions, labels: dict[str, str] | None = None, *, first: bool = True) -> None:
    """Refuses what the options and the file system show to be wrong, before a run touches its folder.

    Args:
        labels: how messages name an option that a recipe gave; the flag unless given.
        first: the first host looks at the folder of the run, which may be absent on another one, and at the suite.

    Raises:
        UsageError: a value out of its range, options that exclude each other, a folder that a run may not write.
        InputMissing: a file or folder that is absent.
    """
    check_values(options, labels)
    check_together(options, world_size=1)
    check_files(options, labels, without=() if first else ("output", "suite", "suite_root"))
    if first and not options.resume and places.all_steps(Path(options.output) / "checkpoints"):
        raise UsageError(f"--output {options.output} holds a run: --resume continues it, or name another folder")
