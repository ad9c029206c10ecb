"""The class names of evaluation sets, for the opt-in file benchmarks.parquet. No other part of the list uses them."""

from __future__ import annotations

import json
from pathlib import Path

# Class names that are no names of things ("very nearby", "negative", digits) are no queries.
LEFT_OUT = frozenset(
    {
        *("clevr_count_all", "clevr_closest_object_distance", "kitti_closest_vehicle_distance", "dmlab"),
        *("mnist", "svhn", "fer2013", "pcam", "diabetic_retinopathy", "gtsrb"),
    }
)
TENSORFLOW = ("image_classification/sun397_labels.txt", "image_classification/food-101_classes.txt")


def class_names(packages: dict[str, Path]) -> list[str]:
    """The names as prompts have them: those of CLIP_benchmark (MIT), and of tensorflow-datasets (Apache-2.0)."""
    sets = json.loads((packages["clip-benchmark"] / "clip_benchmark/datasets/en_classnames.json").read_text())
    found = [name for key, names in sets.items() if key not in LEFT_OUT for name in names]
    for path in TENSORFLOW:
        for line in (packages["tensorflow-datasets"] / "tensorflow_datasets" / path).read_text().splitlines():
            found += _forms(line.strip())
    return list(dict.fromkeys(name for name in found if name))


def _forms(label: str) -> list[str]:
    """For "/a/apartment_building/outdoor": "apartment building outdoor" and the other order."""
    parts = label.replace("_", " ").split("/")
    parts = parts[2:] if label.startswith("/") else parts
    return [" ".join(parts), " ".join(reversed(parts))]
