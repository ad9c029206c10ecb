"""Checkpoints that are complete or absent. A digest detects a flipped bit.

    RUN/checkpoints/step-00001000/
        model.safetensors       the weights under OpenAI's names
        ema.safetensors         their moving average, with --ema
        optimizer.safetensors   exp_avg.<name>, exp_avg_sq.<name>, step.<name>; momentum.<name> of Muon
        checkpoint.json         model, progress, size and sha256 of the files above, and its own sha256

A checkpoint is written into a folder of another name, synced to the disk and renamed. A reader checks the digests and
takes the newest checkpoint that verifies. The files hold tensors and JSON only, so a checkpoint cannot run code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_train.errors import InputMissing, TrainError
from clip_train.optim import STATE, optimizer_of
from clip_train.places import all_steps
from clip_train.sharded import shard_like

FORMAT = 1
_SCRATCH = ".partial-"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state that a run resumes from."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    info: dict[str, Any]  # {"model": ..., "progress": {"step", "samples_seen", ...}, ...}


def save(
    folder: Path,
    *,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    info: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes checkpoint `step` into `folder`, then removes all but the newest `keep` checkpoints."""
    final = path_of(folder, step)
    scratch = folder / f"{_SCRATCH}{final.name}-{os.getpid()}"
    try:
        scratch.mkdir(parents=True)
        files = {"model": model, "optimizer": optimizer} | ({"ema": ema} if ema is not None else {})
        digests = {
            f"{name}.safetensors": _write_tensors(scratch / f"{name}.safetensors", tensors, info)
            for name, tensors in files.items()
        }
        body = {"format": FORMAT, **info, "files": digests}
        _write(scratch / "checkpoint.json", json.dumps({"body": body, "sha256": _digest_json(body)}, indent=1).encode())
        _sync_folder(scratch)
        if final.exists():  # saved before; the run has resumed from an older checkpoint
            shutil.rmtree(_set_aside(final))
        os.rename(scratch, final)
        _sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise TrainError(
            f"cannot save {final}: {error}; older checkpoints are complete: free some space, then --resume"
        ) from error
    _prune(folder, keep=keep)
    return final


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return folder / f"step-{step:08d}"


def load(path: Path) -> Checkpoint:
    """Verifies and reads a checkpoint. TrainError says what is wrong with it."""
    info = verify(path)
    optional = path / "ema.safetensors"
    return Checkpoint(
        model=load_file(path / "model.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors"),
        ema=load_file(optional) if "ema.safetensors" in info["files"] else None,
        info=info,
    )


def verify(path: Path) -> dict[str, Any]:
    """The content of checkpoint.json, after checking that every file is as it was written."""
    try:
        outer = json.loads((path / "checkpoint.json").read_bytes())
        body, digest = outer["body"], outer["sha256"]
    except FileNotFoundError:
        raise InputMissing(f"{path} is not a checkpoint: it has no checkpoint.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{path / 'checkpoint.json'} is damaged ({error}); use another checkpoint") from None
    if _digest_json(body) != digest:
        raise TrainError(f"{path / 'checkpoint.json'} is damaged (its sha256 differs); use another checkpoint")
    if body["format"] != FORMAT:
        raise TrainError(f"{path} has format {body['format']}, this version reads {FORMAT}")
    for name, expected in body["files"].items():
        try:
            found = _digest_file(path / name)
        except OSError as error:
            raise TrainError(f"{path / name} cannot be read ({error}); use another checkpoint") from None
        if found != expected:
            raise TrainError(
                f"{path / name} is not as it was saved ({found['bytes']} bytes of {expected['bytes']}, or another "
                f"sha256); use another checkpoint"
            )
    return body


def mark(path: Path) -> str | None:
    """What tells a checkpoint from others: the digest of checkpoint.json, which holds those of its files.

    None: there is no such checkpoint.
    """
    try:
        return hashlib.sha256((path / "checkpoint.json").read_bytes()).hexdigest()
    except OSError:
        return None


def newest(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Yields checkpoints from the newest to the first that verifies, each with its fault. None: it verifies."""
    for path in all_steps(folder):
        try:
            verify(path)
        except TrainError as error:
            yield path, str(error)
        else:
            yield path, None
            return


def clear_scratch(folder: Path) -> None:
    """Removes the folders that a killed save left behind. Only one process of a run may call it."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(_SCRATCH):
                shutil.rmtree(path, ignore_errors=True)


def _prune(folder: Path, *, keep: int) -> None:
    for path in all_steps(folder)[max(1, keep) :]:
        shutil.rmtree(_set_aside(path), ignore_errors=True)


def _set_aside(path: Path) -> Path:
    """Renames a checkpoint, so that it disappears at once and not file by file."""
    aside = path.with_name(f"{_SCRATCH}old-{path.name}-{os.getpid()}")
    os.rename(path, aside)
    return aside


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # a copy of the file names itself; one entry, because safetensors writes several in no fixed order
    said = json.dumps({name: info.get(name) for name in ("model", "vocabulary")})
    save_file(plain, path, metadata={"clip_train": said})
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return _digest_file(path)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest_file(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _digest_json(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


# --- tensors in files and in a model ----------------------------------------------------------------------------------


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of the optimizer by kind and parameter name. The tensors may be sharded."""
    return {
        f"{kind}.{name}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Copies the weights into the model. TrainError if a name or a shape is that of another model."""
    own = model.state_dict()
    for name in [*(own.keys() - tensors.keys()), *(tensors.keys() - own.keys())][:1]:
        side = "lacks" if name in own else "has"
        raise TrainError(f"{origin} belongs to another model: it {side} {name!r}")
    for name, target in own.items():
        if tensors[name].shape != target.shape:
            raise TrainError(
                f"{origin} belongs to another model: {name} is {tuple(tensors[name].shape)}, not {tuple(target.shape)}"
            )
        copy_into(target, tensors[name])


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_state`, from whole tensors.

    The state of a parameter starts anew where it is another optimizer's.
    """
    kinds: dict[str, list[str]] = {}
    for key in sorted(tensors):  # the same order on all ranks: sharding a tensor is a collective call
        kind, _, name = key.partition(".")
        kinds.setdefault(name, []).append(kind)
    owners = optimizer_of(optimizer)
    for name, parameter in model.named_parameters():
        state = {}
        for kind in kinds.get(name, ()):
            if parameter not in owners or kind not in STATE[owners[parameter]]:  # it is locked, or another optimizer's
                continue
            value = tensors[f"{kind}.{name}"]
            if value.ndim == 0:
                state[kind] = value.to(parameter.device) if optimizer.defaults.get("fused") else value.clone()
            else:
                state[kind] = torch.empty_like(parameter, memory_format=torch.preserve_format)
                copy_into(state[kind], value)
        if state:
            optimizer.state[parameter] = state


@torch.no_grad()
def copy_into(target: Tensor, source: Tensor) -> None:
    """Copies a whole tensor, which every rank has read, into one that may be sharded over ranks."""
    target.copy_(shard_like(source, target))
