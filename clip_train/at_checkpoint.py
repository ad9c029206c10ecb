"""Evaluation at the checkpoints of a run. A failure here does not stop the run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import torch

from clip_train.config import TrainOptions
from clip_train.distributed import rank
from clip_train.errors import InputMissing, TrainError
from clip_train.evaluate import zero_shot
from clip_train.labels import open_labelled
from clip_train.launch import boot
from clip_train.log import Progress
from clip_train.model import CLIP
from clip_train.places import EVALUATION, SUITE_LOG
from clip_train.run import Run
from clip_train.sharded import whole
from clip_train.suite import read_suite
from clip_train.suite_data import find
from clip_train.tokenizer import Tokenizer

# of torchrun: a process that has them would join the run
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_evaluations(options: TrainOptions, *, first: bool = True) -> None:
    """Refuses what --zero-shot and --suite name wrongly: a mistake must not wait for the first checkpoint.

    Args:
        first: this is the first rank, which runs the suite.
    """
    if options.zero_shot:
        open_labelled(options.zero_shot)
    if options.suite and first:
        sets = [each for each in read_suite(options.suite).sets if not each.skip]
        if not any(find(each, options.suite_root) for each in sets):
            raise InputMissing(f"--suite-root {options.suite_root}: none of the sets of {options.suite} is there")


class Evaluations(contextlib.AbstractContextManager["Evaluations"]):
    """Evaluates the checkpoints of a run.

    The zero-shot accuracy is computed at once. A suite takes longer: another process evaluates it from the checkpoint,
    and no rank waits. A checkpoint that comes while it runs waits; of several, the newest one is taken. At the end of
    the run the last one is waited for. The results are in RUN/evaluation and, a line a checkpoint, in RUN/suite.jsonl.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, progress: Progress) -> None:
        self._run, self._tokenizer, self._progress = run, tokenizer, progress
        self._folder = Path(run.plan.options.output)
        self._process: subprocess.Popen[str] | None = None
        self._step = 0  # of the checkpoint that the process evaluates
        self._next: tuple[int, Path] | None = None

    def zero_shot(self) -> None:
        """The accuracy of the weights of now, if the options want it. All ranks have to call it."""
        if self._run.plan.options.zero_shot:
            evaluate_run(self._run, self._tokenizer, self._progress)

    def start_suite(self, checkpoint: Path) -> None:
        """Is called on the first rank with each checkpoint that is written, by the thread that has written it."""
        if self._run.plan.options.suite:
            if self._next is not None:
                self._progress.say(f"step {self._next[0]}: not evaluated: the suite of step {self._step} still runs")
            self._next = int(checkpoint.name.removeprefix("step-")), checkpoint
            self._go_on(wait=False)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and (self._process is not None or self._next is not None):
                self._go_on(wait=True)
        finally:  # the run was stopped, or a person does not want to wait
            if self._process is not None:
                self._process.terminate()
                self._process.wait()

    def _go_on(self, *, wait: bool) -> None:
        """Takes the result of a process that has ended, then starts the next."""
        if self._process is not None and (wait or self._process.poll() is not None):
            self._process.wait()
            self._take_result(self._process.returncode)
            self._process = None
        if self._process is None and self._next is not None:
            (self._step, checkpoint), self._next = self._next, None
            self._start(checkpoint)

    def _paths(self) -> tuple[Path, Path]:
        folder = self._folder / EVALUATION
        return folder / f"step-{self._step:08d}.json", folder / f"step-{self._step:08d}.log"

    def _start(self, checkpoint: Path) -> None:
        options = self._run.plan.options
        assert options.suite is not None
        folder = self._folder / EVALUATION
        words = ["evaluate", "--checkpoint", str(checkpoint), "--suite", options.suite, "--root", options.suite_root,
                 "--output", str(folder), "--processes", "1", "--json"]  # fmt: skip
        given = {name: value for name, value in os.environ.items() if name not in _LAUNCHER and "ELASTIC" not in name}
        out: IO[str]
        try:
            folder.mkdir(exist_ok=True)
            result, log = self._paths()
            with open(result, "w", encoding="utf-8") as out, open(log, "w", encoding="utf-8") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, *boot(), *words], stdout=out, stderr=errors,
                    stdin=subprocess.DEVNULL, env=given, text=True, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            self._progress.say(f"step {self._step}: no suite: {error}")

    def _take_result(self, code: int) -> None:
        result, log = self._paths()
        try:
            if code:
                raise ValueError((log.read_text(encoding="utf-8").strip() or f"exit code {code}").splitlines()[-1])
            found = json.loads(result.read_text(encoding="utf-8"))
            values = {row["name"]: row["value"] for row in found["sets"] if row["status"] == "done"}
            line = {"step": self._step, "suite": found["suite"], "mean": found["mean"], "sets": values}
            with open(self._folder / SUITE_LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except (OSError, ValueError) as error:
            self._progress.say(f"step {self._step}: no suite: {error}")
            return
        self._progress.say(f"step {self._step}: suite {found['suite']}: mean {found['mean']:.4f} of {len(values)} sets")


def evaluate_run(run: Run, tokenizer: Tokenizer, progress: Progress) -> None:
    """Appends the zero-shot accuracy of the weights of now to RUN/zero_shot.jsonl. The ranks share the images."""
    assert run.plan.options.zero_shot is not None
    model = unsharded(run.model) if run.towers.parallel == "fsdp" else run.model
    model.eval()
    try:
        result = zero_shot(model, tokenizer, run.plan.options.zero_shot)
        if rank() == 0:
            with open(Path(run.plan.options.output) / "zero_shot.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": run.step, **result}) + "\n")
    except (TrainError, OSError) as error:
        progress.say(f"step {run.step}: no zero-shot accuracy: {error}")
        return
    finally:
        run.model.train()
    progress.say(f"step {run.step}: zero-shot top-1 {result['top1']:.4f} on {result['images']} images")


def unsharded(model: CLIP) -> CLIP:
    """A copy of a model that FSDP has sharded, whole on every rank. All ranks have to call it."""
    with torch.device("meta"):
        copy = CLIP(model.config)
    copy.load_state_dict({name: whole(value.detach()) for name, value in model.state_dict().items()}, assign=True)
    return copy
