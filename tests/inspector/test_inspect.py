"""The inspector: every command as text and as JSON, its refusals, and every fault that `verify` must report."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import shards
from pipeline.dataset.open_set import open_set
from pipeline.dataset.ranges import Ranges
from pipeline.engine import storage, work
from pipeline.inspect_shards import DONE, FAULT, MISSING, USAGE
from tests import samples
from tests.places import ROOT


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    samples.publish(folder, count=30, per_shard=12, texts={4: samples.ESCAPE})
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(original, tmp_path / "out")
    return tmp_path / "out"


def key(number: int) -> str:
    return samples.fetched(number + 1)["uid"][number].as_py().hex()


# ----------------------------------------------------------------------------------------------------- the commands


def test_info(run: Any, original: Path) -> None:
    code, text, _ = run("info", original)
    manifest = json.loads((original / "manifest.json").read_text())
    assert code == DONE and "30 pairs in 3 shards" in text and manifest["digest"] in text and "over_cap" in text
    code, text, _ = run("info", original, "--json")
    facts = json.loads(text)
    assert (facts["rows"], facts["shards"], facts["published"]) == (30, 3, True)
    assert facts["ledger"] == manifest["ledger"] and len(facts["stages"]) == 7
    assert all(stage["completed"] for stage in facts["stages"])
    assert facts["queries"] == manifest["queries"]


def test_info_of_a_run_without_shards(run: Any, folder: Path) -> None:
    for name in ("shards", "metadata", "rejected", "report"):
        shutil.rmtree(folder / name)
    for stage in ("fetch", "dedup-images", "publish"):
        shutil.rmtree(folder / "stages" / stage)
    (folder / "manifest.json").unlink()
    (folder / "stages/balance/COMPLETED").unlink()
    for name in ("chosen/00000.json", "chosen/00000.arrow", "rows/00000.json", "rows/00001.json"):
        (folder / "stages/balance" / name).parent.mkdir(exist_ok=True)
        (folder / "stages/balance" / name).touch()
    code, text, _ = run("info", folder)
    assert code == DONE and "not published" in text and "not finished" in text and "queries    8" in text
    facts = json.loads(run("info", folder, "--json")[1])
    assert [stage["completed"] for stage in facts["stages"]] == [True, True, True, False]
    manifest = json.loads((Path(str(folder)).parent / "out" / "stages/gather/info.json").read_text())
    assert facts["stages"][0]["rows_in"] == manifest["rows_in"]
    assert facts["run"] == {"units": {"balance": {"chosen": 1, "rows": 2}}}
    assert "balance       not finished: chosen 1 unit, rows 2 units\n" in text


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the kernel lists no locks")
def test_info_of_a_folder_that_a_run_holds(run: Any, folder: Path) -> None:
    note = {"flink": "h:8081", "job": "openwit-7-0a"}
    with work.lock_run_folder(str(folder)):
        (folder / ".job").write_text(json.dumps(note))
        code, text, _ = run("info", folder)
    (folder / ".job").write_text("no JSON")
    assert code == DONE and f"built by   process {os.getpid()} on {socket.gethostname()}" in text
    assert "job        openwit-7-0a on Flink at h:8081" in text
    assert "built by" not in run("info", folder)[1] and "job  " not in run("info", folder)[1]


def test_ls(run: Any, original: Path) -> None:
    code, text, _ = run("ls", original)
    assert code == DONE and len(text.splitlines()) == 20
    assert text.splitlines()[0].split()[:2] == [key(0), "40x32"]
    assert len(run("ls", original, "--limit", "0")[1].splitlines()) == 30
    assert len(run("ls", original, "--shard", "2", "--limit=0")[1].splitlines()) == 6
    assert len(run("ls", original, "--grep", "CHAT NOIR")[1].splitlines()) == 5
    rows = json.loads(run("ls", original, "--limit", "13", "--json")[1])
    assert len(rows) == 13 and rows[12]["shard"] == 1
    code, _, error = run("ls", original, "--shard", "3")
    assert code == MISSING and "no pair of the set lies in this range" in error
    code, _, error = run("ls", original, "--shard", "100")
    assert code == MISSING and "the set has 100 ranges, 0 to 99" in error


def test_show(run: Any, original: Path, tmp_path: Path) -> None:
    code, text, _ = run("show", key(13)[:9], original, "--image", tmp_path / "x.jpg")
    assert code == DONE and samples.fetched(14)["url"][13].as_py() in text and "boat" in text
    assert (tmp_path / "x.jpg").read_bytes() == samples.jpeg(13)
    row = json.loads(run("show", key(13), original, "--json")[1])
    assert (
        row["key"] == key(13)
        and row["queries"] == ["boat", "map"]
        and row["phash"] == (13 * 0x9E3779B97F4A7C15) % 2**64
    )
    code, _, error = run("show", "0", original)
    assert code == USAGE and key(0) in error and "..." in error
    assert run("show", "ffff", original)[0] == MISSING


@pytest.mark.parametrize(
    "command", [("ls", "--limit", "0"), ("show", key(4)), ("stats",), ("info",), ("show", key(4), "--json")]
)
def test_texts_of_strangers_cannot_move_the_cursor(run: Any, original: Path, command: tuple[str, ...]) -> None:
    text = run(*command, original)[1]
    assert not set("\x1b\x07\u202e") & set(text)
    if command[0] != "stats" and command[0] != "info":
        assert "owned" in text


def test_stats(run: Any, original: Path) -> None:
    code, text, _ = run("stats", original)
    assert code == DONE and "30 pairs" in text and "bilder.example.de" in text and "█" in text
    facts = json.loads(run("stats", original, "--json")[1])
    assert facts["samples"] == 30 and sum(facts["charts"]["Languages"].values()) == 30


def test_rows_are_written_by_the_exports(
    run: Any, original: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipeline.dataset import exports

    calls: list[tuple[str, str, str]] = []
    monkeypatch.setattr(exports, "write_rows", lambda *args: calls.append(args) or 7)
    code, text, _ = run("rows", original, "--stage", "match", "--to", tmp_path / "r.parquet")
    assert (
        code == DONE and text.startswith("7 rows") and calls == [(str(original), "match", str(tmp_path / "r.parquet"))]
    )
    words = ["rows", original, "--stage", "match", "--to"]
    assert json.loads(run(*words, tmp_path / "x", "--json")[1])["rows"] == 7
    (tmp_path / "r.parquet").write_bytes(b"PAR1 and so on")
    assert "it replaces an older file" in run(*words, tmp_path / "r.parquet")[1]
    (tmp_path / "notes").write_text("mine")
    for name in ("notes", "r.csv", "R.JSONL"):
        code, text, said = run(*words, tmp_path / name)
        assert code == USAGE and not text and f"--to {tmp_path / name}: must " in said and len(calls) == 3
    os.mkfifo(tmp_path / "pipe")
    for more in (["rows", original, "--stage", "match"], ["export", original, "--format", "csv"]):
        code, _, said = run(*more, "--to", tmp_path / "pipe")
        assert code == USAGE and "must" in said and (tmp_path / "pipe").is_fifo()
    monkeypatch.undo()
    assert run("rows", original, "--stage", "fetch", "--to", tmp_path / "r.parquet")[0] == MISSING


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["ls", "--limt", "3", "OUT"], "did you mean --limit"),
        (["verify", "--quik", "OUT"], "did you mean --quick"),
        (["info", "--jsn", "OUT"], "did you mean --json"),
        (["verfy", "OUT"], "did you mean verify"),
        (["ls", "OUT", "--limit", "-3"], "--limit"),
        (["ls", "OUT", "--limit", "many"], "not a number"),
        (["show", "OUT"], "OUT"),
        ([], "COMMAND"),
        (["rows", "OUT", "--to", "x"], "--stage"),
        (["info", "OUT", "more"], "more"),
    ],
)
def test_what_is_misspelt_is_refused(run: Any, argv: list[str], hint: str) -> None:
    code, out, error = run(*argv)
    assert code == USAGE and hint in error and out == ""


@pytest.mark.parametrize("command", ["info", "ls", "stats", "verify"])
def test_a_folder_that_is_not_there_or_empty(run: Any, tmp_path: Path, command: str) -> None:
    assert run(command, tmp_path / "nowhere")[0] == MISSING
    code, out, error = run(command, tmp_path, "--json")
    assert code == MISSING and out == "" and str(tmp_path) in error


def test_nothing_heavy_is_loaded(original: Path) -> None:
    for words in (
        ["--help"],
        ["info", str(original)],
        ["ls", str(original)],
        ["verify", str(original)],
        ["stats", str(original)],
    ):
        program = (
            "import sys\nfrom pipeline.inspect_shards import main\n"
            f"try: main({words!r})\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
        )
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
        loaded = set(out.stderr.split())
        assert not loaded & {"apache_beam", "torch", "numba", "webdataset", "jinja2", "img2dataset"}, words
        assert words[0] in ("stats", "verify") or "pandas" not in loaded, words  # pyarrow imports it
        assert words != ["--help"] or not loaded & {"pyarrow", "numpy"}


def test_a_reader_that_goes_away_is_no_crash(original: Path) -> None:
    command = (
        f"{sys.executable} -m pipeline.inspect_shards ls {original} --limit 0 | head -n 1; exit ${{PIPESTATUS[0]}}"
    )
    out = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert out.stderr == "" and out.stdout.startswith(key(0)) and out.returncode in (DONE, 120)


def test_queries_before_and_after_the_cap(run: Any, selected: Path) -> None:
    code, text, _ = run("queries", selected, "--json")
    rows = {row["query"]: row for row in json.loads(text)}
    assert code == DONE and [rows[name]["pairs"] for name in ("dog", "cat", "owl")] == [6, 3, 0]
    assert [rows[name]["picked"] for name in ("dog", "cat", "owl")] == [3, 3, 0]
    assert rows["dog"]["cap"] == 3 and rows["dog"]["published"] is None and 3 <= rows["dog"]["kept"] <= 4
    lines = run("queries", selected)[1].splitlines()
    assert [line.split()[-1] for line in lines] == ["query", "dog", "cat", "owl"]
    assert run("queries", selected, "--tail", 1)[1].splitlines()[1].split()[-1] == "owl"
    assert run("queries", selected, "--sort", "query", "--head", 1)[1].splitlines()[1].split()[-1] == "cat"
    assert "2 more" in run("queries", selected, "--head", 1)[1]
    assert [row["query"] for row in json.loads(run("queries", selected, "--language", "de", "--json")[1])] == ["owl"]
    assert [row["query"] for row in json.loads(run("queries", selected, "--grep", "A", "--json")[1])] == ["cat"]


def test_why_a_query_picks_what_it_picks(run: Any, selected: Path) -> None:
    code, text, _ = run("queries", selected, "--why", "DOG")
    assert code == DONE and "picks a pair with probability 0.5" in text and "published   -" in text
    code, _, said = run("queries", selected, "--why", "horse")
    assert code == MISSING and "no query of this run is 'horse'" in said


def test_find_in_a_run_that_has_reached_balance(run: Any, selected: Path) -> None:
    code, text, _ = run("find", selected, "--domain", "a.example", "--json")
    found = [(pair["stage"], pair["reason"]) for pair in json.loads(text)["pairs"]]
    assert code == DONE and {*found} == {("balance", ""), ("balance", "over_cap")} and len(found) == 8
    code, text, _ = run("find", selected, "--url", "http://a.example/5.jpg", "--text", "a dog")
    assert code == DONE and "  balance\n" in text and "gather would keep this text" in text
    code, text, _ = run("find", selected, "--url", "http://a.example/99.jpg")
    assert code == FAULT and "--keep-rejected all" in text
    assert run("find", selected)[0] == run("find", selected, "--url", "x")[0] == USAGE


def test_queries_of_a_copy_of_the_published_files(run: Any, original: Path, tmp_path: Path) -> None:
    rows = json.loads(run("queries", original, "--json")[1])
    found = open_set(original).table(["query_ids"])["query_ids"].to_pylist()
    assert {row["query"]: row["published"] for row in rows} == {
        name: sum(number in ids for ids in found)
        for number, name in enumerate("a boat cat dog harbour lake map sea".split())
    }
    assert all(row["pairs"] is row["cap"] is row["picked"] is None for row in rows)
    assert [row["published"] for row in rows] == sorted((row["published"] for row in rows), reverse=True)
    code, _, said = run("queries", original, "--language", "en")
    assert code == MISSING and "has no languages" in said
    code, _, said = run("queries", tmp_path)
    assert code == MISSING and "holds neither manifest.json nor stages/" in said


def test_samples_are_drawn_by_the_seed(run: Any, original: Path) -> None:
    def keys(*words: object) -> list[str]:
        return [row["key"] for row in json.loads(run("sample", original, "--json", *words)[1])]

    one = keys("--count", 7, "--seed", 1)
    assert len(set(one)) == 7 and one == keys("--count", 7, "--seed", 1)
    assert one[:3] == keys("--count", 3, "--seed", 1) and set(one) != set(keys("--count", 7, "--seed", 2))
    assert len(keys("--count", 100)) == 30
    held = open_set(original).table(["key", "query_ids"]).to_pylist()
    assert set(keys("--count", 100, "--query", "BOAT")) == {row["key"] for row in held if 1 in row["query_ids"]}
    code, text, _ = run("sample", original, "--count", 2)
    assert code == DONE and len(text.splitlines()) == 2
    code, _, said = run("sample", original, "--query", "zebra")
    assert code == MISSING and "no query of this set is 'zebra'" in said


def test_diff_of_two_sets(run: Any, original: Path, tmp_path: Path) -> None:
    assert run("diff", original, original)[:2] == (DONE, "the sets are the same: their digests are equal\n")
    samples.publish(tmp_path / "b", count=40, numbers=[n for n in range(40) if n not in (3, 20)], texts={5: "another"})
    code, text, _ = run("diff", original, tmp_path / "b", "--json")
    found = json.loads(text)["pairs"]
    here, there = (open_set(folder).table(["key", "text"]).to_pylist() for folder in (original, tmp_path / "b"))
    one, two = ({row["key"]: row["text"] for row in rows} for rows in (here, there))
    assert code == FAULT and found["keys"]["lost"] == sorted(one.keys() - two.keys())
    assert found["keys"]["gained"] == sorted(two.keys() - one.keys()) and found["gained"] == 10 and found["lost"] == 2
    changed = sorted(name for name in one.keys() & two.keys() if one[name] != two[name])
    assert found["keys"]["changed"] == changed and len(changed) == 2 and found["both"] == 28
    code, text, _ = run("diff", original, tmp_path / "b")
    assert code == FAULT and text.startswith("pairs      28 in both, 10 gained, 2 lost, 2 with another image or text\n")
    assert "stage      publish      rows_out " in text
    code, _, said = run("diff", original, tmp_path)
    assert code == MISSING and "no manifest.json" in said


# ------------------------------------------------------------------------------------------------------- the faults


def faults(run: Any, folder: Path, *flags: str) -> list[dict[str, str]]:
    code, text, _ = run("verify", folder, "--json", *flags)
    found = json.loads(text)
    assert code == (FAULT if found["faults"] else DONE) and found["ok"] == (not found["faults"])
    return found["faults"]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file as somebody would who writes its checksum anew."""
    data = json.loads(path.read_text())
    sealed = data.pop(storage.CHECKSUM, None) is not None
    change(data)
    if sealed:
        storage.write_json(str(path), data)
    else:
        path.write_text(json.dumps(data))


def test_a_sound_folder(run: Any, folder: Path) -> None:
    assert faults(run, folder) == [] == faults(run, folder, "--quick")
    code, text, _ = run("verify", folder)
    assert code == DONE and "sound" in text
    shutil.rmtree(folder / "stages")  # a published set that was copied without its stages
    assert faults(run, folder) == []


@pytest.mark.parametrize("per_shard", [12, 4])
def test_a_set_with_gaps(run: Any, tmp_path: Path, per_shard: int) -> None:
    numbers = [5, 6, 200, 201, 1199]
    samples.publish(tmp_path, per_shard=per_shard, numbers=numbers)
    assert faults(run, tmp_path) == []
    facts = json.loads(run("info", tmp_path, "--json")[1])
    assert (facts["shards"], facts["ranges"]) == (3, 1200 // per_shard)
    assert f"3 shards ({1200 // per_shard - 3} of {1200 // per_shard} ranges are empty)" in run("info", tmp_path)[1]
    listed = json.loads(run("ls", tmp_path, "--json")[1])
    assert [(row["key"], row["shard"]) for row in listed] == [(key(n), n // per_shard) for n in numbers]
    assert json.loads(run("ls", tmp_path, "--json", "--shard", 200 // per_shard)[1]) == listed[2:4]
    shown = json.loads(run("show", key(201), tmp_path, "--json", "--image", tmp_path / "x.jpg")[1])
    assert shown["shard"] == 200 // per_shard and (tmp_path / "x.jpg").read_bytes() == samples.jpeg(201)
    assert json.loads(run("stats", tmp_path, "--json")[1])["samples"] == 5


def test_the_numbers_of_a_large_set_have_more_digits(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = Ranges(1_000_000)
    infos = [samples.write_shard(tmp_path, [number], ranges=ranges) for number in (3, 117, 120, 600)]
    assert [Path(info.files[0].path).name for info in infos] == [
        "002500.tar", "097500.tar", "100000.tar", "500000.tar"
    ]  # fmt: skip
    samples.finish(tmp_path, infos, ranges=ranges, ledger=samples.ledger(4), options=samples.OPTIONS, versions={})
    assert faults(run, tmp_path) == []
    rows = json.loads(run("ls", tmp_path, "--json")[1])
    assert [row["shard"] for row in rows] == [2500, 97_500, 100_000, 500_000]
    assert json.loads(run("ls", tmp_path, "--json", "--shard", "97500")[1]) == rows[1:2]
    assert run("show", key(120), tmp_path, "--image", tmp_path / "x.jpg")[0] == DONE
    assert (tmp_path / "x.jpg").read_bytes() == samples.jpeg(120)


def test_an_older_set_is_read(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Format 1: no ranges, keep_probability in the JSON too."""
    monkeypatch.setattr(shards, "JSON_KEYS", shards.json_keys(1))
    monkeypatch.setattr(shards, "FORMAT", 1)
    samples.publish(tmp_path)
    monkeypatch.undo()
    edit(tmp_path / "manifest.json", lambda manifest: manifest.pop("shards"))
    assert b"keep_probability" in (tmp_path / "shards/00000.tar").read_bytes()
    assert faults(run, tmp_path) == []
    assert len(json.loads(run("ls", tmp_path, "--json", "--shard", "1")[1])) == 12
    code, _, error = run("ls", tmp_path, "--shard", "3")
    assert code == MISSING and "there is no shard 3: the set has 3" in error
    assert "30 pairs in 3 shards, " in run("info", tmp_path)[1]
    edit(tmp_path / "manifest.json", lambda manifest: manifest.update(format=2))
    found = faults(run, tmp_path)
    assert {fault["path"] for fault in found} == {"manifest.json", *(f"shards/0000{n}.tar" for n in range(3))}


def test_a_set_of_format_2_is_read(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Format 2: without the columns that later formats added."""
    columns = shards.columns_of(2)
    monkeypatch.setattr(shards, "JSON_KEYS", shards.json_keys(2))
    monkeypatch.setattr(shards, "METADATA", pa.schema([shards.METADATA.field(name) for name in columns]))
    monkeypatch.setattr(shards, "FORMAT", 2)
    samples.publish(tmp_path)
    monkeypatch.undo()
    table = pq.read_table(tmp_path / "metadata/00000.parquet")
    assert table.column_names == list(columns) and "aspect" not in columns
    assert faults(run, tmp_path) == []
    edit(tmp_path / "manifest.json", lambda manifest: manifest.update(format=3))
    assert {fault["problem"] for fault in faults(run, tmp_path)} >= {"has no column 'image_side'"}


def test_a_set_of_format_4_is_read(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Format 4: without the list of texts."""
    columns = shards.columns_of(4)
    monkeypatch.setattr(shards, "JSON_KEYS", shards.json_keys(4))
    monkeypatch.setattr(shards, "METADATA", pa.schema([shards.METADATA.field(name) for name in columns]))
    monkeypatch.setattr(shards, "FORMAT", 4)
    samples.publish(tmp_path)
    monkeypatch.undo()
    assert "rights" in columns and not {"texts", "url_as_found"} & set(columns)
    assert faults(run, tmp_path) == []
    opened = open_set(tmp_path)
    assert "texts" not in opened.table().column_names and opened.sample(next(opened.keys())).text
    edit(tmp_path / "manifest.json", lambda manifest: manifest.update(format=5))
    assert {fault["problem"] for fault in faults(run, tmp_path)} >= {"has no column 'url_as_found'"}


def test_a_sample_in_another_shard_is_named(run: Any, folder: Path) -> None:
    """The borders between the shards move a little, and nothing else is wrong."""
    edit(folder / "manifest.json", lambda manifest: manifest["shards"].update(ranges=96))
    found = faults(run, folder)
    assert found == [
        {
            "path": f"metadata/0000{n}.parquet",
            "key": key(12 * n),
            "problem": f"the key is not in the range of shard {n}",
        }
        for n in (1, 2)
    ]
    assert faults(run, folder, "--quick") == []


def test_a_row_that_names_another_shard_is_named(run: Any, folder: Path) -> None:
    path = folder / "metadata/00001.parquet"
    table = pq.read_table(path)
    column = pa.array([1, 2, *[1] * 10], pa.int32())
    at = table.column_names.index("shard")
    storage.write_published(str(path), table.set_column(at, table.schema.field(at), column))
    republish(folder)
    problem = "its row names another shard than 1"
    assert faults(run, folder) == [{"path": "metadata/00001.parquet", "key": key(13), "problem": problem}]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("shards/00100.tar", "the set has 100 ranges, 0 to 99"),
        ("metadata/00100.parquet", "the set has 100 ranges, 0 to 99"),
        ("shards/2.tar", "should have 5 digits"),
        ("shards/000002.tar", "should have 5 digits"),
        ("shards/x.tar", "not the number of a range"),
        ("shards/00050.tar", "a range without a row has no file"),
    ],
)
def test_files_that_are_no_shards_of_the_set_are_named(run: Any, folder: Path, name: str, problem: str) -> None:
    (folder / name).write_bytes(bytes(1024))
    rows = 0 if "no file" in problem else 1
    entry = dataclasses.asdict(shards.entry_of(str(folder), name, rows=rows))
    edit(folder / "manifest.json", lambda manifest: manifest["files"].append(entry))
    assert any(fault["path"] == name and problem in fault["problem"] for fault in faults(run, folder, "--quick"))


@pytest.mark.parametrize("wrong", [17, {}, {"ranges": "17"}, {"ranges": 0}])
def test_ranges_that_are_no_number(run: Any, folder: Path, wrong: Any) -> None:
    edit(folder / "manifest.json", lambda manifest: manifest.update(shards=wrong))
    assert "not a manifest" in faults(run, folder)[0]["problem"]
    for command in (("info",), ("ls",), ("show", key(3)), ("stats",)):
        assert run(*command, folder)[0] == FAULT


def test_every_flipped_bit_of_a_tar_is_named_with_its_sample(run: Any, folder: Path) -> None:
    """Flips 200 bits anywhere. The tar's digest is wrong each time. If a flip lies in a sample, that is named."""
    rng, path = random.Random(5), folder / "shards/00001.tar"
    good = path.read_bytes()
    rows = storage.read_published(str(folder / "metadata/00001.parquet")).to_pylist()
    starts = [row["jpg_offset"] - 512 for row in rows]
    end = len(good) - 1024
    for _ in range(200):
        at = rng.randrange(len(good))
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        found = faults(run, folder)
        assert {"path": "shards/00001.tar", "key": "", "problem": "its sha256 is not that of the manifest"} in found
        wanted = rows[max(n for n, start in enumerate(starts) if start <= at)]["key"] if at < end else ""
        assert {fault["key"] for fault in found} == ({"", wanted} if wanted else {""})
        assert len(found) == 2


def test_flipped_bits_of_the_metadata_are_noticed(run: Any, folder: Path) -> None:
    rng, path = random.Random(6), folder / "metadata/00001.parquet"
    good = path.read_bytes()
    for _ in range(60):
        bad = bytearray(good)
        bad[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        assert any(fault["path"] == "metadata/00001.parquet" for fault in faults(run, folder))


@pytest.mark.parametrize("name", ["shards/00001.tar", "metadata/00001.parquet", "README.md", "shards/sizes.json"])
def test_cut_and_missing_files_are_named(run: Any, folder: Path, name: str) -> None:
    path = folder / name
    good = path.read_bytes()
    for length in (0, 1, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        for flags in ((), ("--quick",)):
            assert any(fault["path"] == name for fault in faults(run, folder, *flags))
    path.unlink()
    for flags in ((), ("--quick",)):
        assert any(fault["path"] == name and "missing" in fault["problem"] for fault in faults(run, folder, *flags))


def republish(folder: Path) -> None:
    """Writes a manifest for the files as they are now. Only faults of the contents are left to find."""
    manifest = json.loads((folder / "manifest.json").read_text())
    entries = [shards.entry_of(str(folder), e["path"], rows=e["rows"]) for e in manifest["files"]]
    names = ("ledger", "options", "versions", "shards")
    shards.write_manifest(str(folder), entries, **{name: manifest[name] for name in names})


def test_members_that_moved_are_named_though_the_manifest_vouches(run: Any, folder: Path) -> None:
    path = folder / "shards/00000.tar"
    data = path.read_bytes()
    rows = storage.read_published(str(folder / "metadata/00000.parquet")).to_pylist()
    cut = [rows[n]["jpg_offset"] - 512 for n in (2, 3, 4)]
    path.write_bytes(data[: cut[0]] + data[cut[1] : cut[2]] + data[cut[0] : cut[1]] + data[cut[2] :])
    republish(folder)
    found = faults(run, folder)
    assert {fault["key"] for fault in found} >= {rows[2]["key"], rows[3]["key"]}
    assert any("header" in fault["problem"] for fault in found)


def test_an_exchanged_image_is_named_though_the_manifest_vouches(run: Any, folder: Path) -> None:
    path = folder / "shards/00000.tar"
    data, rows = bytearray(path.read_bytes()), storage.read_published(str(folder / "metadata/00000.parquet"))
    row = rows.to_pylist()[3]
    data[row["jpg_offset"] + 50] ^= 255
    path.write_bytes(data)
    republish(folder)
    assert faults(run, folder) == [
        {
            "path": "shards/00000.tar",
            "key": row["key"],
            "problem": "its image has another sha256 than the metadata says",
        }
    ]


def test_a_key_that_comes_twice_is_named(run: Any, folder: Path) -> None:
    path = folder / "metadata/00001.parquet"
    table = pq.read_table(path)
    storage.write_published(str(path), pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)]))
    republish(folder)
    assert {"path": "metadata/00001.parquet", "key": key(12), "problem": "the key comes twice"} in faults(run, folder)


def test_files_that_nobody_vouches_for_are_named(run: Any, folder: Path) -> None:
    for name in ("shards/00003.tar", "metadata/x.parquet", "report/evil.js", "rejected/old.parquet"):
        (folder / name).write_bytes(b"x")
    found = faults(run, folder, "--quick")
    assert [fault["path"] for fault in found] == sorted(
        ("shards/00003.tar", "metadata/x.parquet", "report/evil.js", "rejected/old.parquet")
    )


def _lose(manifest: dict) -> None:
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != "metadata/00001.parquet"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["ledger"][2].update(rows_in=1), "add up"),
        (lambda m: m["ledger"][2].update(rows_in=90, dropped={"x": 8}), "enter 'dedup'"),
        (lambda m: m["ledger"][2]["dropped"].update(same_pair=8), "not that of the manifest"),
        (lambda m: m["ledger"].pop(), "its ledger ends with"),
        (lambda m: m.update(digest="0"), "its digest"),
        (lambda m: m.update(rows=31), "says 31 rows"),
        (lambda m: m.update(format=6), "format"),
        (lambda m: m.pop("shards"), "how many ranges"),
        (lambda m: m.pop("files"), "not a manifest"),
        (lambda m: m["files"][0].pop("sha256"), "not a manifest"),
        (lambda m: m["files"][0].update(path="../x"), "outside"),
        (_lose, "not in the manifest"),
        (lambda m: m.clear(), "not a manifest"),
    ],
)
def test_a_manifest_that_is_wrong(run: Any, folder: Path, change: Any, problem: str) -> None:
    edit(folder / "manifest.json", change)
    assert any(problem in fault["problem"] for fault in faults(run, folder))


def test_a_manifest_that_is_cut(run: Any, folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])
    assert faults(run, folder)[0]["path"] == "manifest.json"
    for command in ("info", "ls", "stats"):
        assert run(command, folder)[0] == FAULT


def test_sizes_that_are_wrong(run: Any, folder: Path) -> None:
    edit(folder / "shards/sizes.json", lambda sizes: sizes.update({"00001.tar": 11}))
    assert any("says 11 for shards/00001.tar" in fault["problem"] for fault in faults(run, folder, "--quick"))


def test_a_publication_without_its_manifest(run: Any, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert [fault["path"] for fault in faults(run, folder)] == ["manifest.json"]


@pytest.mark.parametrize(
    ("change", "path", "problem"),
    [
        (lambda s: (s / "match/COMPLETED").unlink(), "stages/match", "COMPLETED is missing"),
        (lambda s: (s / "match/info.json").unlink(), "stages/match/info.json", "is not a stage's info.json"),
        (lambda s: (s / "match/info.json").write_text("{"), "stages/match/info.json", "cannot be read"),
        (lambda s: edit(s / "match/info.json", lambda i: i.update(rows_out=1)), "stages/match/info.json", "add up"),
        (
            lambda s: edit(
                s / "match/info.json", lambda i: i.update(rows_in=i["rows_in"] + 1, rows_out=i["rows_out"] + 1)
            ),
            "stages/dedup/info.json",
            "enter 'dedup'",
        ),
    ],
)
def test_stages_that_do_not_chain(run: Any, folder: Path, change: Any, path: str, problem: str) -> None:
    for name in ("shards", "metadata", "rejected", "report"):
        shutil.rmtree(folder / name)
    (folder / "manifest.json").unlink()
    assert faults(run, folder) == []
    change(folder / "stages")
    assert any(fault["path"] == path and problem in fault["problem"] for fault in faults(run, folder))


def test_show_refuses_a_damaged_image(run: Any, folder: Path, tmp_path: Path) -> None:
    row = storage.read_published(str(folder / "metadata/00000.parquet")).to_pylist()[0]
    with open(folder / "shards/00000.tar", "r+b") as file:
        file.seek(row["jpg_offset"] + 9)
        file.write(b"\xee")
    code, _, error = run("show", row["key"], folder, "--image", tmp_path / "x.jpg")
    assert code == FAULT and "sha256" in error and not os.path.exists(tmp_path / "x.jpg")


def test_metadata_without_a_column_is_named(run: Any, folder: Path) -> None:
    path = folder / "metadata/00000.parquet"
    storage.write_published(str(path), pq.read_table(path).drop_columns(["sha256"]))
    republish(folder)
    assert faults(run, folder)[0]["problem"] == "has no column 'sha256'"


def test_rows_into_a_folder_are_refused(run: Any, folder: Path) -> None:
    code, _, said = run("rows", folder, "--stage", "match", "--to", folder)
    assert code == USAGE and "must be a file; it is a folder" in said


def test_a_full_disk_behind_stdout_is_one_line(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pipeline.inspect_shards", "ls", str(folder)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "No space left" in done.stderr
