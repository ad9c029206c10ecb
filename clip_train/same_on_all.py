"""All ranks of a run do the same thing. The first rank has the run's folder; the others learn from it what they need.

Hosts need not share a folder. So nothing but the first rank reads or writes RUN: the options of a run that resumes and
its vocabulary come from there (the checkpoint too: resume.py). What the ranks were told otherwise must agree, or the
run would go on with wrong numbers. It is compared before the first step.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from clip_train import __version__
from clip_train.config import TrainOptions, check_run
from clip_train.distributed import first_process, from_first, refuse_different, together, world_size
from clip_train.fields import flag_of
from clip_train.run_config import run_vocabulary
from clip_train.same_run import continued, read_stored
from clip_train.tokenizer import Tokenizer, load_tokenizer

# Options that may differ from rank to rank: places on a host, its speed, and what the first rank alone does.
OF_A_RANK = (
    "data", "output", "init", "bpe", "distill", "zero_shot", "suite", "suite_root", "cache", "cache_gb", "threads",
    "decode_in", "prefetch", "keep", "log_to", "save_minutes", "change",
)  # fmt: skip


def agreed_options(options: TrainOptions) -> tuple[TrainOptions, tuple[dict[str, Any], ...]]:
    """The options of the run and the history of their changes. All ranks have to call it.

    Raises:
        UsageError: the options of a rank are wrong, or differ from those of the first rank.
        InputMissing: a rank lacks a file.
    """
    own = together(lambda: _own(options))
    stored = from_first(read_stored(Path(options.output)) if first_process() and options.resume else ({}, ()))
    if not first_process():
        own = together(lambda: continued(options, stored=stored))
    else:
        together(lambda: None)
    given = {flag_of(name): value for name, value in dataclasses.asdict(own[0]).items() if name not in OF_A_RANK}
    given |= {flag_of(name): getattr(options, name) is not None for name in ("init", "distill", "zero_shot")}
    refuse_different({"the version of openwit": __version__, "the version of torch": torch.__version__, **given})
    return own


def _own(options: TrainOptions) -> tuple[TrainOptions, tuple[dict[str, Any], ...]]:
    found = continued(options) if first_process() else (options, ())
    check_run(found[0], first=first_process())
    return found


def agreed_vocabulary(options: TrainOptions) -> Tokenizer:
    """The vocabulary of --bpe, or the first rank's. All ranks have to call it."""
    first, folder = first_process(), Path(options.output)
    named = options.bpe or (run_vocabulary(folder, resume=options.resume) if first else None)
    own = together(lambda: load_tokenizer(named) if first or named else None)
    if world_size() == 1:
        assert own is not None
        return own
    name, merges = from_first((own.name, own.merges) if own is not None else ("", []))
    own = own or Tokenizer(merges, name=name)
    refuse_different({"the vocabulary of --bpe": own.fingerprint})
    return own
