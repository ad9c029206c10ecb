"""Small shards, vocabularies and runs for the tests of clip_train. All of these tests need torch."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

CAPTIONS = (
    "a red square on the left",
    "two blue circles, one large and one small",
    "photo of a green triangle",
    "the yellow star is bright",
    "purple ring",
    "it's an orange cross in the middle of a dark field under a sky with 12 stars and a moon",
)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker `slow`."""
    config.addinivalue_line("markers", "slow: takes more than a few seconds; run with -m slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips slow tests unless -m requests them."""
    if "slow" in config.getoption("-m"):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.fixture(autouse=True)
def _one_thread():
    torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")
    torch.set_num_threads(1)


def forks() -> Any:
    """A context of multiprocessing whose processes are forks of one that has loaded torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clip_train.training", "clip_train.suite_run", "pytest"])
    return context


def in_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Runs function(rank, *arguments) as ranks 0 and 1. An exception of one is raised here."""
    import torch

    forks()
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")


def jpeg(number: int, *, size: tuple[int, int] = (40, 32)) -> bytes:
    """A picture that is different for each number."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(number)
    pixels = np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> list[int]:
    """Writes a USTAR archive. Returns the offset of each member's bytes."""
    offsets = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            offsets.append(tar.offset - (len(data) + 511) // 512 * 512)
    return offsets


def sample_members(number: int, *, labelled: bool = False) -> list[tuple[str, bytes]]:
    """Members of one sample of a plain WebDataset."""
    key, caption = f"{number:06d}", f"{CAPTIONS[number % len(CAPTIONS)]} {number}"
    members = [(f"{key}.jpg", jpeg(number)), (f"{key}.txt", caption.encode())]
    return members + ([(f"{key}.cls", str(number % 3).encode())] if labelled else [])


def write_teacher(path: Path, keys: Sequence[str], *, width: int = 12, seed: int = 0) -> None:
    """A table in the form of `embed --texts`, with random vectors."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, columns = np.random.default_rng(seed), {"key": pa.array(keys, pa.string())}
    for name in ("embedding", "text_embedding"):
        numbers = rng.normal(size=len(keys) * width).astype(np.float32)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(numbers), width)
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def tars(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of plain tars: tars(samples=48, shards=3)."""

    def make(*, samples: int = 48, shards: int = 3, labelled: bool = False, name: str = "tars") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for shard in range(shards):
            numbers = range(shard * samples // shards, (shard + 1) * samples // shards)
            members = [member for number in numbers for member in sample_members(number, labelled=labelled)]
            write_tar(folder / f"{shard:05d}.tar", members)
        return folder

    return make


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Path]:
    """Makes folders in the form that the pipeline publishes."""

    def make(
        *,
        samples: int = 48,
        shards: int = 3,
        name: str = "published",
        numbers: Sequence[int] | None = None,
        digits: int = 5,
        texts: Callable[[int], list[str]] | None = None,
    ) -> Path:
        """`numbers`: of the shards, ascending, with gaps; `digits`: of a number in a name; `texts`: of a sample."""
        import hashlib

        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = tmp_path / name
        (folder / "shards").mkdir(parents=True)
        (folder / "metadata").mkdir()
        numbers = range(shards) if numbers is None else numbers
        shards = len(numbers)
        for at, shard in enumerate(numbers):
            rows, members = [], []
            for number in range(at * samples // shards, (at + 1) * samples // shards):
                key, caption = f"{shard:05d}{number:05d}", f"{CAPTIONS[number % len(CAPTIONS)]} {number}"
                named = {"texts": texts(number)} if texts else {}
                caption = texts(number)[0] if texts else caption
                record = json.dumps({"key": key, "caption": caption, **named}).encode()
                members += [(f"{key}.jpg", jpeg(number)), (f"{key}.json", record), (f"{key}.txt", caption.encode())]
                rows.append({"key": key, "shard": shard, "sha256": hashlib.sha256(jpeg(number)).hexdigest(),
                             "width": 40, "height": 32, "keep_probability": 0.5, **named})  # fmt: skip
            offsets = write_tar(folder / "shards" / f"{shard:0{digits}d}.tar", members)
            for row, place in enumerate(range(0, len(members), 3)):
                for kind, member in (("jpg", place), ("json", place + 1), ("txt", place + 2)):
                    rows[row] |= {f"{kind}_offset": offsets[member], f"{kind}_size": len(members[member][1])}
            table = pa.Table.from_pylist(rows)
            pq.write_table(table, folder / "metadata" / f"{shard:0{digits}d}.parquet", write_page_checksum=True)
        write_manifest(folder, captions=8 if texts else 1)
        return folder

    return make


def write_manifest(folder: Path, *, captions: int = 1) -> None:
    """Writes manifest.json for the files that are there."""
    files = sorted(path for kind in ("shards", "metadata") for path in (folder / kind).iterdir())
    entries = [{"path": str(path.relative_to(folder)), "bytes": path.stat().st_size} for path in files]
    (folder / "manifest.json").write_text(json.dumps({"files": entries, "options": {"captions": captions}}))


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    """A vocabulary learned from the captions of the tests."""
    from clip_train.bpe import count_words, learn_merges
    from clip_train.tokenizer import write_merges

    path = tmp_path / "bpe.txt.gz"
    write_merges(path, learn_merges(count_words(CAPTIONS * 2), merges=300))
    return path


def formula(name: str, shape: Sequence[int]):
    """Weights that depend only on their name and their place. The golden numbers were made with the same weights."""
    import numpy as np
    import torch

    count = int(np.prod(shape)) if len(shape) else 1
    seed = zlib.crc32(name.encode()) % 1000
    draws = np.modf(np.abs(np.sin(np.arange(count) * 12.9898 + seed * 78.233) * 43758.5453))[0]
    values = (draws - 0.5) * 2
    if name.endswith("running_var"):
        values = 1 + 0.5 * values
    elif len(shape) == 1:
        values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    elif len(shape) > 1:
        values = values * 2.2 * float(np.prod(shape[1:])) ** -0.5
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def fill(model) -> None:
    """Fills a model's state by `formula`. logit_scale and counters keep their values."""
    state = model.state_dict()
    model.load_state_dict({name: formula(name, value.shape) if value.ndim else value for name, value in state.items()})
