"""The first state of a run: the model, its optimizer and its loader, from the plan or from a checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import torch

from clip_train import checkpoint, decode_processes
from clip_train.concepts import ConceptStream, open_concepts
from clip_train.config import Plan, TrainOptions
from clip_train.data import LoaderOptions
from clip_train.devices import cpu_count
from clip_train.distill import Teacher, open_teacher
from clip_train.distributed import rank, refuse_different, together, world_size
from clip_train.errors import UsageError
from clip_train.index import Index
from clip_train.model import CLIP, has_varlen
from clip_train.optim import MovingAverage, make_optimizer
from clip_train.order import Stream
from clip_train.parallel import Towers
from clip_train.resnet import ModifiedResNet
from clip_train.resume import find_checkpoint, restore_run, same_model
from clip_train.run import Run
from clip_train.tokenizer import VOCABULARY
from clip_train.weights import fit_to, read_weights


def start_run(plan: Plan, device: torch.device, *, data: str = "", teacher: Teacher | None = None) -> Run:
    """A run at its first step, or at the step of its newest valid checkpoint.

    Args:
        data: the digest of the set, which a checkpoint must have been trained on.
        teacher: of --distill.
    """
    options = plan.options
    if options.precision == "auto":
        precise = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        plan = dataclasses.replace(plan, options=dataclasses.replace(options, precision=precise))
        options = plan.options
    if options.precision == "fp16" and device.type != "cuda":
        raise UsageError("--precision fp16 needs a GPU; bf16 works on a CPU too")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(options.seed)
    model = CLIP(plan.model)
    resumed = find_checkpoint(plan)
    if options.init and resumed is None:
        together(lambda: load_initial(model, plan))
        refuse_different({"the weights of --init": digest_of_weights(model) if world_size() > 1 else ""})
    model.to(device)
    if plan.model.is_resnet:
        model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    model.lock(image=options.lock_image, text=options.lock_text)
    model.set_activation_checkpointing(options.activation_checkpointing)
    towers = Towers(
        model, parallel=options.parallel, accumulate=options.accumulate, device=device, precision=options.precision
    )
    compiled = options.compile if options.compile is not None else device.type == "cuda"
    if compiled:
        kind = torch.float32 if options.precision == "fp32" else torch.float16
        compile_towers(model, text=options.text == "padded" or has_varlen(device, kind))  # after the sharding
    run = Run(
        plan=plan,
        device=device,
        model=model,
        towers=towers,
        optimizer=make_optimizer(model, plan.recipe, name=options.optimizer),
        scaler=torch.amp.GradScaler(device.type, enabled=options.precision == "fp16"),
        average=MovingAverage(model, decay=options.ema) if options.ema else None,
        compiled=compiled,
        data=data,
        teacher=teacher,
    )
    if resumed is not None:
        restore_run(run, resumed)
    return run


def digest_of_weights(model: CLIP) -> str:
    """A name for the weights of a model that is on the CPU."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def compile_towers(model: CLIP, *, text: bool) -> None:
    """Compiles the blocks one by one, so that DDP sends the gradients of one while the next is computed.

    A ResNet is compiled as a whole. Blocks of the text tower take any number of tokens: packed batches differ.

    Args:
        text: compile the text tower too. Without a kernel for captions of any length it would be compiled anew for
            each batch.
    """
    if isinstance(model.visual, ModifiedResNet):
        model.visual.compile()
    else:
        for block in model.visual.transformer.resblocks:  # type: ignore[union-attr]
            block.compile()
    for block in model.transformer.resblocks if text else ():
        block.compile(dynamic=True)


def load_initial(model: CLIP, plan: Plan) -> None:
    """Copies initial weights into the model. The position embedding is resized if the resolution differs."""
    path = plan.options.init or ""
    named = plan.options.model if os.path.isfile(path) else None  # a file may not name its architecture
    weights = read_weights(path, model=named, activation=plan.options.activation)
    same_model(weights.config, model.config, path, but="image_size")
    if weights.vocabulary and plan.vocabulary and weights.vocabulary != plan.vocabulary:
        raise UsageError(f"{path} was trained with another vocabulary: name its RUN/{VOCABULARY} by --bpe")
    checkpoint.restore_model(model, fit_to(weights.tensors, model), origin=path)


def open_stream(index: Index, options: TrainOptions) -> Stream:
    """The order of the samples. UsageError where the set has not what it needs."""
    if not options.batch_concepts:
        return Stream(index, seed=options.seed, window=options.window, online_balance=options.online_balance)
    return ConceptStream(
        index, concepts=open_concepts(index), mode=options.batch_concepts, ratio=options.super_batch,
        seed=options.seed, window=options.window, online_balance=options.online_balance,
    )  # fmt: skip


def find_teacher(index: Index, options: TrainOptions) -> Teacher | None:
    """The teacher of --distill, if there is one. UsageError where its table does not fit the set."""
    if not options.distill:
        return None
    return open_teacher(options.distill, index, cache=options.cache, max_bad=options.max_bad)


def loader_options(plan: Plan, device: torch.device) -> LoaderOptions:
    """The options of the loader, from the plan."""
    options = plan.options
    threads = options.threads or max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    processes = options.decode_in == "processes"
    if options.decode_in == "auto":
        processes = device.type == "cuda" and threads > 2 and decode_processes.available()
    return LoaderOptions(
        image_size=plan.model.image_size,
        context_length=plan.model.context_length,
        batch_size=plan.batch_size,
        rank=rank(),
        world_size=world_size(),
        accumulate=options.accumulate,
        seed=options.seed,
        threads=threads,
        processes=processes,
        prefetch=options.prefetch,
        min_scale=options.crop_scale,
        packed=options.text == "packed",
        verify=options.verify,
        max_bad=options.max_bad,
        pin=device.type == "cuda",
    )
