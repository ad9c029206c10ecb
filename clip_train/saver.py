"""Checkpoints are written by a thread, while the training goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_train import checkpoint
from clip_train.distributed import rank
from clip_train.errors import Interrupted, TrainError
from clip_train.log import Progress
from clip_train.resume import order_of
from clip_train.run import Run
from clip_train.same_run import recipe_of
from clip_train.sharded import whole
from clip_train.tokenizer import Tokenizer


class Saver(contextlib.AbstractContextManager["Saver"]):
    """Saves the state of a run. The first rank copies it into memory of its own, and a thread writes the copy.

    A save waits until the one before it is written, so there is one copy. On a GPU the copy is pinned memory: the
    device fills it between two steps, and no rank waits for that. The end of the context waits for the last save.

    Args:
        run, tokenizer: what is saved.
        progress: gets a message if a save fails while another error ends the run.
        then: is called with each checkpoint that is written, by the thread.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, progress: Progress, *, then: Callable[[Path], None]) -> None:
        self._run, self._tokenizer, self._progress, self._then = run, tokenizer, progress, then
        self._folder = Path(run.plan.options.output) / "checkpoints"
        self._copies: dict[str, Tensor] = {}  # of all tensors, kept from save to save
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self) -> Path:
        """Begins to save the state of now. All ranks have to call it. Raises what went wrong with the save before."""
        self.wait()
        run, step = self._run, self._run.step
        model = dict(self._copy("model", run.model.state_dict()))
        optimizer = dict(self._copy("optimizer", checkpoint.optimizer_state(run.model, run.optimizer)))
        ema = dict(self._copy("ema", run.average.weights)) if run.average else None
        info = checkpoint_info(run, self._tokenizer)
        if rank() == 0:
            copied = torch.cuda.Event() if run.device.type == "cuda" else None
            if copied is not None:
                copied.record()

            def write() -> None:
                if copied is not None:
                    copied.synchronize()
                path = checkpoint.save(
                    self._folder, step=step, keep=run.plan.options.keep, info=info, model=model, optimizer=optimizer,
                    ema=ema,
                )  # fmt: skip
                self._then(path)

            self._thread = threading.Thread(target=self._guarded, args=(write,), name="checkpoint", daemon=True)
            self._thread.start()
        return checkpoint.path_of(self._folder, step)

    def check(self) -> None:
        """Raises what went wrong with a save. Does not wait."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Waits until all is written, and raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            return  # a second Ctrl-C does not wait; the next run removes what is half written
        try:
            self.wait()
        except TrainError as error:
            if kind is None or issubclass(kind, Interrupted):
                raise
            self._progress.say(str(error))  # the other error ends the run

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # the main thread raises it
            self._error = error

    def _copy(self, kind: str, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Copies of tensors that may be sharded, one after the other: a device never holds two whole ones."""
        for name, value in tensors.items():
            value = whole(value.detach())
            if rank() != 0:
                continue
            copy = self._copies.get(f"{kind}.{name}")
            if copy is None:
                copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                self._copies[f"{kind}.{name}"] = copy
            copy.copy_(value, non_blocking=True)
            yield name, copy


def checkpoint_info(run: Run, tokenizer: Tokenizer) -> dict[str, Any]:
    """What checkpoint.json says of a run."""
    options = run.plan.options
    return {
        "model": dataclasses.asdict(run.plan.model),
        "name": options.model,
        "vocabulary": tokenizer.fingerprint,
        "samples": run.plan.samples,
        "set": run.data,
        "teacher": run.teacher.digest if run.teacher else None,
        "recipe": recipe_of(options),
        "seed": options.seed,
        "order": order_of(options),
        "progress": {"step": run.step, "samples_seen": run.samples_seen, "scaler": run.scaler.state_dict()},
    }
