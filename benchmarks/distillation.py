"""Does a teacher help? Students with and without `--distill` at equal samples on real pictures.

    python benchmarks/distillation.py openclipart_96px.tar noto_emoji_72px.tar --steps 200

Every tenth pair is held out for retrieval (optimizers.py). The teacher trains for --teacher-steps, and `embed --texts`
writes its table. Students of the same seed have the same weights at the start and the same batches. A line of each run
is appended to --output, and a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.optimizers import split  # noqa: E402
from clip_train.config import TrainOptions  # noqa: E402
from clip_train.evaluate import embed, retrieval, zero_shot  # noqa: E402
from clip_train.training import train  # noqa: E402
from clip_train.use import load  # noqa: E402


def one_run(options: TrainOptions, held_out: Path, given: argparse.Namespace) -> dict:
    """Trains and evaluates."""
    began = time.process_time()
    train(options)
    spent = time.process_time() - began
    model, tokenizer, _ = load(options.output)
    found = retrieval(model, tokenizer, str(held_out))
    row = {
        "weight": options.distill_weight if options.distill else 0.0, "seed": options.seed, "steps": options.steps,
        "recall@10": (found["image_to_text_recall@10"] + found["text_to_image_recall@10"]) / 2,
        "held_out": found["images"], "cpu_ms_a_step": 1000 * spent / (options.steps or 1),
    }  # fmt: skip
    if given.zero_shot:
        row["top1"] = zero_shot(model, tokenizer, given.zero_shot, classes=given.classes)["top1"]
    return row


def main() -> None:
    """Prints a line a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", nargs="+")
    parser.add_argument("--model", default="ViT-Tiny")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--teacher-steps", type=int, default=800)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--zero-shot")
    parser.add_argument("--classes")
    parser.add_argument("--output", type=Path, default=Path("distillation.jsonl"))
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.output.read_text().splitlines()] if given.output.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        data, held_out = split(given.tars, Path(folder))
        common = TrainOptions(
            data=str(data), model=given.model, batch_size=128, lr=2e-3, crop_scale=0.5, save_every=0, threads=1,
            log_to=("none",), optimizer="muon",
        )  # fmt: skip

        def keep(row: dict) -> None:
            with open(given.output, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)

        teacher = dataclasses.replace(common, output=f"{folder}/teacher", seed=100, steps=given.teacher_steps)
        keep({"teacher": True, **one_run(teacher, held_out, given)})
        model, tokenizer, _ = load(teacher.output)
        embed(model, tokenizer, str(data), f"{folder}/teacher.parquet", texts=True)
        for seed in range(given.seeds):
            for weight in given.weights:
                if any((row["seed"], row["weight"], row["steps"]) == (seed, weight, given.steps) for row in rows):
                    continue
                taught = {"distill": f"{folder}/teacher.parquet", "distill_weight": weight} if weight else {}
                output = f"{folder}/{seed}-{weight}"
                keep(one_run(
                    dataclasses.replace(common, output=output, seed=seed, steps=given.steps, **taught), held_out, given
                ))  # fmt: skip


if __name__ == "__main__":
    main()
