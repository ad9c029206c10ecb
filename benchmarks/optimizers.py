"""AdamW against Muon at equal samples on real pictures: same pairs, same order, same weights at the start.

    python benchmarks/optimizers.py openclipart_96px.tar noto_emoji_72px.tar --zero-shot cifar10.tar --classes names.txt

Of each tar every tenth pair is held out for retrieval. Each optimizer runs at each rate with the first seed. Then it
runs with the other seeds at its best rate, by the loss of the last steps. A line of each run is appended to --output,
and a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from clip_train.config import TrainOptions  # noqa: E402
from clip_train.evaluate import retrieval, zero_shot  # noqa: E402
from clip_train.training import train  # noqa: E402
from clip_train.use import load  # noqa: E402

LAST = 50  # steps whose losses are averaged


def split(tars: list[str], folder: Path) -> tuple[Path, Path]:
    """Copies the pairs into a folder to train on and one that is held out."""
    places = folder / "train", folder / "held-out"
    for number, path in enumerate(tars):
        with tarfile.open(path) as source:
            members = [member for member in source if member.isfile() and not member.name.endswith(".json")]
            keys = list(dict.fromkeys(member.name.partition(".")[0] for member in members))
            held = set(keys[::10])
            for place, wanted in zip(places, (False, True), strict=True):
                place.mkdir(exist_ok=True)
                with tarfile.open(place / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                    for member in members:
                        if (member.name.partition(".")[0] in held) == wanted:
                            tar.addfile(member, source.extractfile(member))
    return places


def one_run(options: TrainOptions, held_out: Path, given: argparse.Namespace) -> dict:
    """Trains and evaluates."""
    losses: list[float] = []
    began = time.process_time()
    train(options, on_step=lambda line: losses.append(line["loss"]))
    spent = time.process_time() - began
    model, tokenizer, _ = load(options.output)
    found = retrieval(model, tokenizer, str(held_out))
    row = {
        "optimizer": options.optimizer, "lr": options.lr, "seed": options.seed, "steps": len(losses),
        "loss": statistics.fmean(losses[-LAST:]), "cpu_ms_a_step": 1000 * spent / len(losses),
        "recall@10": (found["image_to_text_recall@10"] + found["text_to_image_recall@10"]) / 2,
        "held_out": found["images"],
    }  # fmt: skip
    if given.zero_shot:
        result = zero_shot(model, tokenizer, given.zero_shot, classes=given.classes, templates=given.templates)
        row["top1"] = result["top1"]
    return row


def main() -> None:
    """Prints a line a run and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", nargs="+")
    parser.add_argument("--model", default="ViT-Tiny")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--zero-shot")
    parser.add_argument("--classes")
    parser.add_argument("--templates")
    parser.add_argument("--output", type=Path, default=Path("optimizers.jsonl"))
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.output.read_text().splitlines()] if given.output.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        data, held_out = split(given.tars, Path(folder))

        def result(optimizer: str, lr: float, seed: int) -> dict:
            wanted = (optimizer, lr, seed, given.steps)
            for row in rows:
                if (row["optimizer"], row["lr"], row["seed"], row["steps"]) == wanted:
                    return row
            options = TrainOptions(
                data=str(data), output=f"{folder}/{optimizer}-{lr}-{seed}", model=given.model, optimizer=optimizer,
                lr=lr, seed=seed, steps=given.steps, batch_size=given.batch_size, crop_scale=0.5, save_every=0,
                threads=1, log_to=("none",),
            )  # fmt: skip
            rows.append(one_run(options, held_out, given))
            with open(given.output, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
            return rows[-1]

        for lr in given.rates:
            for optimizer in ("adamw", "muon"):
                result(optimizer, lr, 0)
        best = {
            name: min((result(name, lr, 0) for lr in given.rates), key=lambda row: row["loss"])["lr"]
            for name in ("adamw", "muon")
        }
        for seed in range(1, given.seeds):
            for optimizer in ("adamw", "muon"):
                result(optimizer, best[optimizer], seed)
    print("\n| optimizer | lr | seeds | loss | recall@10 | top-1 | CPU ms a step |\n|---|---|---|---|---|---|---|")
    for (optimizer, lr), count in Counter((row["optimizer"], row["lr"]) for row in rows).items():
        some = [row for row in rows if (row["optimizer"], row["lr"]) == (optimizer, lr)]
        values = [
            " ".join(f"{row[name] * by:.{digits}f}" for row in some if name in row)
            for name, by, digits in (("loss", 1, 3), ("recall@10", 100, 1), ("top1", 100, 1), ("cpu_ms_a_step", 1, 0))
        ]
        print(f"| {optimizer} | {lr:g} | {count} | {' | '.join(values)} |")


if __name__ == "__main__":
    main()
