"""The training loop. Read `train` and `forward_backward` against figure 3 of the paper.

    python -m clip_train train --data DIR --model ViT-B-32 --output RUN

A step takes `batch_size` pairs, for any number of ranks and micro-batches. Its gradient is that of one process with
the whole batch. With several micro-batches the towers run twice (Gao et al. 2021, arXiv 2101.06983). The first pass
computes the features of all pairs without gradients. The second pass takes the micro-batches one by one and
propagates the gradient of the loss with respect to the features.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_train import checkpoint, keyed
from clip_train.config import ModelConfig, Plan, TrainOptions, check_run, resolve
from clip_train.convert import fit_to, load_model, read_weights
from clip_train.data import Batch, Loader, LoaderOptions, Stream
from clip_train.distributed import agree, pick_device, process_group, rank, world_size
from clip_train.errors import Interrupted, TrainError, UsageError
from clip_train.image import normalize
from clip_train.labels import open_labelled
from clip_train.log import Progress, StepLog
from clip_train.loss import info_nce, sigmoid_loss
from clip_train.model import CLIP, count_flops
from clip_train.optim import MovingAverage, learning_rate, make_optimizer, set_learning_rate
from clip_train.parallel import Towers, frozen_statistics
from clip_train.shards import open_index
from clip_train.tokenizer import VOCABULARY, Tokenizer, load_tokenizer, write_merges

MAX_BAD_STEPS = 3  # consecutive steps whose loss or gradient is not finite
_PATCHES = 5  # purpose of a keyed draw; data.py has 1 to 4
# peak of dense bf16 matrix products in FLOP/s, by a part of the name of the GPU; from the data sheets
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12}


@dataclasses.dataclass
class Run:
    """The state of a run that changes from step to step."""

    plan: Plan
    device: torch.device
    model: CLIP
    towers: Towers
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    step: int = 0
    samples_seen: int = 0


@dataclasses.dataclass(frozen=True)
class StepResult:
    """The result of a step."""

    loss: float
    gradient_norm: float
    taken: bool  # False: the update was not finite and was skipped


def train(options: TrainOptions, *, on_step: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Trains a model on the pairs of `options.data`, and writes the run into `options.output`.

    Args:
        options: the fields are the flags of `python -m clip_train train`.
        on_step: is called after each step with its line of log.jsonl: step, loss, lr, logit_scale, samples_seen, ...

    Returns:
        steps, samples_seen, loss and pairs_per_s (of the last step), bad_samples (counts by reason), and checkpoint
        (the path of the newest).

    Raises:
        UsageError: options that are out of range or do not fit together; nothing is written.
        InputMissing: a file or folder that is absent; nothing is written.
        BelowThreshold: more samples than `max_bad` could not be used.
        Interrupted: SIGTERM or SIGINT arrived; the state is saved.
        TrainError: anything else that a person can mend.
    """
    check_run(options)
    device = pick_device()
    with process_group(device), contextlib.ExitStack() as stack:
        index = open_index(options.data, cache=options.cache, cache_gb=options.cache_gb)
        folder = Path(options.output)
        tokenizer = load_tokenizer(options.bpe or run_vocabulary(folder, resume=options.resume))
        plan = resolve(
            options, samples=len(index), world_size=world_size(), vocab_size=tokenizer.vocab_size,
            has_gpu=device.type == "cuda", vocabulary=tokenizer.fingerprint,
        )  # fmt: skip
        stream = Stream(index, seed=options.seed, window=plan.options.window, online_balance=options.online_balance)
        stream.epoch_of(0)  # an epoch without pairs is refused here
        if options.zero_shot:
            open_labelled(options.zero_shot)  # a mistake in it must not wait for the first checkpoint
        if rank() == 0:
            stack.enter_context(hold(folder))
        run = start_run(plan, device)
        progress = Progress(steps=plan.steps, first_step=run.step, show=rank() == 0)
        for note in plan.notes if run.step == 0 else ():
            progress.say(note)
        for path in index.damaged:
            progress.say(f"{path} is truncated or damaged: only its complete samples are used")
        if rank() == 0:
            write_config(folder, run.plan, tokenizer)
        log = StepLog(folder, first_step=run.step, tensorboard=options.tensorboard) if rank() == 0 else None
        if log:
            stack.callback(log.close)
        loader = stack.enter_context(Loader(stream, tokenizer, loader_options(plan, device)))
        stop = stack.enter_context(stop_signals())
        flops = PEAK_FLOPS.get(next((name for name in PEAK_FLOPS if name in device_name(device)), ""))

        saved_at, newest, bad_steps, line = time.monotonic(), None, 0, {}
        steps = loader.steps(run.samples_seen)
        while run.step < plan.steps:
            # --- one step ---
            began = time.monotonic()
            batches = next(steps)
            waited = time.monotonic() - began
            rate = learning_rate(run.step, recipe=plan.recipe, steps=plan.steps)
            set_learning_rate(run.optimizer, rate)
            result = training_step(run, batches)
            took = time.monotonic() - began
            line = {
                "step": run.step,
                "loss": result.loss,
                "lr": rate,
                "logit_scale": run.model.logit_scale.exp().item(),
                "samples_seen": run.samples_seen,
                "pairs_per_s": plan.batch_size / took,
                "data_wait": waited / took,
                "gradient_norm": result.gradient_norm,
            }
            if flops:
                tokens = sum(batch.tokens for batch in batches) / sum(len(batch.samples) for batch in batches)
                work = 3 * count_flops(plan.model, text_tokens=tokens if options.text == "packed" else None)
                line["mfu"] = work * line["pairs_per_s"] / world_size() / flops
            if not result.taken:
                line["skipped"] = True
            if loader.bad.reasons:
                line["bad_samples"] = loader.bad.reasons.total()
            if log:
                log.write(line)
            progress.step(line)
            if on_step:
                on_step(line)

            # --- once in a while: save, or stop ---
            bad_steps = 0 if result.taken else bad_steps + 1
            if bad_steps >= MAX_BAD_STEPS:
                raise TrainError(
                    f"step {run.step}: loss or gradient was not finite in {bad_steps} steps in a row; none of these "
                    f"steps is saved. Resume with a smaller --lr, or with --precision bf16 or fp32"
                    + (f" (samples that could not be used: {loader.bad.to_json()})" if loader.bad.reasons else "")
                )
            interrupted = agree(stop.is_set(), device)
            finished = run.step >= plan.steps
            by_time = options.save_minutes > 0 and time.monotonic() - saved_at > 60 * options.save_minutes
            by_step = options.save_every > 0 and run.step % options.save_every == 0
            if finished or interrupted or (bad_steps == 0 and (by_step or agree(by_time, device))):
                newest = save_run(run, folder, tokenizer)
                saved_at = time.monotonic()
                if options.zero_shot and rank() == 0:
                    evaluate_run(run, newest, tokenizer, progress)
            if interrupted and not finished:
                raise Interrupted(f"stopped after step {run.step}; continue with the same command and --resume")
        return {
            "steps": run.step,
            "samples_seen": run.samples_seen,
            "loss": line.get("loss"),
            "pairs_per_s": line.get("pairs_per_s"),
            "bad_samples": loader.bad.to_json(),
            "checkpoint": str(newest or next(iter(checkpoint.all_steps(folder / "checkpoints")), "")),
        }


# --- a step ---------------------------------------------------------------------------------------------------------


def training_step(run: Run, batches: list[Batch]) -> StepResult:
    """Forward pass, backward pass and update. An update that is not finite is skipped."""
    run.optimizer.zero_grad(set_to_none=True)
    loss = forward_backward(run, batches)
    run.towers.finish_gradients()
    run.scaler.unscale_(run.optimizer)
    clip = run.plan.options.clip_norm
    norm = checkpoint.whole(torch.nn.utils.clip_grad_norm_(run.model.parameters(), clip or float("inf"))).item()
    taken = bool(np.isfinite(loss) and np.isfinite(norm))
    if taken:
        run.scaler.step(run.optimizer)
        run.model.clamp_logit_scale()
        if run.average:
            run.average.update(run.model, step=run.step)
    halved = run.scaler.is_enabled() and not taken and bool(np.isfinite(loss))
    if run.scaler.is_enabled():
        run.scaler.update(run.scaler.get_scale() / 2 if not taken else None)
    run.step += 1
    run.samples_seen += run.plan.batch_size
    # with fp16 an overflow halves the loss scale; that is not a bad step while the scale is at least 1
    return StepResult(loss, norm, taken or (halved and run.scaler.get_scale() >= 1))


def forward_backward(run: Run, batches: list[Batch]) -> float:
    """Adds the gradient of the whole batch to the parameters, before the average over ranks. Returns the loss."""
    if len(batches) == 1:
        images, texts = encode(run, batches[0])
        return backward(run, pair_loss(run, images, texts))

    with torch.no_grad(), frozen_statistics(run.model):
        parts = [encode(run, batch) for batch in batches]
    images = torch.cat([image for image, _ in parts]).requires_grad_()
    texts = torch.cat([text for _, text in parts]).requires_grad_()
    loss = backward(run, pair_loss(run, images, texts))
    assert images.grad is not None and texts.grad is not None
    sizes = [len(image) for image, _ in parts]
    gradients = zip(batches, images.grad.split(sizes), texts.grad.split(sizes), strict=True)
    for number, (batch, d_images, d_texts) in enumerate(gradients):
        last = number == len(batches) - 1
        with contextlib.nullcontext() if last else run.towers.without_exchange():
            torch.autograd.backward(encode(run, batch), (d_images, d_texts))
    return loss


def encode(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """Unit vectors of the images and of the texts of the usable pairs in a micro-batch, (b', E) each."""
    on_gpu = run.device.type == "cuda"
    pixels = normalize(batch.images.to(run.device, non_blocking=on_gpu))
    text = batch.text.to(run.device, non_blocking=on_gpu)
    options = run.plan.options
    kept = kept_patches(batch, run.plan.model, rate=options.patch_dropout, seed=options.seed)
    with autocast(run):
        images, texts = run.towers(pixels, text, None if kept is None else kept.to(run.device))
    if batch.good is None:
        return images, texts
    good = batch.good.to(run.device)
    return images[good], texts[good]


def pair_loss(run: Run, images: Tensor, texts: Tensor) -> Tensor:
    """The loss over the pairs of all ranks."""
    scale, chunk = run.model.logit_scale.exp(), run.plan.options.loss_chunk
    if run.model.logit_bias is not None:
        return sigmoid_loss(images, texts, scale, run.model.logit_bias, chunk=chunk)
    return info_nce(images, texts, scale, chunk=chunk)


def backward(run: Run, loss: Tensor) -> float:
    """Backward pass. The loss is multiplied by the number of ranks, because DDP and FSDP average over them."""
    run.scaler.scale(loss * world_size()).backward()
    return loss.item()


def autocast(run: Run) -> torch.autocast:
    """The mixed precision of the options. The loss is always fp32."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[run.plan.options.precision]
    return torch.autocast(run.device.type, dtype=kind, enabled=kind != torch.float32)


def kept_patches(batch: Batch, config: ModelConfig, *, rate: float, seed: int) -> Tensor | None:
    """(b, K) indices of the patches that patch dropout (Li et al. 2022, arXiv 2212.00794) keeps of each image.

    The draws are keyed by epoch and sample, so the second pass over a micro-batch and a resumed run drop the same ones.
    """
    if not rate or config.patch_size is None:
        return None
    patches = (config.image_size // config.patch_size) ** 2
    keys = keyed.combine(seed, _PATCHES, batch.epochs.astype(np.uint64), batch.samples.astype(np.uint64))
    draws = keyed.combine(keys[:, None], np.arange(patches, dtype=np.uint64)[None])
    kept = np.argsort(draws, axis=1)[:, : max(1, round(patches * (1 - rate)))]
    return torch.from_numpy(np.sort(kept, axis=1))


# --- around the loop ------------------------------------------------------------------------------------------------


def start_run(plan: Plan, device: torch.device) -> Run:
    """A run at its first step, or at the step of its newest valid checkpoint."""
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
        load_initial(model, options.init, vocabulary=plan.vocabulary)
    model.to(device)
    if plan.model.is_resnet:
        model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    model.set_activation_checkpointing(options.activation_checkpointing)
    if options.compile:
        compile_towers(model)
    towers = Towers(model, parallel=options.parallel, accumulate=options.accumulate, device=device)
    run = Run(
        plan=plan,
        device=device,
        model=model,
        towers=towers,
        optimizer=make_optimizer(model, plan.recipe),
        scaler=torch.amp.GradScaler(device.type, enabled=options.precision == "fp16"),
        average=MovingAverage(model, decay=options.ema) if options.ema else None,
    )
    if resumed is not None:
        restore_run(run, resumed)
    return run


def compile_towers(model: CLIP) -> None:
    """Compiles the image tower as a whole and the text blocks one by one: packed batches differ in length."""
    model.visual.compile()
    for block in model.transformer.resblocks:
        block.compile(dynamic=True)


def load_initial(model: CLIP, path: str, *, vocabulary: str) -> None:
    """Copies initial weights into the model. The position embedding is resized if the resolution differs."""
    weights = read_weights(path)
    same_model(weights.config, model.config, path, but="image_size")
    if weights.vocabulary and vocabulary and weights.vocabulary != vocabulary:
        raise UsageError(f"{path} was trained with another vocabulary: name its RUN/{VOCABULARY} by --bpe")
    checkpoint.restore_model(model, fit_to(weights.tensors, model), origin=path)


def find_checkpoint(plan: Plan) -> Path | None:
    """The newest valid checkpoint, if the run resumes. UsageError if the folder holds a run and it does not."""
    folder = Path(plan.options.output) / "checkpoints"
    if not plan.options.resume:
        if checkpoint.all_steps(folder):
            raise UsageError(f"{plan.options.output} holds a run: --resume continues it, or name another folder")
        return None
    if rank() == 0:
        checkpoint.clear_scratch(folder)
    progress = Progress(steps=0, first_step=0, show=rank() == 0)
    faults = []
    for path, fault in checkpoint.newest(folder):
        if fault is None:
            progress.say(f"resuming from {path}")
            return path
        faults.append(fault)
        progress.say(f"{fault} [skipped]")
    if faults:
        raise TrainError(f"none of the {len(faults)} checkpoints in {folder} is valid: remove them to start again")
    progress.say(f"no checkpoint in {folder} yet: starting from the beginning")
    return None


def same_model(found: ModelConfig, wanted: ModelConfig, origin: str, *, but: str = "") -> None:
    """UsageError if the models differ in another field than `but`."""
    if found.vocab_size != wanted.vocab_size:
        raise UsageError(
            f"{origin} has {found.vocab_size} token ids, the vocabulary has {wanted.vocab_size}: "
            f"name the one it was trained with by --bpe"
        )
    a, b = (dataclasses.asdict(config) for config in (found, wanted))
    differing = [f"{name} {a[name]}, not {b[name]}" for name in a if a[name] != b[name] and name != but]
    if differing:
        raise UsageError(f"{origin} belongs to another model: {'; '.join(differing)}. Name its model by --model")


def restore_run(run: Run, path: Path) -> None:
    """Restores weights, optimizer state, average, loss scale and the place in the data."""
    state = checkpoint.load(path)
    info, plan = state.info, run.plan
    same_model(ModelConfig.from_json(info["model"]), plan.model, str(path))
    if plan.vocabulary and info["vocabulary"] != plan.vocabulary:
        raise UsageError(f"{path} was trained with another vocabulary: leave out --bpe to take that of the run")
    order = {"window": plan.options.window, "online_balance": plan.options.online_balance}
    if info.get("order", order) != order:
        raise UsageError(f"{path} was trained with {info['order']}, not {order}: the order of samples would differ")
    if info["samples"] != plan.samples or info["seed"] != plan.options.seed:
        raise UsageError(
            f"{path} was trained with {info['samples']} samples and seed {info['seed']}, this run has {plan.samples} "
            f"samples and seed {plan.options.seed}: the order would differ. Start a new run with --init {path}"
        )
    checkpoint.restore_model(run.model, state.model, origin=str(path))
    checkpoint.restore_optimizer(run.model, run.optimizer, state.optimizer)
    if run.average and state.ema:
        run.average.weights = {name: value.to(run.device) for name, value in state.ema.items()}
    run.scaler.load_state_dict(info["progress"]["scaler"])
    run.step, run.samples_seen = info["progress"]["step"], info["progress"]["samples_seen"]


def save_run(run: Run, folder: Path, tokenizer: Tokenizer) -> Path:
    """Saves a checkpoint. The first rank writes it."""
    model = checkpoint.model_tensors(run.model)
    optimizer = checkpoint.optimizer_tensors(run.model, run.optimizer)
    average = {name: checkpoint.whole(value) for name, value in run.average.weights.items()} if run.average else None
    path = folder / "checkpoints" / f"step-{run.step:08d}"
    if rank() == 0:
        checkpoint.save(
            folder / "checkpoints",
            step=run.step,
            model=model,
            optimizer=optimizer,
            ema=average,
            keep=run.plan.options.keep,
            info={
                "model": dataclasses.asdict(run.plan.model),
                "name": run.plan.options.model,
                "vocabulary": tokenizer.fingerprint,
                "samples": run.plan.samples,
                "seed": run.plan.options.seed,
                "order": {
                    "window": run.plan.options.window, "online_balance": run.plan.options.online_balance,
                },
                "progress": {
                    "step": run.step, "samples_seen": run.samples_seen, "scaler": run.scaler.state_dict(),
                },
            },
        )  # fmt: skip
    return path


def evaluate_run(run: Run, saved: Path, tokenizer: Tokenizer, progress: Progress) -> None:
    """Appends the zero-shot accuracy at a checkpoint to RUN/zero_shot.jsonl. A failure here does not stop the run."""
    from clip_train.evaluate import zero_shot

    assert run.plan.options.zero_shot is not None
    model = run.model
    if run.towers.parallel == "fsdp":  # the weights are sharded over the ranks, and only this rank evaluates
        model = load_model(saved)[0].to(run.device)
    model.eval()
    try:
        result = zero_shot(model, tokenizer, run.plan.options.zero_shot)
        with open(Path(run.plan.options.output) / "zero_shot.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": run.step, **result}) + "\n")
    except (TrainError, OSError) as error:
        progress.say(f"step {run.step}: no zero-shot accuracy: {error}")
        return
    finally:
        run.model.train()
    progress.say(f"step {run.step}: zero-shot top-1 {result['top1']:.4f} on {result['images']} images")


def run_vocabulary(folder: Path, *, resume: bool) -> Path | None:
    """The vocabulary of the run, if the run resumes."""
    return folder / VOCABULARY if resume and (folder / VOCABULARY).exists() else None


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Makes the run's folder and locks it, so that no other process trains into it.

    A run that is refused before it writes anything leaves no folder behind.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")
    except OSError as error:
        raise UsageError(f"--output {folder} cannot be written: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process trains into {folder}: end it first, or name another --output") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            if made and os.listdir(folder) == [".lock"]:
                os.unlink(folder / ".lock")
                folder.rmdir()


def write_config(folder: Path, plan: Plan, tokenizer: Tokenizer) -> None:
    """Writes RUN/config.json, the resolved options, and RUN/vocabulary.txt.gz, so that the folder is self-contained."""
    folder.mkdir(parents=True, exist_ok=True)
    # `--config RUN/config.json` takes these options and repeats the run from its start
    options = dataclasses.replace(plan.options, resume=False, bpe=plan.options.bpe or tokenizer.name)
    resolved = {
        **dataclasses.asdict(dataclasses.replace(plan, options=options)),
        "vocabulary": {"file": tokenizer.name, "fingerprint": tokenizer.fingerprint}, "torch": torch.__version__,
    }  # fmt: skip
    partial = folder / f"config.json.{os.getpid()}.partial"
    try:
        partial.write_text(json.dumps(resolved, indent=1) + "\n")
        os.replace(partial, folder / "config.json")
        write_merges(folder / VOCABULARY, tokenizer.merges)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise TrainError(f"cannot write into {folder}: {error}; free some space, or name another --output") from error


def loader_options(plan: Plan, device: torch.device) -> LoaderOptions:
    """The options of the loader, from the plan."""
    options = plan.options
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return LoaderOptions(
        image_size=plan.model.image_size,
        context_length=plan.model.context_length,
        batch_size=plan.batch_size,
        rank=rank(),
        world_size=world_size(),
        accumulate=options.accumulate,
        seed=options.seed,
        threads=options.threads or max(1, len(os.sched_getaffinity(0)) // local),
        prefetch=options.prefetch,
        min_scale=options.crop_scale,
        packed=options.text == "packed",
        verify=options.verify,
        max_bad=options.max_bad,
        pin=device.type == "cuda",
    )


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that the loop saves and ends. A second SIGINT ends at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, _: object) -> None:
        if event.is_set() and number == signal.SIGINT and "LOCAL_RANK" not in os.environ:
            raise KeyboardInterrupt  # with a launcher, Ctrl-C arrives twice: from the terminal and from the launcher
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def device_name(device: torch.device) -> str:
    """The name of the GPU, or "" for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""
