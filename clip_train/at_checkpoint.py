"""Evaluation at the checkpoints of a run."""

from __future__ import annotations

import json
from pathlib import Path

from clip_train.errors import TrainError
from clip_train.evaluate import zero_shot
from clip_train.log import Progress
from clip_train.run import Run
from clip_train.tokenizer import Tokenizer
from clip_train.weights import load_model


def evaluate_run(run: Run, saved: Path, tokenizer: Tokenizer, progress: Progress) -> None:
    """Appends the zero-shot accuracy at a checkpoint to RUN/zero_shot.jsonl. A failure here does not stop the run."""
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
