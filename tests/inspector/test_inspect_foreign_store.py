"""Files of other tools on an object store: the same words as for files of this machine."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine import object_store
from pipeline.engine.cli import DONE, MISSING
from tests import samples
from tests.store import BUCKET, in_memory

TOP = f"s3://{BUCKET}"


def test_tars_and_parquet(run: Any, tmp_path: Path) -> None:
    here = tmp_path / "set"
    samples.publish(here, count=12)
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [samples.jpeg(n) for n in range(3)], "text": ["a", "b", "c"]}), sink)
    (here / "tables").mkdir()
    (here / "tables" / "a.parquet").write_bytes(sink.getvalue())
    with in_memory(str(tmp_path / "scratch")):
        for path in here.rglob("*"):
            if path.is_file():
                object_store.write(f"{TOP}/set/{path.relative_to(here).as_posix()}", path.read_bytes())
        object_store.write(f"{TOP}/set/shards/.hidden/b.tar", b"")
        object_store.write(f"{TOP}/set/notes/c.txt", b"")
        for command in (["verify"], ["verify", "--json"], ["info"], ["ls"], ["stats"]):
            for name in ("shards", "shards/00000.tar", "tables"):
                code, text, said = run(*command, f"{TOP}/set/{name}")
                assert (code, text.replace(f"{TOP}/set", str(here))) == run(*command, here / name)[:2], said
                assert code == DONE
        for name, why in {
            "notes": "holds neither manifest.json nor stages/, nor a .tar",
            "notes/c.txt": "is neither a",
        }.items():
            code, text, said = run("verify", f"{TOP}/set/{name}")
            assert (code, text) == (MISSING, "") and f"'{TOP}/set/{name}' {why}" in said
