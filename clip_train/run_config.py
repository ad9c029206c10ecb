"""RUN/config.json, the resolved options of a run, and RUN/vocabulary.txt.gz."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch

from clip_train.config import Plan
from clip_train.errors import TrainError
from clip_train.tokenizer import VOCABULARY, Tokenizer, write_merges


def run_vocabulary(folder: Path, *, resume: bool) -> Path | None:
    """The vocabulary of the run, if the run resumes."""
    return folder / VOCABULARY if resume and (folder / VOCABULARY).exists() else None


def write_config(folder: Path, plan: Plan, tokenizer: Tokenizer, *, step: int) -> None:
    """Writes RUN/config.json, the resolved options, and RUN/vocabulary.txt.gz, so that the folder is self-contained.

    Args:
        step: from which the changes of now count; the history gets it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # `--config RUN/config.json` takes these options and repeats the run from its start
    options = dataclasses.replace(plan.options, resume=False, change=None, bpe=plan.options.bpe or tokenizer.name)
    history = tuple({**entry, "step": step} if entry["step"] is None else entry for entry in plan.history)
    resolved = {
        **dataclasses.asdict(dataclasses.replace(plan, options=options, history=history)),
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
