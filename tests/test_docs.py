"""The pages say what is so: their commands and examples run, their column reference is that of the schemas.

A fenced block is run unless a comment above it says why not:

    <!-- not run: network -->        or cluster, GPU, long, a synopsis; more words may follow
    <!-- needs: torch -->            run where the module is installed
    <!-- file: PATH -->              the block is written to that file of a copy of the checkout
    <!-- change: PATH -->            a diff that is applied there; each changed line stands there once

`sh` goes through bash, `python` through Python, as scripts in one folder a page; `text` shows pictures and output.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import os
import pkgutil
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

import pipeline.stages
from pipeline import schema
from pipeline.dataset import sample_json, shards
from pipeline.demo import smallweb
from pipeline.fetching.errors import RETRYABLE
from pipeline.options import COMMAND_LINE
from pipeline.sources import warc
from pipeline.stages import (
    attempts,
    balance,
    caps,
    cluster_texts,
    dedup_exchange,
    fetch,
    fetched_rules,
    gather,
    near_exchange,
    robots_archive,
    row_pass,
    selection,
)
from pipeline.text import clean
from queries import load
from tests import samples
from tests.places import ROOT

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]
WITH_THE_README = ("README.md", "docs/inspecting.md", "docs/growing.md")
REASONS = ("network", "cluster", "GPU", "long", "a synopsis")
COMMAND = re.compile(r"(\$ )?(\S*python3?|make|sh|bash|openwit-\w+|pip|uv) \S")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and the comment above it."""

    page: str
    line: int
    language: str
    text: str
    kind: str  # of the comment: "not run", "needs", "file", "change"; "" where there is none
    note: str


def blocks(page: str) -> list[Block]:
    lines = (ROOT / page).read_text().splitlines()
    found, start = [], None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        comment = re.fullmatch(r"<!-- ([a-z ]+): (.+) -->", lines[start - 1])
        kind, note = comment.groups() if comment else ("", "")
        body = "\n".join(lines[start + 1 : number]) + "\n"
        found.append(Block(page, start + 1, lines[start].removeprefix("```").strip(), body, kind, note))
        start = None
    assert start is None, f"{page}:{start}: the block has no end"
    return found


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_run_or_says_why_not(page: str) -> None:
    for block in blocks(page):
        where = f"{page}:{block.line}"
        assert block.language in ("sh", "python", "diff", "yaml", "text"), f"{where}: a language is missing"
        assert block.kind in ("", "not run", "needs", "file", "change"), where
        assert block.kind != "not run" or block.note.startswith(REASONS), f"{where}: {block.note}"
        assert (block.language == "diff") == (block.kind == "change"), where
        if block.language == "text" and block.kind != "not run":
            assert not any(COMMAND.match(line) for line in block.text.splitlines()), f"{where}: commands are `sh`"


def run_blocks(page: str, folder: Path, **variables: str) -> None:
    """Runs the blocks of a page in a folder, one after the other."""
    for block in blocks(page):
        if block.kind == "not run" or block.kind == "needs" and importlib.util.find_spec(block.note) is None:
            continue
        if block.kind == "file":
            (folder / block.note).write_text(block.text)
        elif block.kind == "change":
            change(folder / block.note, block)
        elif block.language in ("sh", "python"):
            run(block, folder, variables)
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), f"{page}:{block.line}"


def run(block: Block, folder: Path, variables: dict[str, str]) -> None:
    script = folder / f"block-{block.line}.{block.language}"
    script.write_text(block.text)
    command = ["bash", "-euo", "pipefail"] if block.language == "sh" else [sys.executable]
    made = subprocess.run(
        [*command, script.name],
        cwd=folder,
        env={**os.environ, "OPENWIT_PROGRESS": "0", **variables},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, f"{block.page}:{block.line}\n{made.stdout}\n{made.stderr}"


def change(path: Path, block: Block) -> None:
    """Applies a diff without line numbers: the lines of the old side that follow each other stand there once."""
    lines = [line for line in block.text.splitlines() if line]
    text = path.read_text()
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
    if old in text:
        assert text.count(old) == 1, f"{block.page}:{block.line}"
        path.write_text(text.replace(old, new))
        return
    for group in re.split(
        r"(?<=\n)(?=[ -])", "".join(f"{line}\n" for line in lines)
    ):  # an old line, and what it becomes
        first, *more = group.splitlines()
        assert text.count(first[1:] + "\n") == 1, f"{block.page}:{block.line}: {first!r} does not stand there once"
        kept = [first[1:]] if first[0] == " " else []
        text = text.replace(first[1:] + "\n", "".join(f"{line}\n" for line in [*kept, *(line[1:] for line in more)]))
    path.write_text(text)


def put_on_path(folder: Path, name: str) -> None:
    """A command of the folder's own that is this Python."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (folder / name).chmod(0o755)


def test_the_readme(tmp_path: Path) -> None:
    """Its commands, in its order, on an archive of the small web; then those of the pages that use its set."""
    smallweb.write_warc(smallweb.draw("http://127.0.0.1:9", pages=4), str(tmp_path / "crawl.warc.gz"), pictures=200)
    for name in (".venv/bin/python", "bin/python"):
        put_on_path(tmp_path, name)
    for page in WITH_THE_README:
        run_blocks(page, tmp_path, PYTHONPATH=str(ROOT), PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert (tmp_path / "my-set" / "manifest.json").exists() and (tmp_path / "rows.parquet").exists()


@pytest.mark.parametrize("page", [page for page in PAGES if page not in (*WITH_THE_README, "CONTRIBUTING.md")])
def test_the_other_pages(page: str, tmp_path: Path) -> None:
    put_on_path(tmp_path, "bin/python")
    run_blocks(page, tmp_path, PYTHONPATH=str(ROOT), PATH=f"{tmp_path}/bin:{os.environ['PATH']}")


def test_the_flags_of_the_readme_exist() -> None:
    (synopsis,) = [block for block in blocks("README.md") if block.note.startswith("a synopsis (the test")]
    flags = {flag for action in COMMAND_LINE.parser()._actions for flag in action.option_strings}
    named = set(re.findall(r"--[a-z-]+", synopsis.text))
    assert len(named) > 10 and named <= flags


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a contributor changes, with the kernels that are compiled already."""
    folder = tmp_path / "checkout"
    for name in ("pipeline", "queries", "clip_train", "tools", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy2(ROOT / "Makefile", folder)
    put_on_path(folder, "bin/python")
    return folder


def test_contributing(checkout: Path) -> None:
    """The page, step by step: the new stage moves no row of the others, the new rule and the new model work."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{checkout}/bin:{os.environ['PATH']}"
    run_blocks("CONTRIBUTING.md", checkout, PYTHONPATH=str(checkout), PATH=path, OPENWIT_DEMO_PORT=str(port))
    lines = {line.split()[1]: line.split()[2:] for line in (checkout / "after.txt").read_text().splitlines()}
    assert list(lines)[:3] == ["gather", "noop", "match"]
    gathered = lines["gather"]
    assert lines["noop"] == [gathered[1], gathered[1], gathered[2]]  # rows in, rows out, digest
    assert (checkout / "before.txt").read_text().count("\n") == len(lines) - 1 == 9


# -------------------------------------------------------------------------------------------- the column reference

TYPES = {"float": "float32", "list<item: int32>": "list<int32>", "list<item: string>": "list<string>"}
# Heading -> the schema, and the columns that stand under another heading already.
TABLES = {
    "CANDIDATES": (schema.CANDIDATES, pa.schema([])),
    "ARCHIVED_IMAGES": (warc.ARCHIVED_IMAGES, pa.schema([])),
    "IMAGES": (gather.IMAGES, pa.schema([])),
    "PAIRS": (schema.PAIRS, pa.schema([])),
    "GATHERED_PART": (row_pass.GATHERED_PART, schema.PAIRS),
    "MATCHED": (schema.MATCHED, schema.PAIRS),
    "MATCHED_PART": (row_pass.MATCHED_PART, schema.MATCHED),
    "KEYS": (row_pass.KEYS, pa.schema([])),
    "TEXTS": (dedup_exchange.TEXTS, pa.schema([])),
    "DROPS": (dedup_exchange.DROPS, pa.schema([])),
    "LINKS": (dedup_exchange.LINKS, pa.schema([])),
    "TAKEN": (dedup_exchange.TAKEN, pa.schema([])),
    "OVERLAY": (dedup_exchange.OVERLAY, pa.schema([])),
    "OFFERED": (cluster_texts.OFFERED, pa.schema([])),
    "CLUSTER_OVERLAY": (cluster_texts.CLUSTER_OVERLAY, pa.schema([])),
    "DEDUPED": (schema.DEDUPED, schema.MATCHED),
    "BAND": (caps.BAND, pa.schema([])),
    "SELECTED": (schema.SELECTED, schema.DEDUPED),
    "PICKED": (balance.PICKED, pa.schema([])),
    "SELECTED_PART": (fetch.SELECTED_PART, schema.SELECTED),
    "FETCHED": (schema.FETCHED, schema.SELECTED),
    "FETCHED_PART": (attempts.FETCHED_PART, schema.FETCHED),
    "FETCHED_OK": (row_pass.FETCHED_OK, schema.FETCHED),
    "SITES": (fetch.SITES, pa.schema([])),
    "ROBOTS_PLACES": (robots_archive.ROBOTS_PLACES, pa.schema([])),
    "ROBOTS_ANSWERS": (robots_archive.ROBOTS_ANSWERS, pa.schema([])),
    "HASHES": (near_exchange.HASHES, pa.schema([])),
    "VECTORS": (near_exchange.VECTORS, pa.schema([])),
    "SIMILAR": (near_exchange.SIMILAR, pa.schema([])),
    "REPLACED": (near_exchange.REPLACED, pa.schema([])),
    "REJECTED": (schema.REJECTED, pa.schema([])),
    "METADATA": (shards.METADATA, pa.schema([])),
    "QUERIES": (load.QUERIES, pa.schema([])),
    "DUPLICATES": (schema.DUPLICATES, pa.schema([])),
    "CONTAMINATION": (schema.CONTAMINATION, pa.schema([])),
    "rejected/*.parquet": (schema.PUBLISHED_REJECTED, pa.schema([])),
}
INSIDE = {
    "OUTCOMES": "what a fetch takes from earlier ones; it is written as FETCHED_PART",
    "PASSED": "a batch on its way within one pass; it is never written",
    "HASHED": "the hashes of evaluation images",
    "FOUND": "CONTAMINATION with uid in the place of key, of one unit",
    "NAMES": "of evaluation images, beside their embeddings",
    "EVALUATED": "the cells of the embeddings of evaluation images",
    "DROPPED": "what `forget` reads of the rows that dedup-images dropped before it compared them",
}
OTHERS = {"The JSON of a sample", "manifest.json"}


def reference() -> dict[str, list[list[str]]]:
    """Heading -> the cells of its table."""
    text = (ROOT / "docs/architecture.md").read_text().partition("# Column reference")[2]
    found = {}
    for section in text.split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        rows = [line for line in body.splitlines() if line.startswith("| ")][1:]
        found[heading] = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return found


def type_of(field: pa.Field) -> str:
    name = str(field.type)
    return TYPES.get(name) or re.sub(r"fixed_size_binary\[(\d+)\]", r"binary(\1)", name)


def test_the_reference_has_a_section_for_each_table_and_no_other() -> None:
    assert set(reference()) == {*TABLES, *OTHERS}


@pytest.mark.parametrize("heading", TABLES)
def test_the_columns_are_those_of_the_schema(heading: str) -> None:
    table, base = TABLES[heading]
    assert [*table][: len(base)] == [*base]
    rows = reference()[heading]
    wanted = [(field.name, type_of(field), field.nullable) for field in [*table][len(base) :]]
    assert [(name, kind, null != "no") for name, kind, _, null, _ in rows] == wanted
    assert all(len(row) == 5 and row[3] and row[4] for row in rows)


def test_no_table_is_left_out() -> None:
    modules = [schema, shards, load, warc, *map(importlib.import_module, stage_modules())]
    known = {str(table) for table, _ in TABLES.values()}
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, pa.Schema) and name not in INSIDE:
                assert str(value) in known, f"{module.__name__}.{name}"


def stage_modules() -> Iterator[str]:
    for found in pkgutil.iter_modules(pipeline.stages.__path__):
        yield f"pipeline.stages.{found.name}"


def test_the_json_of_a_sample(tmp_path: Path) -> None:
    rows = reference()["The JSON of a sample"]
    assert [row[0] for row in rows] == list(shards.JSON_KEYS)
    nulls = shards.METADATA.empty_table().append_column("x", pa.array([], pa.int8())).select(shards.METADATA.names)
    empty = {
        field.name: None if field.nullable else {"string": "", "float": 0.5}.get(str(field.type), 0)
        for field in nulls.schema
    }
    lists = {field.name: [] for field in shards.METADATA if pa.types.is_list(field.type)} | {"texts": ["a", "b"]}
    table = pa.Table.from_pylist([empty | lists], shards.METADATA)
    (made,) = [eval(text) for text in sample_json.sample_json(table, shards.JSON_KEYS).to_pylist()]  # digits and quotes
    kinds = {str: "string", int: "integer", float: "number", list: "list of strings"}
    for name, kind, _, null, _ in rows:
        assert kinds[type(made[name])] == kind, name
        field = shards.METADATA.field("text" if name == "caption" else name)
        assert bool(null) == field.nullable, name
        if null:
            assert str(made[name]) == null.strip('"'), name


def test_the_keys_of_the_manifest(tmp_path: Path) -> None:
    manifest = samples.publish(tmp_path)
    assert [row[0] for row in reference()["manifest.json"]] == list(manifest)


# ------------------------------------------------------------------------------------------------- drops and losses


def table_of(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of docs/data.md, without marks."""
    text = (ROOT / "docs/data.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def reasons_of(stage: str) -> set[str]:
    return {row[1] for row in table_of("Why a row is dropped") if row[0] == stage}


def literals(method: str) -> set[str]:
    """The texts that stand as a first argument of calls of a method of the ledger, or in brackets behind its name."""
    found: set[str] = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            given: ast.AST | None = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
                given = node.args[0] if node.args else None
            elif isinstance(node, ast.Subscript) and getattr(node.value, "attr", "") == method:
                given = node.slice
            if isinstance(given, ast.IfExp):
                found |= {part.value for part in (given.body, given.orelse) if isinstance(part, ast.Constant)}
            elif isinstance(given, ast.Constant) and isinstance(given.value, str):
                found.add(given.value)
    return found


def test_each_reason_of_a_drop_is_explained() -> None:
    rows = table_of("Why a row is dropped")
    assert {row[0] for row in rows} <= set(schema.STAGES) and len({(row[0], row[1]) for row in rows}) == len(rows)
    assert all(len(row) == 3 and row[2].count(".") for row in rows)
    assert reasons_of("dedup") == set(selection.DUPLICATE_REASONS[1:])
    assert reasons_of("dedup-images") == {*fetched_rules.REASONS[1:], *near_exchange.REASONS[1:]}
    assert reasons_of("fetch") == set(RETRYABLE)
    assert reasons_of("gather") >= {*clean.TEXT_REASONS[1:], *clean.URL_REASONS[1:]}
    found = literals("drop") | literals("drop_some") | literals("dropped")
    assert "over_cap" in found and found <= {row[1] for row in rows}


def test_each_reason_of_a_loss_and_each_note_is_explained() -> None:
    lost, notes = literals("lose"), literals("notes")
    assert "bad_http" in lost and lost <= {row[0] for row in table_of("Why a record is lost")}
    assert notes == {row[0] for row in table_of("What is noted")}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_files_that_the_pages_name_are_there() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "docs/architecture.md"):
        for name in re.findall(
            r"`((?:pipeline|queries|clip_train|tests|tools|docs|benchmarks)/[\w./]+)`", (ROOT / page).read_text()
        ):
            assert (ROOT / name).exists() or name.endswith("noop.py"), f"{page}: {name}"
