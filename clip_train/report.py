"""The numbers of the steps. They are read from the device one step late, so that the device does not wait for them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from clip_train.data import BadSamples, Batch
from clip_train.devices import peak_flops
from clip_train.distributed import world_size
from clip_train.errors import TrainError
from clip_train.log import Progress, StepLog
from clip_train.model import tower_flops
from clip_train.run import Run, StepResult
from clip_train.transfer import Readout

MAX_BAD_STEPS = 3  # consecutive steps whose loss or gradient is not finite


@dataclasses.dataclass
class Timing:
    """When a step began, in seconds of the monotonic clock, and how long it waited for its data."""

    began: float = dataclasses.field(default_factory=time.monotonic)
    waited: float = 0.0

    def data_arrived(self) -> None:
        """Notes that the batch is here."""
        self.waited = time.monotonic() - self.began


class Report:
    """Writes a line a step: to the log, to the progress on stderr, and to the caller's function.

    Args:
        run: whose steps these are.
        bad: the samples that the loader could not use.
        log: None on all ranks but the first.
        on_step: is called with each line.
    """

    def __init__(
        self, run: Run, bad: BadSamples, log: StepLog | None, progress: Progress,
        on_step: Callable[[dict[str, Any]], None] | None,
    ) -> None:  # fmt: skip
        self._run, self._bad, self._log, self._progress, self._on_step = run, bad, log, progress, on_step
        self._peak = peak_flops(run.device)
        self._waiting: tuple[Readout, dict[str, Any]] | None = None
        self.line: dict[str, Any] = {}  # of the last step that was read
        self.bad_steps = 0  # in a row, up to that step

    def add(self, result: StepResult, batches: Sequence[Batch], timing: Timing, *, rate: float) -> None:
        """Takes a step that the device may still compute, and reads the one before it."""
        self.flush()
        run, took = self._run, time.monotonic() - timing.began
        line = {
            "step": run.step, "loss": 0.0, "lr": rate, "logit_scale": 0.0, "samples_seen": run.samples_seen,
            "pairs_per_s": run.plan.batch_size / took, "data_wait": timing.waited / took, "gradient_norm": 0.0,
        }  # fmt: skip
        if self._peak:
            tokens = sum(batch.tokens for batch in batches) / sum(len(batch.samples) for batch in batches)
            text_tokens = tokens if run.plan.options.text == "packed" else None
            towers = tower_flops(run.plan.model, text_tokens=text_tokens)
            locked = (run.plan.options.lock_image, run.plan.options.lock_text)  # without a backward pass
            work = sum(flops * (1 if fixed else 3) for flops, fixed in zip(towers, locked, strict=True))
            line["mfu"] = work * line["pairs_per_s"] / world_size() / self._peak
        if self._bad.reasons:
            line["bad_samples"] = self._bad.reasons.total()
        self._waiting = Readout((result.loss, result.gradient_norm, result.logit_scale, result.loss_scale)), line

    def flush(self) -> None:
        """Reads and writes the step that waits. TrainError after MAX_BAD_STEPS in a row that are not finite."""
        if self._waiting is None:
            return
        (result, line), self._waiting = self._waiting, None
        line["loss"], line["gradient_norm"], line["logit_scale"], loss_scale = result.read()
        finite = math.isfinite(line["loss"]) and math.isfinite(line["gradient_norm"])
        # with fp16 an overflow halves the loss scale; that is not a bad step while the scale stays at least 1
        taken = finite or (math.isfinite(line["loss"]) and loss_scale >= 2)
        if not taken:
            line["skipped"] = True
        self.line = line
        if self._log:
            self._log.write(line)
        self._progress.step(line)
        if self._on_step:
            self._on_step(line)
        self.bad_steps = 0 if taken else self.bad_steps + 1
        if self.bad_steps >= MAX_BAD_STEPS:
            raise TrainError(
                f"step {line['step']}: loss or gradient was not finite in {self.bad_steps} steps in a row; none of "
                "these steps is saved. Resume with --change lr=RATE and a smaller rate, or with --change "
                "precision=bf16 or precision=fp32"
                + (f" (samples that could not be used: {self._bad.to_json()})" if self._bad.reasons else "")
            )
