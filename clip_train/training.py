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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_train import checkpoint, keyed
from clip_train.at_checkpoint import Evaluations, check_evaluations
from clip_train.config import ModelConfig, TrainOptions, resolve
from clip_train.data import Batch, Loader
from clip_train.distill import toward_teacher
from clip_train.distributed import (
    agree,
    pick_device,
    process_group,
    rank,
    refuse_different,
    together,
    who_stopped,
    world_size,
)
from clip_train.image import normalize
from clip_train.index import digest_of
from clip_train.lock import hold, stop_signals
from clip_train.log import Progress, StepLog, open_sinks
from clip_train.loss import info_nce, sigmoid_loss
from clip_train.optim import learning_rate, set_learning_rate
from clip_train.parallel import frozen_statistics
from clip_train.report import Report, Timing
from clip_train.run import Run, StepResult
from clip_train.run_config import write_config
from clip_train.same_on_all import agreed_options, agreed_vocabulary
from clip_train.saver import Saver
from clip_train.sharded import whole
from clip_train.shards import open_index
from clip_train.start import find_teacher, loader_options, open_stream, start_run
from clip_train.transfer import to_device, upload

_PATCHES = 5  # purpose of a keyed draw; data.py has 1 to 4


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
    device = pick_device()
    with process_group(device, timeout_minutes=options.timeout_minutes), contextlib.ExitStack() as stack:
        options, history = agreed_options(options)
        index = together(lambda: open_index(options.data, cache=options.cache, cache_gb=options.cache_gb))
        refuse_different({"the set of --data": digest_of(index)})
        folder = Path(options.output)
        tokenizer = agreed_vocabulary(options)
        plan = resolve(
            options, samples=len(index), world_size=world_size(), vocab_size=tokenizer.vocab_size,
            has_gpu=device.type == "cuda", vocabulary=tokenizer.fingerprint, history=history,
        )  # fmt: skip
        stream = open_stream(index, plan.options)
        stream.epoch_of(0)  # an epoch without pairs is refused here
        together(lambda: check_evaluations(options, first=rank() == 0))
        together(lambda: stack.enter_context(hold(folder)) if rank() == 0 else None)
        teacher = together(lambda: find_teacher(index, plan.options))
        refuse_different({"the table of --distill": teacher.digest if teacher else None})
        run = start_run(plan, device, data=digest_of(index), teacher=teacher)
        progress = Progress(steps=plan.steps, first_step=run.step, show=rank() == 0)
        for note in plan.notes if run.step == 0 else ():
            progress.say(note)
        for path in index.damaged:
            progress.say(f"{path} is truncated or damaged: only its complete samples are used")
        together(lambda: write_config(folder, run.plan, tokenizer, step=run.step) if rank() == 0 else None)
        if run.step >= plan.steps:
            progress.say(f"nothing left to do: the run has all of its {plan.steps} steps; --change steps=N goes on")
        log = open_log(folder, run, stack) if rank() == 0 else None
        loader = stack.enter_context(Loader(stream, tokenizer, loader_options(plan, device), teacher))
        evaluations = stack.enter_context(Evaluations(run, tokenizer, progress))
        stop = stack.enter_context(stop_signals())  # which still holds while the saver waits
        saver = stack.enter_context(Saver(run, tokenizer, progress, then=evaluations.start_suite))
        report = Report(run, loader.bad, log, progress, on_step)

        newest, saved_at = None, time.monotonic()
        steps = loader.steps(run.samples_seen)
        while run.step < plan.steps:
            # --- one step ---
            timing = Timing()
            batches = next(steps)
            timing.data_arrived()
            rate = learning_rate(run.step, recipe=plan.recipe, steps=plan.steps)
            set_learning_rate(run.optimizer, rate)
            result = training_step(run, batches)
            report.add(result, batches, timing, rate=rate)

            # --- once in a while: save, or stop ---
            saver.check()
            interrupted = agree(stop.is_set())
            end = who_stopped(stop.number, step=run.step) if interrupted else None
            if run.step == plan.steps or interrupted or save_is_due(run, saved_at):
                report.flush()  # raises where the steps are not finite: nothing of them is saved
                if run.step == plan.steps or interrupted or not report.bad_steps:
                    newest, saved_at = saver.save(), time.monotonic()
                    if not interrupted:
                        evaluations.zero_shot()
            if end is not None and run.step < plan.steps:
                raise end
        return {
            "steps": run.step,
            "samples_seen": run.samples_seen,
            "loss": report.line.get("loss"),
            "pairs_per_s": report.line.get("pairs_per_s"),
            "bad_samples": loader.bad.to_json(),
            "checkpoint": str(newest or next(iter(checkpoint.all_steps(folder / "checkpoints")), "")),
        }


def open_log(folder: Path, run: Run, stack: contextlib.ExitStack) -> StepLog:
    """The log of the run, which the stack closes."""
    sinks = open_sinks(run.plan.options.log_to, folder, dataclasses.asdict(run.plan.options))
    log = StepLog(folder, first_step=run.step, sinks=sinks)
    stack.callback(log.close)
    return log


def save_is_due(run: Run, saved_at: float) -> bool:
    """Is it time for a checkpoint, by steps or by minutes? The first rank's clock counts for all."""
    options = run.plan.options
    by_step = options.save_every > 0 and run.step % options.save_every == 0
    by_time = options.save_minutes > 0 and time.monotonic() - saved_at > 60 * options.save_minutes
    return by_step or agree(by_time)


# --- a step ---------------------------------------------------------------------------------------------------------


def training_step(run: Run, batches: list[Batch]) -> StepResult:
    """Forward pass, backward pass and update. An update that is not finite is skipped, without a look at the device."""
    run.optimizer.zero_grad(set_to_none=True)
    loss_scale = run.scaler.scale(torch.ones((), device=run.device))
    loss = forward_backward(run, batches)
    run.towers.finish_gradients()
    run.scaler.unscale_(run.optimizer)
    norm = clip_gradients(run)
    update(run, finite=loss.isfinite() & norm.isfinite())
    run.step += 1
    run.samples_seen += run.plan.batch_size
    return StepResult(loss, norm, run.model.logit_scale.detach().exp(), loss_scale)


def clip_gradients(run: Run) -> Tensor:
    """Scales the gradients down to --clip-norm, if it is given. Returns their norm before that, a scalar."""
    parameters = [value for value in run.model.parameters() if value.grad is not None]
    norm = torch.nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])
    if run.plan.options.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, run.plan.options.clip_norm, norm)
    return whole(norm)


def update(run: Run, *, finite: Tensor) -> None:
    """A step of the optimizer. The fused kernel leaves out one whose gradient is not finite."""
    if run.scaler.is_enabled():  # it has looked for infinities itself, and halves its scale after one
        run.scaler.step(run.optimizer)
        run.scaler.update()
    else:
        run.optimizer.found_inf = 1 - finite.float()  # type: ignore[attr-defined]
        run.optimizer.step()
        del run.optimizer.found_inf  # type: ignore[attr-defined]
    run.model.clamp_logit_scale()
    if run.average:
        run.average.update(run.model, step=run.step)


def forward_backward(run: Run, batches: list[Batch]) -> Tensor:
    """Adds the gradient of the whole batch to the parameters, before the average over ranks. Returns the loss."""
    if len(batches) == 1:
        images, texts = encode(run, batches[0])
        return backward(run, pair_loss(run, images, texts, batches))

    with torch.no_grad(), frozen_statistics(run.model):
        parts = [encode(run, batch) for batch in batches]
    images = torch.cat([image for image, _ in parts]).requires_grad_()
    texts = torch.cat([text for _, text in parts]).requires_grad_()
    loss = backward(run, pair_loss(run, images, texts, batches))
    assert images.grad is not None and texts.grad is not None
    sizes = [len(image) for image, _ in parts]
    gradients = zip(batches, images.grad.split(sizes), texts.grad.split(sizes), strict=True)
    for number, (batch, d_images, d_texts) in enumerate(gradients):
        last = number == len(batches) - 1
        with contextlib.nullcontext() if last else run.towers.without_exchange():
            outputs = zip(encode(run, batch), (d_images, d_texts), strict=True)
            torch.autograd.backward(*zip(*(pair for pair in outputs if pair[0].requires_grad), strict=True))
    return loss


def encode(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """Unit vectors of the images and of the texts of the usable pairs in a micro-batch, (b', E) each."""
    batch = to_device(batch, run.device)
    model, options = run.plan.model, run.plan.options
    pixels = normalize(batch.images, mean=model.mean, std=model.std, kind=precision(run), compiled=run.compiled)
    kept = kept_patches(batch, model, rate=options.patch_dropout, seed=options.seed)
    with autocast(run):
        images, texts = run.towers(pixels, batch.text, None if kept is None else upload(kept, run.device))
    return (images, texts) if batch.good is None else (images[batch.good], texts[batch.good])


def pair_loss(run: Run, images: Tensor, texts: Tensor, batches: list[Batch]) -> Tensor:
    """The loss over the pairs of all ranks."""
    scale, chunk = run.model.logit_scale.exp(), run.plan.options.loss_chunk
    if run.model.logit_bias is not None:
        return sigmoid_loss(images, texts, scale, run.model.logit_bias, chunk=chunk)
    loss = info_nce(images, texts, scale, chunk=chunk)
    if run.teacher is None:
        return loss
    teacher = upload(torch.cat([batch.teacher_rows() for batch in batches]), run.device)
    share = run.plan.options.distill_weight
    return loss + share * toward_teacher(images, texts, scale, teacher, run.teacher.scale, chunk=chunk)


def backward(run: Run, loss: Tensor) -> Tensor:
    """Backward pass. The loss is multiplied by the number of ranks, because DDP and FSDP average over them."""
    run.scaler.scale(loss * world_size()).backward()
    return loss.detach()


def autocast(run: Run) -> torch.autocast:
    """The mixed precision of the options. The loss is always fp32."""
    kind = precision(run)
    return torch.autocast(run.device.type, dtype=kind, enabled=kind != torch.float32)


def precision(run: Run) -> torch.dtype:
    """The type of the products in the towers."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[run.plan.options.precision]


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
