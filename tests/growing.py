"""A small web and a set that grows from it, for the tests of --extend, --drop-input, --redo and forget."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import build, forget
from pipeline.dataset.open_set import open_set
from pipeline.dataset.verify import verify
from pipeline.engine import hashing, work
from tests.places import ROOT
from tests.webserver import WebServer, picture

QUERIES = ["red", "dog", "cat", "number", "blue", "tree"]
PICTURES = 24
SHARDS = "5"


@contextmanager
def small_web() -> Iterator[WebServer]:
    """A server with PICTURES pictures. Two have equal bytes, and one is nearly another one."""
    images = {f"{number:02}.jpg": picture(number) for number in range(PICTURES)}
    images["23.jpg"] = images["03.jpg"]
    images["22.jpg"] = picture(4, quality=60)
    images |= {f"{number:02}.jpg": picture(number, (200, 160)) for number in range(18, 22)}
    with WebServer(images) as server:
        yield server


class Growing:
    """A folder of inputs, and sets that are built from them."""

    def __init__(self, folder: Path, server: WebServer) -> None:
        self.folder, self.server = folder, server
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "queries.txt").write_text("\n".join(QUERIES))

    def table(self, name: str, rows: Sequence[tuple[str, str]]) -> Path:
        """An input with pairs of (path of a picture on the server, text)."""
        urls = [path if "://" in path else f"{self.server.base}/{path}" for path, _ in rows]
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"url": urls, "text": [text for _, text in rows]}), path)
        return path

    def options(self, *more: str) -> list[str]:
        """The options of a set, without --input and --output."""
        given = ["--queries", str(self.folder / "queries.txt"), "--allow-address", "127.0.0.0/8", "--workers", "1"]
        return [*given, "--fetch-rounds", "0", "--min-success", "0", "--min-image-side", "16", *more]

    def build(self, out: Path, inputs: Sequence[Path], *more: str) -> None:
        """A build with all options. It must succeed."""
        given = ["--input", *map(str, inputs), "--output", str(out), "--shards", SHARDS]
        assert build.main([*given, *self.options(*more)]) == build.DONE

    def extend(self, out: Path, inputs: Sequence[Path], *more: str) -> None:
        """Adds inputs to a set. It must succeed."""
        given = ["--input", *map(str, inputs)] if inputs else []
        steering = ["--workers", "1", "--fetch-rounds", "0", "--min-success", "0"]
        assert build.main(["--output", str(out), "--extend", *given, *steering, *more]) == build.DONE

    def fresh(self, out: Path, inputs: Sequence[Path], *more: str, like: Path | None = None) -> Path:
        """A build from nothing in another folder, with the tombstones of the folder `like`."""
        target = out.with_name(out.name + "-fresh")
        shutil.rmtree(target, ignore_errors=True)
        if like is not None and (like / "forgotten.parquet").exists():
            target.mkdir()
            (target / ".workers").touch()
            shutil.copy(like / "forgotten.parquet", target)
        self.build(target, inputs, *more)
        return target

    def hits(self) -> list[str]:
        """The pictures that were asked for since the last call, sorted."""
        found = sorted(path.removeprefix("/img/") for path in self.server.hits if path.startswith("/img/"))
        self.server.hits.clear()
        return found


TEXTS = ("a red dog number", "a blue tree", "the cat", "a red cat and a dog", "number blue number")
FILTERS = (("--min-image-side", "16"), ("--min-image-side", "200"))  # the last pictures are smaller
CAPS = ("2", "4", "20000")


class Changes:
    """A random sequence of changes of one set. Each step is compared with a build from nothing."""

    def __init__(self, folder: Path, server: WebServer, seed: int) -> None:
        self.random = random.Random(seed)
        self.growing = Growing(folder, server)
        self.out = folder / "out"
        self.inputs: list[Path] = []
        self.tables = [self._table(number) for number in range(5)]
        self.unused = [*self.tables]
        self.cap, self.filter = self.random.choice(CAPS), FILTERS[0]
        self.captions = self.random.choice("13")
        self.kept = ("sample", "all")[seed % 2]  # of the dropped rows
        self.log: list[str] = []
        self.forgets = False
        self.may_kill = True  # False: the lists of tombstones join, so a build from nothing needs the joined one

    def _table(self, number: int) -> Path:
        return self.growing.table(f"{self.random.choice('abc')}/{number}.parquet", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        rows = []
        for _ in range(self.random.randint(4, 10)):
            picture_number, host = self.random.randrange(PICTURES), self.random.choice(["127.0.0.1", "localhost"])
            base = self.growing.server.base.replace("127.0.0.1", host)
            text = f"{self.random.choice(TEXTS)} {self.random.randrange(4)}"
            rows.append((f"{base}/img/{picture_number:02}.jpg", text))
        return [*rows, ("status/404", "a dog that is gone")]

    @property
    def options(self) -> list[str]:
        return ["--cap", self.cap, *self.filter, "--captions", self.captions, "--keep-rejected", self.kept]

    def run(self, steps: int) -> None:
        """The first build, and some changes."""
        self.inputs = [self.unused.pop()]
        self.growing.build(self.out, self.inputs, *self.options)
        for _ in range(steps):
            changes = [self.add, self.add, self.join, self.join, self.drop, self.exchange, self.balance, self.shape]
            changes += [self.forget, self.move]
            command = self.random.choice(changes)()
            if command is None:
                continue
            before = published(self.out)
            self.log.append(" ".join(command))
            if not self.may_kill:  # only now OUT has the joined list
                assert build.main(command) == build.DONE, self.log
            new = self.growing.fresh(self.out, self.inputs, *self.options, like=self.out)
            if self.random.random() < 0.5 and self.may_kill:
                self.kill(command, before, published(new))
            assert build.main(command) == build.DONE, self.log
            self.may_kill = True
            assert differences(self.out, new) == [], self.log
            assert self.digests(self.out) == self.digests(new), self.log
            assert list(verify(str(self.out), stages=True)) == [], self.log

    def digests(self, out: Path) -> dict[str, tuple[str, int]]:
        """Without that of gather where pairs were forgotten: it did not keep the hashes of its rows."""
        found = stage_digests(out)
        return {name: value for name, value in found.items() if name != "gather" or not self.forgets}

    def command(self, *more: str) -> list[str]:
        steering = ["--workers", "1", "--fetch-rounds", "0", "--min-success", "0"]
        return ["--output", str(self.out), *more, *steering]

    def kill(self, command: Sequence[str], before: dict[str, bytes], after: dict[str, bytes]) -> None:
        """Runs the command in a process that is killed somewhere. The old set is there then, or the new one."""
        count = str(self.random.randint(1, 450))
        self.log.append(f"kill {count}")
        run = [sys.executable, "-m", "tests.serial_build", count, *command]
        found = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert found.returncode in (0, -signal.SIGKILL), found.stderr
        work.settle(str(self.out))
        there = published(self.out)
        assert there in (before, after), (self.log, [name for name in there if there[name] != before.get(name)])

    def add(self) -> list[str] | None:
        more = [self.unused.pop()] if self.unused else []
        if not more:
            return None
        again = self.random.sample(self.inputs, 1) if self.random.random() < 0.3 else []
        self.inputs = [*self.inputs, *more]
        return self.command("--extend", "--input", *map(str, [*more, *again]))

    def join(self) -> list[str] | None:
        """Another set becomes part of this one. It may have an input of this one, and it may have forgotten pairs.

        Its stages may be gone, as in a copy of what it has published.
        """
        if not self.unused:
            return None
        shared = self.random.sample(self.inputs, 1) if self.random.random() < 0.3 else []
        other, more = self.out.with_name(f"other-{len(self.log)}"), [self.unused.pop()]
        options = [*self.options, "--cap", self.random.choice(CAPS)]
        self.growing.build(other, [*more, *shared], *options)
        if self.random.random() < 0.5:
            self._forget_in(other)
        self.may_kill = not any((out / "forgotten.parquet").exists() for out in (self.out, other))
        if self.random.random() < 0.5 and open_set(other).shards:
            shutil.rmtree(other / "stages")
            more = [other]
        self.inputs = [*self.inputs, *more]
        return self.command("--extend", "--input", str(other))

    def move(self) -> list[str] | None:
        """A set that was joined lies elsewhere now, under another name."""
        sets = [path for path in self.inputs if path.is_dir()]
        if not sets:
            return None
        old = self.random.choice(sets)
        moved = old.with_name(f"moved-{len(self.log)}")
        old.rename(moved)
        self.inputs = [moved if path == old else path for path in self.inputs]
        return self.command("--extend", "--input", str(moved))

    def exchange(self) -> list[str] | None:
        """One command takes an input out and another one in, or the same one with other rows."""
        gone = self.random.choice(self.inputs)
        if gone.is_dir():
            return None
        if not self.unused or self.random.random() < 0.5:
            self.growing.table(str(gone.relative_to(self.growing.folder)), self._rows())
            return self.command("--extend", "--drop-input", str(gone), "--input", str(gone))
        new = self.unused.pop()
        self.unused.insert(0, gone)
        self.inputs = [*(path for path in self.inputs if path != gone), new]
        return self.command("--extend", "--drop-input", str(gone), "--input", str(new))

    def drop(self) -> list[str] | None:
        if len(self.inputs) < 2:
            return None
        gone = self.random.choice(self.inputs)
        self.inputs.remove(gone)
        if gone.is_file():
            self.unused.append(gone)
        return self.command("--drop-input", str(gone))

    def balance(self) -> list[str]:
        self.cap = self.random.choice(CAPS)
        return self.command("--extend", "--redo", "balance", "--cap", self.cap)

    def shape(self) -> list[str]:
        self.filter = self.random.choice(FILTERS)
        return self.command("--extend", "--redo", "dedup-images", *self.filter)

    def forget(self) -> list[str] | None:
        if not self._forget_in(self.out):
            return None
        return self.command("--extend") if self.random.random() < 0.5 else self.command("--extend", "--redo", "balance")

    def _forget_in(self, out: Path) -> bool:
        """A pair is forgotten, unless the set has few pairs."""
        rows = open_set(out).table().to_pylist()
        if len(rows) < 5:
            return False
        row = self.random.choice(rows)
        kind = self.random.choice(["url", "uid", "sha256"])
        value = [row["original_sha256"] if kind == "sha256" else row[kind]]
        if kind == "uid" and len(row["texts"]) > 1:  # a text that another pair brought
            value = uids_of(self.tables, row["texts"][1])
        self.log.append(f"forget {kind} {' '.join(value)}")
        self.forgets = True
        assert forget.main([str(out), *(word for one in value for word in (f"--{kind}", one))]) == 0
        left = open_set(out).table().to_pylist()
        assert sum(len(row["texts"]) for row in left) < sum(len(row["texts"]) for row in rows), self.log
        assert list(verify(str(out), stages=True)) == [], self.log
        return True


def uids_of(inputs: Sequence[Path], text: str) -> list[str]:
    """The uids of the pairs of the inputs that have a text."""
    found = pa.concat_tables([pq.read_table(path, columns=["url", "text"]) for path in inputs])
    found = found.filter(pc.equal(found["text"], text)).combine_chunks()
    return [uid.hex() for uid in hashing.pair_keys(found["url"], found["text"]).uid.to_pylist()]


def manifest(out: Path) -> dict[str, Any]:
    """manifest.json, without its checksum."""
    return {name: value for name, value in json.loads((out / "manifest.json").read_text()).items()}


def published(out: Path) -> dict[str, bytes]:
    """The bytes of all published files, and of the manifest."""
    listed = [entry["path"] for entry in manifest(out)["files"]]
    return {path: (out / path).read_bytes() for path in [*listed, "manifest.json"]}


def differences(out: Path, other: Path) -> list[str]:
    """The published files of two sets that are not equal."""
    one, two = published(out), published(other)
    return sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))


def stage_digests(out: Path) -> dict[str, tuple[str, int]]:
    """The digest of the rows of each stage, and their number."""
    infos = [json.loads(path.read_text()) for path in sorted((out / "stages").glob("*/info.json"))]
    return {info["stage"]: (info["digest"], info["rows_out"]) for info in infos}
