"""Near-duplicates and evaluation images by the embeddings of a CLIP that is trained here, with a user's commands.

    python -m benchmarks.trained_embeddings train WORK FOLDER ...             a set and a model of the choosing halves
    python -m benchmarks.trained_embeddings near WORK FOLDER ... [--some 100] 13 variants of pictures it never saw
    python -m benchmarks.trained_embeddings planted WORK CALTECH101 CIFAR10   50 variants of each in another set

A picture's caption is in the .txt or the .cls (a class) with its name. A folder without captions is not trained on. The
halves are those of near_duplicates.py. WORK keeps the sets, the model and the embeddings. The pictures are served from
this machine. docs/benchmarks/near_duplicates.md shows the tables.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.decontaminate import rows_of
from benchmarks.near_duplicates import HALVES, VARIANTS, png, read_named
from pipeline import Options, build
from tests.webserver import WebServer

CHOOSING, MEASURING = HALVES[:2]
COSINES = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
PLANTED = 50  # of each evaluation set
OTHERS = 1_500  # pictures of a folder that are no evaluation images


def main() -> None:
    """Prints one table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "near", "planted"))
    parser.add_argument("work", type=Path)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--some", type=int, default=100, help="pictures of each folder with variants, for `near`")
    parser.add_argument("--epochs", type=float, default=12, help="for `train`")
    parser.add_argument("--model", default="ViT-Tiny", help="for `train`")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.what == "train":
        train(given.work, given.folders, given.model, given.epochs)
    elif given.what == "near":
        near(given.work, given.folders, given.some)
    else:
        planted(given.work, given.folders)


def clip_train(*words: object) -> None:
    """Runs a command of clip_train."""
    words = (sys.executable, "-m", "clip_train", *map(str, words))
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def make_set(out: Path, served: dict[str, bytes], texts: list[str], **options: Any) -> None:
    """Builds a set of pictures and texts that are served from this machine."""
    words = {word for text in texts for word in re.findall(r"\w+", text.lower())}
    out.parent.mkdir(parents=True, exist_ok=True)
    (out.parent / "queries.txt").write_text("\n".join(sorted(words)))
    with WebServer(served) as server:
        pairs = pa.table({"url": [f"{server.base}/img/{name}" for name in served], "text": texts})
        pq.write_table(pairs, out.parent / "pairs.parquet")
        again(out, **options)


def again(out: Path, **options: Any) -> None:
    """Builds the set, or does a part of it again."""
    fixed = {"input": (str(out.parent / "pairs.parquet"),), "queries": (str(out.parent / "queries.txt"),)}
    shape = {"min_image_side": 16, "max_aspect": 1000.0, "balance": "none", "allow_address": ("127.0.0.0/8",)}
    build(Options(output=str(out), **fixed, **shape, **options), quiet=True)


def captions(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The caption of each picture that has one."""
    found = {}
    for name in names:
        text, label = ((folder / name).with_suffix(suffix) for suffix in (".txt", ".cls"))
        if text.exists():
            found[name] = " ".join(text.read_text().split())
        elif label.exists():
            found[name] = f"a photo of a {label.read_text().strip()}"
    return found


def train(work: Path, folders: list[Path], model: str, epochs: float) -> None:
    """Trains a model on the pictures of the choosing half."""
    served, texts = {}, []
    for folder in folders:
        bodies = dict(read_named(folder, CHOOSING))
        for name, text in captions(folder, bodies).items():
            served[f"{folder.name}-{name}"] = bodies[name]
            texts.append(text)
    make_set(work / "train" / "set", served, texts)
    run = ("--epochs", epochs, "--threads", 1, "--crop-scale", 0.5, "--output", work / "run")
    clip_train("train", "--data", work / "train" / "set", "--model", model, *run)


def near(work: Path, folders: list[Path], some: int) -> None:
    """What is found of the variants, and which distinct pictures merge, by hash and by embeddings."""
    served: dict[str, bytes] = {}
    for folder in folders:
        bodies = list(read_named(folder, MEASURING))
        chosen = np.random.default_rng(0).permutation(len(bodies))[:some].tolist()
        served |= {f"{folder.name}~{place}~original": body for place, (_, body) in enumerate(bodies)}
        for place in sorted(chosen):
            image = Image.open(io.BytesIO(bodies[place][1])).convert("RGB")
            for kind, change in VARIANTS.items():
                served[f"{folder.name}~{place}~{slug(kind)}"] = png(change(image))
    out = work / "near" / "set"
    make_set(out, served, [f"picture number {number}" for number in range(len(served))], phash_distance=None)
    clip_train("embed", "--checkpoint", work / "run", "--data", out, "--output", work / "near" / "embeddings.parquet")
    print("| folder | bits | cosine |", " | ".join(VARIANTS), "| all | pictures | merged |")
    print("|---|---|---|" + "---|" * (len(VARIANTS) + 3))
    for bits in (2, None):
        for cosine in (*(() if bits is None else (None,)), *COSINES):
            table = {"embeddings": (str(work / "near" / "embeddings.parquet"),), "embedding_threshold": cosine}
            again(out, phash_distance=bits, redo="dedup-images", **(table if cosine else {}))
            for folder in folders:
                print_near(out, folder.name, bits, cosine)


def print_near(out: Path, folder: str, bits: int | None, cosine: float | None) -> None:
    """One row: the share of each variant that is in the cluster of its original, and the originals that share one."""
    merged = pq.read_table(out / "duplicates.parquet", columns=["key", "keeper"])
    keeper = dict(zip(merged["key"].to_pylist(), merged["keeper"].to_pylist(), strict=True))
    cluster: dict[tuple[str, str], str] = {}
    for uid, url in rows_of(out):
        name, place, kind = url.rpartition("/")[2].split("~")
        if name == folder:
            cluster[place, kind] = keeper.get(uid.hex(), uid.hex())
    shares = []
    for variant in VARIANTS:
        kind = slug(variant)
        made = [place for place, other in cluster if other == kind and (place, "original") in cluster]
        shares.append(np.mean([cluster[place, kind] == cluster[place, "original"] for place in made]))
    originals = [label for (_, kind), label in cluster.items() if kind == "original"]
    columns = (f"{share:.2f}" for share in (*shares, np.mean(shares)))
    count = len(originals) - len(set(originals))
    print(f"| {folder} | {bits} | {cosine} |", " | ".join(columns), f"| {len(originals):,} | {count:,} |", flush=True)


def planted(work: Path, folders: list[Path]) -> None:
    """Evaluation sets of the measuring halves of two folders; 50 of each as variants in a set of the other halves."""
    kinds = list(VARIANTS)
    served: dict[str, bytes] = {}
    sets: dict[str, dict[str, bytes]] = defaultdict(dict)
    for folder in folders:
        sets[folder.name] = {Path(name).name: body for name, body in read_named(folder, MEASURING)}
        for number, (name, body) in enumerate(list(sets[folder.name].items())[:PLANTED]):
            image = Image.open(io.BytesIO(body)).convert("RGB")
            change = kinds[number % len(kinds)]
            served[f"planted~{folder.name}~{slug(change)}~{name}.png"] = png(VARIANTS[change](image))
        for name, body in list(read_named(folder, CHOOSING))[:OTHERS]:
            served[f"other~{folder.name}~-~{Path(name).name}"] = body
    out = work / "planted" / "set"
    make_set(out, served, [f"picture number {number}" for number in range(len(served))], phash_distance=None)
    given = {"decontaminate": [], "decontaminate_embeddings": []}
    clip_train("embed", "--checkpoint", work / "run", "--data", out, "--output", work / "planted" / "ours.parquet")
    for name, bodies in sets.items():
        tar = work / "planted" / f"{name}.tar"
        write_tar(tar, bodies)
        clip_train("embed", "--checkpoint", work / "run", "--data", tar, "--output", tar.with_suffix(".parquet"))
        given["decontaminate"].append(f"{name}={tar}")
        given["decontaminate_embeddings"].append(f"{name}={tar.with_suffix('.parquet')}")
    print("| by | cosine |", " | ".join(kinds), "| found | missed | others | of these dropped |")
    print("|---|---|" + "---|" * (len(kinds) + 4))
    by_hash = {"decontaminate": tuple(given["decontaminate"])}
    ours = {"embeddings": (str(work / "planted" / "ours.parquet"),)}
    for cosine in (None, *COSINES):
        vectors = {
            **ours,
            "decontaminate_embeddings": tuple(given["decontaminate_embeddings"]),
            "decontaminate_threshold": cosine,
        }
        for hashes in ({}, by_hash) if cosine else (by_hash,):
            again(out, phash_distance=None, redo="dedup-images", **hashes, **(vectors if cosine else {}))
            print_planted(out, "hash" * bool(hashes), cosine)


def write_tar(path: Path, bodies: dict[str, bytes]) -> None:
    """A WebDataset tar of pictures."""
    with tarfile.open(path, "w") as tar:
        for name, body in bodies.items():
            for member, data in ((name, body), (f"{Path(name).stem}.txt", b"a picture")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def print_planted(out: Path, hashes: str, cosine: float | None) -> None:
    """One row: what is found of the planted variants, and what else falls."""
    fallen = set(pq.read_table(out / "contamination.parquet", columns=["key"])["key"].to_pylist())
    found: dict[str, list[bool]] = defaultdict(list)
    others = []
    for uid, url in rows_of(out):
        planted, folder, kind, name = url.rpartition("/")[2].split("~")
        if planted == "planted":
            found[kind].append(uid.hex() in fallen)
        else:
            others.append((uid.hex() in fallen, folder, name))
    shares = [f"{sum(found[slug(kind)])} of {len(found[slug(kind)])}" for kind in VARIANTS]
    every = [one for kind in found.values() for one in kind]
    wrong = [(folder, name) for fell, folder, name in others if fell]
    by = " and ".join(filter(None, (hashes, "embeddings" if cosine else "")))
    print(
        f"| {by} | {cosine} |",
        " | ".join(shares),
        f"| {sum(every)} | {len(every) - sum(every)} | {len(others):,} | {len(wrong)} |",
        flush=True,
    )
    print(*wrong[:12], file=sys.stderr)


def slug(kind: str) -> str:
    """The name of a variant as part of a URL."""
    return kind.replace(" ", "_").replace("%", "")


if __name__ == "__main__":
    main()
