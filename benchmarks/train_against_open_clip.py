"""clip_train against open_clip on a CPU, one thread: loader, loss memory, a training step, a step from tar.

    PYTHONPATH=.:OPEN_CLIP/src python benchmarks/train_against_open_clip.py [loader] [loss] [step] [tar]

Needs torch, torchvision, timm, ftfy, regex, braceexpand, pandas and webdataset==0.2.86 beside clip_train's own
packages, and a checkout of open_clip (89fb801 was measured). Both sides take the same JPEGs, captions, weights and
batches, in turns. The figure is the CPU time of the best of several turns, so other work on the machine matters less.
The model has ViT-B/32's proportions at a quarter of its widths and of its depth: 50 image tokens, 77 text positions.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

from clip_train.bench import write_shards  # noqa: E402
from clip_train.config import ModelConfig, Recipe  # noqa: E402
from clip_train.data import Loader, LoaderOptions  # noqa: E402
from clip_train.image import normalize  # noqa: E402
from clip_train.loss import info_nce  # noqa: E402
from clip_train.model import CLIP  # noqa: E402
from clip_train.optim import make_optimizer  # noqa: E402
from clip_train.order import Stream  # noqa: E402
from clip_train.shards import open_index  # noqa: E402
from clip_train.tokenizer import load_tokenizer  # noqa: E402

SMALL = ModelConfig(
    embed_dim=128, image_size=224, vision_layers=3, vision_width=192, patch_size=32, text_width=128, text_heads=2,
    text_layers=3,
)  # fmt: skip
BATCH, SAMPLES = 64, 1024
ROUNDS, LOSS_ROUNDS = 6, 3  # turns of each side; the best one counts


def our_loader(folder: str, *, packed: bool = True):
    options = LoaderOptions(image_size=224, context_length=77, batch_size=BATCH, prefetch=1, packed=packed)
    return Loader(Stream(open_index(folder), seed=0), load_tokenizer(), options)


def their_loader(folder: str):
    """open_clip's own webdataset pipeline and training transform, in this process (no workers)."""
    import open_clip
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.params import parse_args

    os.environ.update(OPENCLIP_WDS_SAMPLE_SHUFFLE_SIZE="500", OPENCLIP_WDS_SAMPLE_SHUFFLE_INITIAL="100")
    args = parse_args(["--train-data", f"{folder}/{{00000..00001}}.tar", "--train-num-samples", str(SAMPLES),
                       "--dataset-type", "webdataset", "--batch-size", str(BATCH), "--workers", "0"])  # fmt: skip
    args.world_size, args.rank, args.distributed = 1, 0, False
    transform = open_clip.image_transform(224, is_train=True)
    return get_wds_dataset(args, transform, True, tokenizer=open_clip.get_tokenizer("ViT-B-32")).dataloader


def best_of(mine: Iterator[int], theirs: Iterator[int], *, count: int) -> dict[str, float]:
    """CPU ms per item of each side. The sides take turns of `count` items; the best of ROUNDS turns counts."""
    best = [float("inf"), float("inf")]
    next(mine)  # warms up
    next(theirs)
    for _ in range(ROUNDS):
        for side, steps in enumerate((mine, theirs)):
            began, items = time.process_time(), 0
            while items < count:
                items += next(steps)
            best[side] = min(best[side], (time.process_time() - began) / items * 1e3)
    return {"ours_ms": best[0], "open_clip_ms": best[1], "ratio": best[1] / best[0]}


def endless(folder: str) -> Iterator[dict]:
    """Their batches, epoch after epoch."""
    return itertools.chain.from_iterable(their_loader(folder) for _ in itertools.count())


def loader(folder: str) -> dict[str, float]:
    with our_loader(folder) as ours:
        mine = (len(batch.samples) for (batch,) in ours.steps(0))
        return best_of(mine, (len(batch["text"]) for batch in endless(folder)), count=256)


def loss_memory(which: str) -> None:
    """Prints by how much a loss with gradient at batch 8,192 raises the peak memory of this process."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(8192, 512, generator=generator), dim=1).requires_grad_()
        for _ in range(2)
    )
    scale = torch.tensor(30.0, requires_grad=True)
    if which == "theirs":
        from open_clip.loss import ClipLoss

        work = ClipLoss()
    else:
        work = info_nce
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, began = resident("VmRSS"), time.process_time()
    work(images, texts, scale).backward()
    print(json.dumps({"mib": resident("VmHWM") - before, "cpu_s": time.process_time() - began}))


def resident(name: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def loss(_: str) -> dict[str, float]:
    found: dict[str, list[dict]] = {"ours": [], "theirs": []}
    for _ in range(LOSS_ROUNDS):
        for which, runs in found.items():
            command = [sys.executable, __file__, "--loss", which]
            output = subprocess.run(command, check=True, text=True, capture_output=True).stdout
            runs.append(json.loads(output.splitlines()[-1]))
    mib, cpu = ({w: min(run[name] for run in runs) for w, runs in found.items()} for name in ("mib", "cpu_s"))
    return {"ours_mib": mib["ours"], "open_clip_mib": mib["theirs"], "ratio": mib["theirs"] / mib["ours"],
            "ours_cpu_s": cpu["ours"], "open_clip_cpu_s": cpu["theirs"]}  # fmt: skip


class Ours:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = CLIP(dataclasses.replace(SMALL, vocab_size=load_tokenizer().vocab_size))
        self.optimizer = make_optimizer(self.model, Recipe())

    def step(self, images: torch.Tensor, text) -> float:
        loss = info_nce(*self.model(images, text), self.model.logit_scale.exp())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.clamp_logit_scale()
        return loss.item()


class Theirs:
    def __init__(self, ours: Ours) -> None:
        from open_clip.loss import ClipLoss
        from open_clip.model import CLIP as OpenClip
        from open_clip.model import CLIPTextCfg, CLIPVisionCfg

        config = ours.model.config
        self.model = OpenClip(
            config.embed_dim,
            CLIPVisionCfg(layers=config.vision_layers, width=config.vision_width, patch_size=32, image_size=224),
            CLIPTextCfg(vocab_size=config.vocab_size, width=config.text_width, heads=2, layers=config.text_layers),
            quick_gelu=True, output_dict=True,
        )  # fmt: skip
        self.model.load_state_dict(ours.model.state_dict())
        self.loss = ClipLoss()
        decayed = [value for value in self.model.parameters() if value.ndim >= 2]
        others = [value for value in self.model.parameters() if value.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)  # as open_clip makes it

    def step(self, images: torch.Tensor, text: torch.Tensor) -> float:
        loss = self.loss(**self.model(images, text))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, 4.6052)
        return loss.item()


def step(folder: str) -> dict[str, float]:
    """Steps on the same decoded batches: ours with packed text, theirs with all 77 positions. The losses must agree."""
    ours = Ours()
    theirs = Theirs(ours)
    losses: tuple[list[float], list[float]] = ([], [])

    def trained(trainer, batches, side: int) -> Iterator[int]:
        for images, text in batches:
            losses[side].append(trainer.step(images, text))
            yield BATCH

    with our_loader(folder) as packed, our_loader(folder, packed=False) as padded:
        steps = 1 + ROUNDS * 3  # decoded before anything is measured
        mine, other = ([batch for (batch,) in itertools.islice(loader.steps(0), steps)] for loader in (packed, padded))
    tokens = sum(batch.tokens for batch in mine) / steps / BATCH
    images = [normalize(batch.images) for batch in mine]
    found = best_of(
        trained(ours, zip(images, (batch.text for batch in mine), strict=True), 0),
        trained(theirs, zip(images, (batch.text for batch in other), strict=True), 1),
        count=3 * BATCH,
    )
    difference = max(abs(one - two) for one, two in zip(*losses, strict=True))
    return {**found, "largest_loss_difference": difference, "tokens_per_caption": tokens}


def tar(folder: str) -> dict[str, float]:
    """Whole steps: each side reads, decodes and tokenizes by itself."""
    ours = Ours()
    theirs = Theirs(ours)

    def mine(steps) -> Iterator[int]:
        for (batch,) in steps:
            ours.step(normalize(batch.images), batch.text)
            yield BATCH

    def other(batches) -> Iterator[int]:
        for batch in batches:
            theirs.step(batch["image"], batch["text"])
            yield len(batch["text"])

    with our_loader(folder) as loader:
        return best_of(mine(loader.steps(0)), other(endless(folder)), count=3 * BATCH)


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--loss"]:
        loss_memory(sys.argv[2])
        return
    measures = {"loader": loader, "loss": loss, "step": step, "tar": tar}
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_shards(Path(scratch), samples=SAMPLES)
        for name in sys.argv[1:] or measures:
            found = measures[name](folder)
            print(f"{name:8s}" + "  ".join(f"{key} {value:,.3f}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
