"""Is clip_train right and fast on this GPU? One call, in a fixed order, within a budget of seconds.

    PYTHONPATH=. python benchmarks/gpu_check.py --budget 480 --output gpu_check
    PYTHONPATH=. python benchmarks/gpu_check.py --small                        small models, also on a CPU

First come the checks of what is right, then speed and a profile. Each check is a process of its own, so one that hangs
or spoils the GPU takes no other with it. It gets four times what it needs, and no more; then the page says where it
was. OUTPUT/gpu_check.json and gpu_check.md are written after each check, and what the budget leaves no time for is
listed as skipped. Runs are written into memory (/dev/shm) where it has room: a checkpoint of ViT-B-32 is 1.8 GB. It
needs clip_train's own packages and this repository; open_clip is measured where it can be imported. Exit code 1: a
check is wrong or failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import inspect
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch._dynamo  # every check would import it anew
import torch.distributed as dist
import torch.nn.functional as F

from clip_train.bench import bench, write_shards
from clip_train.config import PRESETS, TrainOptions
from clip_train.devices import device_name, peak_flops
from clip_train.distill import COLUMNS, SCALE
from clip_train.distributed import pick_device
from clip_train.loss import info_nce
from clip_train.model import CLIP, count_flops
from clip_train.parallel import shard_blocks
from clip_train.start import compile_towers
from clip_train.text import pack
from clip_train.training import train

FORK = multiprocessing.get_context("fork")  # torch is imported once; no process but a check's own touches the GPU
STEPS = 20
MEMORY, ROOM = Path("/dev/shm"), 12e9  # for the checkpoints of a check
PATIENCE = 4  # times what a check needs, and at least as many seconds as
LEAST = 20
Numbers = dict[str, Any]


class WrongError(Exception):
    """A number is out of its bound."""


class AbsentError(Exception):
    """This machine has not what a check needs."""


class EnoughError(Exception):
    """A run has made its steps. It ends without a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all checks share."""

    small: bool
    data: str
    scratch: str

    @property
    def samples(self) -> int:
        """Pairs of the set."""
        return 64 if self.small else 2048

    @property
    def batch_size(self) -> int:
        """Pairs of a step that is checked, not measured."""
        return 16 if self.small else 256

    def model(self, name: str) -> str:
        """The model that stands in for `name`."""
        return {"RN50": "RN-Mini"}.get(name, "ViT-Tiny") if self.small else name


@dataclasses.dataclass(frozen=True)
class Check:
    """A check, and the seconds that it needs at least on an H100."""

    name: str
    seconds: float
    run: Callable[[Setting], Numbers]


def require(good: bool, message: str) -> None:
    if not good:
        raise WrongError(message)


# --- right ------------------------------------------------------------------------------------------------------------


def environment(_: Setting) -> Numbers:
    device = pick_device()
    found: Numbers = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    found["device"] = device_name(device) or "CPU"
    peak = peak_flops(device)
    found["peak_tflops"] = peak / 1e12 if peak else None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        require(device.type == "cpu", f"packed text needs torch.nn.attention.varlen: {error}")
        return {**found, "varlen": "absent"}
    found["varlen"] = str(inspect.signature(varlen_attn))
    require(device.type == "cpu" or "window_size" in found["varlen"], "varlen_attn of this torch has no window_size")
    return found


def loss(setting: Setting) -> Numbers:
    """The loss and its gradients against float64.

    Logits in TF32 would miss by about 1e-3 x scale. Under "high" the products of the gradient may be TF32.
    """
    device, size = pick_device(), 256 if setting.small else 4096
    generator = torch.Generator().manual_seed(0)
    given = [F.normalize(torch.randn(size, 512, generator=generator), dim=1) for _ in range(2)]
    given[1] = F.normalize(given[0] + 8 * given[1], dim=1)  # pairs that match a little: the loss is not near 0
    found: Numbers = {}
    for scale in (14.0, 100.0):
        exact = [each.to(device, torch.float64, copy=True).requires_grad_() for each in (*given, torch.tensor(scale))]
        logits, labels = exact[2] * exact[0] @ exact[1].T, torch.arange(size, device=device)
        value = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        value.backward()
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            ours = [each.to(device, copy=True).requires_grad_() for each in (*given, torch.tensor(scale))]
            mine = info_nce(*ours)
            mine.backward()
            errors = {"loss": abs(mine.item() - value.item()) / max(abs(value.item()), 1e-3)}
            for name, a, b in zip(("images", "texts", "scale"), ours, exact, strict=True):
                errors[name] = ((a.grad - b.grad).norm() / b.grad.norm().clamp(min=1e-12)).item()
            for name, error in errors.items():
                found[f"{name}, scale {scale:g}, {precision}"] = error
    for name, error in found.items():
        bound = 1e-3 if name.endswith("high") and name.startswith(("images", "texts")) else 1e-4
        require(error < bound, f"the error of {name} is {error:.2e}, allowed is {bound:g}")
    return found


def _model(setting: Setting, name: str = "ViT-B-32") -> CLIP:
    torch.manual_seed(0)
    return CLIP(PRESETS[setting.model(name)].model)


def _texts(model: CLIP, count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, model.config.context_length, (count,), generator=generator).tolist()
    end = model.config.vocab_size - 1
    return [[end - 1, *torch.randint(1, end - 1, (n - 2,), generator=generator).tolist(), end] for n in lengths]


def _padded(texts: list[list[int]], length: int) -> torch.Tensor:
    return torch.tensor([text + [0] * (length - len(text)) for text in texts])


def packed(setting: Setting) -> Numbers:
    """Packed text against 77 padded positions, features and gradients, in the precision of training."""
    device = pick_device()
    texts = _texts(_model(setting), setting.batch_size)
    features, gradients = [], []
    for form in (pack(texts), _padded(texts, _model(setting).config.context_length)):
        model = _model(setting).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            made = F.normalize(model.encode_text(form.to(device)).float(), dim=1)
        (made * torch.linspace(-1, 1, made.shape[1], device=device)).sum().backward()
        features.append(made.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    found = {
        "smallest cosine": (features[0] * features[1]).sum(1).min().item(),
        "error of the gradient": ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item(),
    }
    bound = 0.05 if device.type == "cuda" else 1e-4
    require(found["smallest cosine"] > 1 - bound and found["error of the gradient"] < bound, json.dumps(found))
    return found


def logits(setting: Setting) -> Numbers:
    """The logits of fp32 on the device against the CPU's."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    model, device = _model(setting).eval(), pick_device()
    size = model.config.image_size
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(2))
    text = pack(_texts(model, 8))
    with torch.no_grad():
        exact = model.logits(images, text)
        ours = model.to(device).logits(images.to(device), text.to(device)).cpu()
    found = {"largest difference": (ours - exact).abs().max().item()}
    require(found["largest difference"] < 1e-3, json.dumps(found))
    return found


def _options(setting: Setting, folder: str, **values: Any) -> TrainOptions:
    given = {"model": setting.model("ViT-B-32"), "batch_size": setting.batch_size, "warmup": 5, "compile": False,
             "precision": "fp32", "lr": 1e-4, "save_every": 0, "save_minutes": 0.0, "steps": STEPS, "log_to": ("none",),
             **values}  # fmt: skip
    return TrainOptions(data=setting.data, output=str(Path(setting.scratch, folder)), **given)


def _losses(options: TrainOptions, *, kill_at: int = 0, save: bool = False) -> list[float]:
    """The losses of the steps. The process kills itself after step `kill_at`, when a checkpoint is written.

    Args:
        save: the run writes its last checkpoint.
    """
    found: list[float] = []

    def note(line: dict[str, Any]) -> None:
        found.append(line["loss"])
        if line["step"] == kill_at:
            while not any(Path(options.output, "checkpoints").glob("step-*")):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        if line["step"] == options.steps and not save:
            raise EnoughError

    with contextlib.suppress(EnoughError):
        train(options, on_step=note)
    return found


def steps(name: str, **values: Any) -> Callable[[Setting], Numbers]:
    """A check: twenty steps with these options, whose loss is finite and falls."""

    def run(setting: Setting) -> Numbers:
        if values.get("precision") == "fp16" and pick_device().type == "cpu":
            raise AbsentError("fp16 needs a GPU")
        model = {"model": setting.model(values["model"])} if "model" in values else {}
        began = time.monotonic()
        losses = _losses(_options(setting, name, **{**values, **model}))
        require(len(losses) == STEPS and all(map(math.isfinite, losses)), f"losses {losses}")
        require(sum(losses[-5:]) / 5 < losses[0] + 0.1, f"the loss rises: {losses}")
        return {"first loss": losses[0], "mean of the last 5": sum(losses[-5:]) / 5, "s": time.monotonic() - began}

    return run


def compiled(setting: Setting) -> Numbers:
    """Twenty steps of compiled towers have the losses of towers that are not compiled."""
    precise = "bf16" if pick_device().type == "cuda" else "fp32"
    began = time.monotonic()
    plain = _losses(_options(setting, "plain", precision=precise))
    middle = time.monotonic()
    ours = _losses(_options(setting, "compiled", precision=precise, compile=True))
    error = max(abs(a - b) for a, b in zip(plain, ours, strict=True))
    require(error < 0.05, f"the losses differ by {error}: {plain} and {ours}")
    return {"largest difference of the loss": error, "plain s": middle - began, "s": time.monotonic() - middle}


def kill_and_resume(setting: Setting) -> Numbers:
    """A run that SIGKILL ends and that resumes has the losses of one that was not ended."""
    options = _options(setting, "killed", save_every=8)
    killed = FORK.Process(target=_losses, args=(options,), kwargs={"kill_at": 12})
    killed.start()
    killed.join()
    require(killed.exitcode == -signal.SIGKILL, f"the first run ended with {killed.exitcode}")
    resumed = _losses(dataclasses.replace(options, resume=True, save_every=0), save=True)
    require(Path(options.output, "checkpoints", f"step-{STEPS:08d}").is_dir(), "the last checkpoint is not there")
    whole = _losses(_options(setting, "whole"))
    error = max(abs(a - b) for a, b in zip(resumed, whole[-len(resumed) :], strict=True))
    require(len(resumed) == STEPS - 8 and error < 1e-2, f"{len(resumed)} steps, the losses differ by {error}")
    return {"steps after the resume": len(resumed), "largest difference of the loss": error}


def distill(setting: Setting) -> Numbers:
    """Twenty steps toward a teacher whose vectors are wider than the student's, and drawn at random."""
    keys = [f"{number:08d}" for number in range(setting.samples)]
    rows = F.normalize(torch.randn(2, len(keys), 768, generator=torch.Generator().manual_seed(3)), dim=2).numpy()
    vectors = [pa.FixedSizeListArray.from_arrays(side.ravel(), 768) for side in rows]
    table = pa.table([pa.array(keys), *vectors], ["key", *COLUMNS]).replace_schema_metadata({SCALE: b"100"})
    path = str(Path(setting.scratch, "teacher.parquet"))
    pq.write_table(table, path)
    return steps("distill", distill=path, precision="auto")(setting)


def sharded(setting: Setting) -> Numbers:
    """Ten steps of FSDP2 on one rank, with compiled blocks, have the losses of the model alone."""
    device = pick_device()
    gpu = device.type == "cuda"
    alone = _ten_steps(setting, device, lambda model: None)
    backend = "cuda:nccl,cpu:gloo" if gpu else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=device if gpu else None)

    def shard(model: CLIP) -> None:
        scalars = {value for value in model.parameters() if value.ndim == 0}
        shard_blocks(model, scalars, device, "bf16" if gpu else "fp32")
        compile_towers(model, text=gpu)

    began = time.monotonic()
    ours = _ten_steps(setting, device, shard)
    elapsed = time.monotonic() - began
    dist.destroy_process_group()
    error = max(abs(a - b) for a, b in zip(alone, ours, strict=True))
    require(error < 0.05, f"the losses differ by {error}: {alone} and {ours}")
    return {"first loss": ours[0], "last loss": ours[-1], "largest difference of the loss": error, "s": elapsed}


def _ten_steps(setting: Setting, device: torch.device, prepare: Callable[[CLIP], None]) -> list[float]:
    """The losses of ten steps of AdamW on one batch, of a model that `prepare` changes."""
    model = _model(setting).to(device)
    prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)  # with 1e-4 the loss jumps, and rounding decides where
    size = model.config.image_size
    images = torch.randn(setting.batch_size, 3, size, size, generator=torch.Generator().manual_seed(2)).to(device)
    text = pack(_texts(model, setting.batch_size)).to(device)
    found = []
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            made = model(images, text, None)
        loss = info_nce(*made, model.logit_scale.exp())
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


# --- fast -------------------------------------------------------------------------------------------------------------


def speed(name: str, *, batch: int, compiled: bool, measure: str) -> Callable[[Setting], Numbers]:
    """A check: pairs/s, MFU and peak memory of one model."""

    def run(setting: Setting) -> Numbers:
        size, seconds = (8, 0.2) if setting.small else (batch, 3.0)
        forms = ("packed", "padded") if name == "ViT-B-32" else ("packed",)  # one model shows what packing gains
        found = bench(model=setting.model(name), data=setting.data, batch_size=size, seconds=seconds, only=(measure,),
                      compiled=compiled, forms=forms)  # fmt: skip
        if torch.cuda.is_available():
            found["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return found

    return run


def loss_speed(setting: Setting) -> Numbers:
    return bench(model=setting.model("ViT-B-32"), data=setting.data, batch_size=8, seconds=1.0, only=("loss",))


def against_open_clip(name: str, *, batch: int) -> Callable[[Setting], Numbers]:
    """A check: forward and backward pass of open_clip's model, compiled, in bf16, on padded text."""

    def run(setting: Setting) -> Numbers:
        try:
            import open_clip
        except Exception as error:  # a broken torchvision raises RuntimeError
            raise AbsentError(f"open_clip cannot be imported: {error}") from None
        if setting.small:
            raise AbsentError("open_clip has no model as small")
        device = pick_device()
        model = open_clip.create_model(name, precision="fp32", force_quick_gelu=True, output_dict=False).to(device)
        forward = torch.compile(model)
        images = torch.randn(batch, 3, 224, 224, device=device)
        texts = _padded(_texts(_model(setting, name), batch), 77).to(device)

        def step() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                made = forward(images, texts)
            (made[0].sum() + made[1].sum()).backward()

        for _ in range(3):
            step()
        torch.cuda.synchronize()
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 4:
            step()
            torch.cuda.synchronize()
            count += batch
        rate = count / (time.perf_counter() - began)
        work = 3 * count_flops(PRESETS[name].model)
        return {"open_clip": open_clip.__version__, "pairs_per_s": rate, "gflops": work * rate / 1e9,
                "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9}  # fmt: skip

    return run


def profile(setting: Setting) -> Numbers:
    """Five steps from tar under the profiler: kernel time against wall time, waits, copies, longest kernels."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    gpu = torch.cuda.is_available()
    size = {} if setting.small else {"batch_size": 1024}
    options = _options(setting, "profile", precision="auto", compile=gpu, **size)
    begun: list[float] = []
    recorded = record(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])])
    recorded.prepare_trace()  # takes seconds, so it is not done between two steps

    def note(line: dict[str, Any]) -> None:
        if line["step"] in (STEPS - 8, STEPS - 3):
            _synchronize()
            begun.append(time.monotonic())
            recorded.start_trace() if len(begun) == 1 else recorded.stop_trace()
        if line["step"] == STEPS:
            raise EnoughError

    with contextlib.suppress(EnoughError):
        train(options, on_step=note)
    averages = recorded.key_averages()
    events = [
        event for event in averages if not gpu or event.device_type == DeviceType.CUDA
    ]  # not their calls
    busy = {event.key: getattr(event, "self_device_time_total" if gpu else "self_cpu_time_total") for event in events}
    count = {event.key: event.count for event in averages}
    top = sorted(busy, key=lambda key: -busy[key])[:12]
    return {
        "wall_s": begun[1] - begun[0],
        "kernels_s" if gpu else "operators_s": sum(busy.values()) / 1e6,
        "synchronisations": sum(n for key, n in count.items() if "Synchronize" in key),
        "items_read": count.get("aten::item", 0),
        "pageable_copies": sum(n for key, n in count.items() if "Pageable" in key),
        "longest": {key[:80]: round(busy[key] / 1e3, 3) for key in top},  # ms
    }


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


MODELS = (("ViT-B-32", 1024), ("RN50", 512), ("ViT-B-16", 512), ("ViT-L-14", 128))
CHECKS = (
    Check("environment", 2, environment),
    Check("loss", 6, loss),
    Check("packed", 6, packed),
    Check("logits", 5, logits),
    Check("fp32", 8, steps("fp32")),
    Check("bf16", 8, steps("bf16", precision="bf16")),
    Check("fp16", 8, steps("fp16", precision="fp16")),
    Check("accumulate", 8, steps("accumulate", accumulate=4)),
    Check("patch-dropout", 8, steps("patch-dropout", patch_dropout=0.5)),
    Check("activation-checkpointing", 8, steps("activation-checkpointing", activation_checkpointing=True)),
    Check("ema", 8, steps("ema", ema=0.9)),
    Check("sigmoid", 8, steps("sigmoid", loss="sigmoid")),
    Check("resnet", 8, steps("resnet", model="RN50")),
    Check("muon", 8, steps("muon", optimizer="muon")),
    Check("kill-and-resume", 20, kill_and_resume),
    Check("distill", 8, distill),
    Check("compile", 40, compiled),
    Check("fsdp, one rank, compiled", 40, sharded),
    Check("speed of the loss", 5, loss_speed),
    *(Check(f"speed {name}, model, eager", 15, speed(name, batch=batch, compiled=False, measure="model"))
      for name, batch in MODELS),
    Check("profile", 15, profile),
    Check("speed ViT-B-32, from tar, eager", 12, speed("ViT-B-32", batch=1024, compiled=False, measure="step")),
    *(Check(f"speed {name}, model, compiled", 30, speed(name, batch=batch, compiled=True, measure="model"))
      for name, batch in MODELS),
    *(Check(f"open_clip {name}, compiled", 40, against_open_clip(name, batch=batch)) for name, batch in MODELS),
    Check("speed ViT-B-32, from tar, compiled", 30, speed("ViT-B-32", batch=1024, compiled=True, measure="step")),
)  # fmt: skip


# --- the run ----------------------------------------------------------------------------------------------------------


def _child(check: Check, setting: Setting, out: Connection, stack: str) -> None:
    with open(stack, "w") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        _answer(check, setting, out)


def _answer(check: Check, setting: Setting, out: Connection) -> None:
    try:
        out.send({"status": "ok", "numbers": check.run(setting)})
    except WrongError as error:
        out.send({"status": "wrong", "reason": str(error)})
    except AbsentError as error:
        out.send({"status": "skipped", "reason": str(error)})
    except BaseException as error:
        traceback.print_exc()
        out.send({"status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]})


def perform(check: Check, setting: Setting, left: float) -> dict[str, Any]:
    """The result of one check, which gets at most `left` seconds, and PATIENCE times what it needs."""
    needs = 1.0 if setting.small else check.seconds
    if left < needs:
        return {"name": check.name, "status": "skipped", "reason": f"{max(0.0, left):.0f} s left, needs {needs:.0f}"}
    began = time.monotonic()
    limit = min(left, max(LEAST, PATIENCE * check.seconds))
    with tempfile.TemporaryDirectory(dir=setting.scratch or None) as folder:
        stack = str(Path(folder, "stack"))
        mine, theirs = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_child, args=(check, dataclasses.replace(setting, scratch=folder), theirs, stack))
        process.start()
        theirs.close()
        try:
            found = mine.recv() if mine.poll(limit) else _late(process.pid, stack, limit)
        except EOFError:
            process.join()
            found = {"status": "failed", "reason": f"the process ended with {process.exitcode}"}
        process.join(1)
        if process.is_alive():
            process.kill()
            process.join()
    return {"name": check.name, **found, "seconds": round(time.monotonic() - began, 1)}


def _late(process: int | None, stack: str, limit: float) -> dict[str, Any]:
    """The result of a check that is not done, with the places in which its process is."""
    assert process is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGUSR1)
    time.sleep(0.2)
    said = Path(stack).read_text() if os.path.exists(stack) else ""
    places = re.findall(r'File ".*?([^/"]+)", line (\d+) in (\w+)', said)
    where = " < ".join(f"{name}:{line} {function}" for name, line, function in places[:6])
    return {"status": "failed", "reason": f"not done after {limit:.0f} s, in {where or 'an unknown place'}"}


def page(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["# gpu_check", "", "| check | result | s | |", "|---|---|---|---|"]
    for row in results:
        numbers = "; ".join(f"{name} {_shown(value)}" for name, value in row.get("numbers", {}).items())
        said = (row.get("reason") or numbers).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row['name']} | {row['status']} | {row.get('seconds', '')} | {said} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(folder: Path, results: list[dict[str, Any]]) -> None:
    """Writes both files; each is whole at any time."""
    for name, text in (("gpu_check.json", json.dumps(results, indent=1)), ("gpu_check.md", page(results))):
        (folder / f"{name}.partial").write_text(text, encoding="utf-8")
        os.replace(folder / f"{name}.partial", folder / name)


def _roomy() -> str | None:
    """The folder of memory, if it has room. None: that for temporary files."""
    return str(MEMORY) if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--budget", type=float, default=480, help="seconds in all")
    parser.add_argument("--output", default="gpu_check", help="folder for gpu_check.json and gpu_check.md")
    parser.add_argument("--small", action="store_true", help="small models and batches: a check of this script")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS], help="some of the checks")
    given = parser.parse_args()
    end = time.monotonic() + given.budget
    folder = Path(given.output)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [check for check in CHECKS if given.only is None or check.name in given.only]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=_roomy()) as scratch:
        setting = Setting(given.small, str(Path(scratch, "shards")), scratch)
        write_shards(Path(scratch), samples=setting.samples, side=64 if given.small else 256)
        for number, check in enumerate(chosen):
            results.append(perform(check, setting, end - time.monotonic()))
            names = [each.name for each in chosen[number + 1 :]]
            write(folder, [*results, *({"name": name, "status": "skipped", "reason": "not begun"} for name in names)])
            print(page(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    return 1 if any(row["status"] in ("wrong", "failed") for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
