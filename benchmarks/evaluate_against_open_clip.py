"""A suite of three sets against open_clip on the same random weights: zero-shot accuracy and recall must be equal.

    PYTHONPATH=. python benchmarks/evaluate_against_open_clip.py CIFAR10.tar CALTECH101.tar CAPTIONED.tar

The first two have words as .cls members, the third has .txt captions. Needs open_clip_torch (3.3.0 was compared),
torchvision, timm and ftfy. open_clip's side uses its own model code, tokenizer, image transform and zero-shot
classifier. Its images are read with tarfile and Pillow. Prints a line for each number and ends with 1 if one differs.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

import open_clip
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from PIL import Image

from clip_train import load
from clip_train.config import PRESETS
from clip_train.suite import Suite, SuiteSet, shipped_prompts
from clip_train.suite_run import Evaluator, run_suite

SMALL = dataclasses.replace(PRESETS["ViT-Tiny"].model, activation="gelu")
KS = (1, 5, 10)


def their_model(folder: Path):
    """A small model of open_clip with random weights, and its weights and configuration in the folder."""
    text = {"context_length": 77, "vocab_size": 49408, "width": SMALL.text_width, "heads": SMALL.text_heads,
            "layers": SMALL.text_layers}  # fmt: skip
    image = {"image_size": SMALL.image_size, "layers": SMALL.vision_layers, "width": SMALL.vision_width,
             "patch_size": SMALL.patch_size, "head_width": SMALL.vision_head_width}  # fmt: skip
    config = {"embed_dim": SMALL.embed_dim, "vision_cfg": image, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config).eval()
    with torch.no_grad():  # as they start, all prompts have nearly one vector
        for name, value in model.named_parameters():
            if value.ndim > 1 and "embedding" not in name:
                value.mul_(3)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return model, open_clip.image_transform(SMALL.image_size, is_train=False)


def samples(path: str) -> dict[str, dict[str, bytes]]:
    """The members of each sample."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            stem, _, kind = member.name.rpartition(".")
            found.setdefault(stem, {})[kind] = tar.extractfile(member).read()
    return {key: parts for key, parts in found.items() if {"jpg", "png"} & set(parts)}


@torch.no_grad()
def their_images(model, transform, found) -> torch.Tensor:
    parts = list(found.values())
    rows = []
    for at in range(0, len(parts), 256):
        images = [Image.open(io.BytesIO(part.get("jpg") or part["png"])) for part in parts[at : at + 256]]
        rows.append(model.encode_image(torch.stack([transform(image) for image in images]), normalize=True))
    return torch.cat(rows)


@torch.no_grad()
def their_zero_shot(model, transform, path: str, classes: list[str], templates: list[str]) -> dict[str, float]:
    found = samples(path)
    forms = [lambda name, template=template: template.replace("{}", name) for template in templates]
    vectors = open_clip.build_zero_shot_classifier(model, open_clip.get_tokenizer("ViT-B-32"), classes, forms)
    labels = torch.tensor([classes.index(part["cls"].decode().strip()) for part in found.values()])
    best = (100 * their_images(model, transform, found) @ vectors).topk(5, dim=1).indices
    right = best[:, 0] == labels
    per_class = [right[labels == number].double().mean().item() for number in labels.unique()]
    return {
        "top1": right.double().mean().item(),
        "top5": (best == labels[:, None]).any(1).double().mean().item(),
        "mean_per_class": sum(per_class) / len(per_class),
    }


@torch.no_grad()
def their_retrieval(model, transform, path: str) -> dict[str, float]:
    """Recall as open_clip's get_clip_metrics computes it: one caption an image, ranks by argsort of the logits."""
    found = samples(path)
    images = their_images(model, transform, found)
    tokens = open_clip.get_tokenizer("ViT-B-32")([parts["txt"].decode() for parts in found.values()])
    texts = torch.cat([model.encode_text(tokens[at : at + 256], normalize=True) for at in range(0, len(tokens), 256)])
    logits, right, numbers = images @ texts.T, torch.arange(len(images))[:, None], {}
    for way, scores in (("image_to_text", logits), ("text_to_image", logits.T)):
        ranks = (scores.argsort(descending=True) == right).nonzero()[:, 1]
        numbers |= {f"{way}_recall@{k}": (ranks < k).double().mean().item() for k in KS}
    return numbers


def distinct(path: str, folder: Path, *, count: int = 1000) -> str:
    """A tar of the first samples whose captions are of one line and differ.

    open_clip ranks equal captions by chance. Ours lets the wrong one win.
    """
    seen: set[bytes] = set()
    with tarfile.open(folder / "distinct.tar", "w") as tar:
        for key, parts in samples(path).items():
            caption = parts.get("txt", b"").strip().lower()
            if caption and caption not in seen and b"\n" not in caption and len(seen) < count:
                seen.add(caption)
                for kind, data in parts.items():
                    info = tarfile.TarInfo(f"{key}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(folder / "distinct.tar")


def words(path: str) -> list[str]:
    return sorted({parts["cls"].decode().strip() for parts in samples(path).values()})


def main(cifar: str, caltech: str, captioned: str) -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        return compare(Path(name), cifar, caltech, distinct(captioned, Path(name)))


def compare(folder: Path, cifar: str, caltech: str, captioned: str) -> int:
    """0 if all numbers are equal."""
    prompts = shipped_prompts()["cifar10"]
    many = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES][:10]
    sets = (
        SuiteSet(name="cifar10", kind="zero-shot", data=(cifar,), metric="accuracy", prompts="cifar10"),
        SuiteSet(name="caltech101", kind="zero-shot", data=(caltech,), metric="mean-per-class",
                 classes=tuple(words(caltech)), templates=tuple(many)),
        SuiteSet(name="captioned", kind="retrieval", data=(captioned,), metric="recall"),
    )  # fmt: skip
    model, transform = their_model(folder)
    ours, tokenizer, _ = load(folder)
    rows = run_suite(Evaluator(ours, tokenizer), Suite("parity", sets), ".", folder, say=print)
    theirs = (
        their_zero_shot(model, transform, cifar, prompts["classes"], prompts["templates"]),
        their_zero_shot(model, transform, caltech, words(caltech), many),
        their_retrieval(model, transform, captioned),
    )
    equal = True
    for row, numbers in zip(rows, theirs, strict=True):
        for key, value in numbers.items():
            equal &= abs(row[key] - value) * row["images"] < 0.5
            print(f"{row['name']:12s}{key:24s}ours {row[key]:.6f}  open_clip {value:.6f}  images {row['images']}")
    print("equal" if equal else "they differ")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
