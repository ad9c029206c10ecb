"""Sets that change: other options, more inputs, fewer inputs, forgotten pairs. Each equals a build from nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import build, find, forget
from pipeline.dataset.open_set import open_set
from pipeline.dataset.verify import verify
from pipeline.forget import Selection
from pipeline.options import Options, check_options
from pipeline.stages import grouping
from pipeline.stages.input_list import InputList
from pipeline.stages.run import Sizes
from tests.growing import SHARDS, Changes, Growing, differences, published, small_web, stage_digests, uids_of
from tests.test_forget import all_bytes
from tests.without_beam import run_job, without_beam  # noqa: F401


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Growing]:
    with small_web() as server:
        yield Growing(tmp_path_factory.mktemp("growing"), server)


pytestmark = pytest.mark.usefixtures("without_beam")


STEERING = ("--workers", "1", "--fetch-rounds", "0", "--min-success", "0")


def pairs(numbers: range, words: str = "a red dog number") -> list[tuple[str, str]]:
    return [(f"img/{number:02}.jpg", f"{words} {number}") for number in numbers]


def same(out: Path, other: Path) -> bool:
    assert differences(out, other) == []
    assert stage_digests(out) == stage_digests(other)
    assert list(verify(str(out), stages=True)) == []
    return True


def test_another_cap_fetches_only_what_is_missing(growing: Growing, tmp_path: Path) -> None:
    inputs, out = [growing.table("caps.parquet", [*pairs(range(10)), ("status/404", "a red cat")])], tmp_path / "out"
    growing.build(out, inputs, "--cap", "3")
    first = growing.hits()
    recipe, other = (out / "recipe.yaml").read_text(), growing.folder / "other.txt"
    other.write_text("zebra")
    refused = ["--input", str(inputs[0]), "--output", str(out), *growing.options("--redo", "gather")[2:]]
    assert build.main([*refused, "--queries", str(other)]) == build.BELOW
    assert list(verify(str(out), stages=True)) == []  # the set is the one before
    assert (out / "recipe.yaml").read_text() == recipe
    growing.build(out, inputs, "--cap", "6", "--redo", "gather")
    assert "cap: 6" in (out / "recipe.yaml").read_text()
    second = growing.hits()
    assert first and second and not set(first) & set(second)
    assert same(out, growing.fresh(out, inputs, "--cap", "6"))
    assert growing.hits() == sorted([*first, *second])
    growing.build(out, inputs, "--cap", "3", "--redo", "dedup")
    assert growing.hits() == []
    assert same(out, growing.fresh(out, inputs, "--cap", "3"))
    growing.hits()
    growing.build(out, inputs, "--cap", "3", "--redo", "fetch")
    assert growing.hits() == first


def test_more_inputs_equal_a_build_over_all(growing: Growing, tmp_path: Path) -> None:
    shown = [*pairs(range(6)), *pairs(range(18, 22))]  # the last ones are too small: the report shows them
    first = [growing.table("a/one.parquet", shown), growing.table("a/two.parquet", pairs(range(4, 9)))]
    more = [
        growing.table("b/zero.parquet", pairs(range(3, 12), "a blue tree and dog")),
        growing.table("0.parquet", pairs(range(20, 24))),
    ]
    out, options = tmp_path / "out", ("--cap", "5", "--min-image-side", "170")
    growing.build(out, first, *options)
    before = growing.hits()
    here = Selection(domain=frozenset({"127.0.0.1"}))
    assert len({pair.uid for pair in find.find(str(out), here, limit=12)}) == 12  # of 13: some stand in both inputs
    tars = {path.name: path.read_bytes() for path in (out / "shards").glob("*.tar")}
    for path in first:
        path.unlink()  # what they gave is not read again
    growing.extend(out, more)
    named = Options(input=tuple(map(str, more)), output=str(out), extend=True, allow_address=("127.0.0.0/8",), cap=5,
                    queries=(str(growing.folder / "queries.txt"),), min_image_side=170, fetch_rounds=0, min_success=0.0,
                    shards=int(SHARDS))  # fmt: skip
    check_options(named)  # from Python, with `case` left open
    after = growing.hits()
    assert after and not set(before) & set(after)
    growing.table("a/one.parquet", shown), growing.table("a/two.parquet", pairs(range(4, 9)))
    assert same(out, growing.fresh(out, [*first, *more], *options))
    growing.hits()
    growing.extend(out, [first[0], *more])  # named again
    growing.build(out, [*first, *more], *options)
    assert growing.hits() == []
    assert build.main(["--output", str(out), "--drop-input", "zero.parquet", "0.parquet", "--workers", "1"]) == 0
    assert growing.hits() == []
    assert same(out, growing.fresh(out, first, *options))
    assert {path.name: path.read_bytes() for path in (out / "shards").glob("*.tar")} == tars
    recipe = ["--config", str(out / "recipe.yaml"), "--output", str(tmp_path / "again"), "--shards", "5"]
    assert build.main([*recipe, "--workers", "1"]) == 0
    assert differences(out, tmp_path / "again") == []


def test_a_text_that_another_pair_brought_is_forgotten(growing: Growing, tmp_path: Path) -> None:
    texts = ["a red dog number one", "the cat in words of its own", "a blue tree"]
    rows = [*pairs(range(5)), *(("img/05.jpg", text) for text in texts)]
    merged = [("img/23.jpg", "a red dog with the bytes of another"), ("img/22.jpg", "a red dog that is nearly another")]
    rows += merged
    inputs, out = [growing.table("texts.parquet", rows)], tmp_path / "out"
    growing.build(out, inputs, "--captions", "3")
    info = json.loads((out / "stages/dedup-images/info.json").read_text())
    assert info["joined_texts"] == 2 and info["rows_out"] == 6 and sum(info["dropped"].values()) == 2
    for _, text in merged:
        (keeper,) = [row for row in open_set(out).table().to_pylist() if text in row["texts"]]
        text = keeper["texts"][1]  # of images of one size, the keeper is that with the most words
        assert len(keeper["texts"]) == 2 and text.encode() in all_bytes(out)
        (uid,) = uids_of(inputs, text)
        assert forget.main([str(out), "--uid", uid]) == 0
        assert text.encode() not in all_bytes(out)
        (left,) = [row for row in open_set(out).table().to_pylist() if row["key"] == keeper["key"]]
        assert left["texts"] == [keeper["text"]] and list(verify(str(out), stages=True)) == []
    (row,) = [row for row in open_set(out).table().to_pylist() if len(row["texts"]) == 3]
    gone = row["texts"][1]
    (uid,) = uids_of(inputs, gone)
    assert gone.encode() in all_bytes(out)
    assert forget.main([str(out), "--uid", uid]) == 0
    assert gone.encode() not in all_bytes(out)
    (left,) = [other for other in open_set(out).table().to_pylist() if other["key"] == row["key"]]
    assert left["texts"] == [row["texts"][0], row["texts"][2]]
    assert list(verify(str(out), stages=True)) == []
    growing.hits()
    growing.extend(out, [])
    assert growing.hits() == []
    assert differences(out, growing.fresh(out, inputs, "--captions", "3", like=out)) == []
    shutil.rmtree(out / "stages")
    assert forget.main([str(out), "--uid", row["key"]]) == 2  # a copy does not tell whose texts a sample holds


def test_two_sets_become_one(growing: Growing, tmp_path: Path) -> None:
    """Inputs of both, one of them in both, the same name twice. Each has forgotten something that the other has."""
    one = [growing.table("a/one.parquet", pairs(range(8))), growing.table("a/both.parquet", pairs(range(4, 9)))]
    two = [one[1], growing.table("b/two.parquet", [*pairs(range(3, 14), "a blue tree"), ("status/404", "a dog")])]
    out, other = tmp_path / "out", tmp_path / "other"
    growing.build(out, one)
    growing.build(other, two)
    for path, row in ((out, "img/05.jpg"), (other, "img/03.jpg")):
        assert forget.main([str(path), "--url", f"{growing.server.base}/{row}"]) == 0
    before, hits = published(other), growing.hits()
    for path in (*one, *two):
        path.unlink(missing_ok=True)  # what they gave is copied
    assert build.main(["--output", str(out), "--extend", "--input", str(other), "--plan"]) == build.USAGE
    growing.extend(out, [other])
    assert set(growing.hits()) <= {"03.jpg", "05.jpg"} and hits
    assert published(other) == before
    growing.table("a/one.parquet", pairs(range(8))), growing.table("a/both.parquet", pairs(range(4, 9)))
    growing.table("b/two.parquet", [*pairs(range(3, 14), "a blue tree"), ("status/404", "a dog")])
    fresh = growing.fresh(out, [*one, two[1]], like=out)
    assert differences(out, fresh) == []
    assert list(verify(str(out), stages=True)) == []
    urls = {row["url"] for row in open_set(out).table().to_pylist()}
    assert not {f"{growing.server.base}/img/{number}.jpg" for number in ("03", "05")} & urls
    growing.hits()
    growing.extend(out, [other])  # named again
    assert growing.hits() == []


def test_a_published_set_without_its_stages_is_a_source(growing: Growing, tmp_path: Path) -> None:
    """Its images are not asked for again, also where they failed. What it has forgotten does not come in."""
    out, other, alone = tmp_path / "out", tmp_path / "other", tmp_path / "alone"
    texts = [("img/01.jpg", "a blue  tree"), ("img/02.jpg", "the cat in words of its own"), ("img/lost.jpg", "a cat")]
    growing.server.images["lost.jpg"] = growing.server.images["17.jpg"]
    growing.build(other, [growing.table("other.parquet", [*pairs(range(9)), *texts])], "--captions", "3")
    del growing.server.images["lost.jpg"]
    gone = f"{growing.server.base}/img/07.jpg"
    assert forget.main([str(other), "--url", gone]) == 0
    shutil.rmtree(other / "stages")
    (other / "inputs.json").unlink()
    rows = [*pairs(range(6, 12), "a red cat"), ("img/lost.jpg", "a red dog")]
    inputs, before = [growing.table("mine.parquet", rows)], published(other)
    growing.build(out, inputs, "--captions", "3")
    growing.hits()
    growing.extend(out, [other])
    assert growing.hits() == [] and published(other) == before
    found = {row["url"]: row for row in open_set(out).table().to_pylist()}
    theirs = {row["url"]: row for row in open_set(other).table().to_pylist()}
    assert gone not in found and theirs.keys() < found.keys()
    for url, row in theirs.items():
        assert set(row["texts"]) <= set(found[url]["texts"])
        names = ("sha256", "original_sha256", "original_width", "width", "phash", "rights_consulted", "final_url")
        assert [row[name] for name in names] == [found[url][name] for name in names]
    fresh = growing.fresh(out, [*inputs, other], "--captions", "3", like=out)
    assert differences(out, fresh) == [] and list(verify(str(out), stages=True)) == []
    growing.hits()
    growing.build(alone, [other], "--captions", "3")  # the first input of a set
    assert growing.hits() == []
    of_alone = {row["key"]: row["texts"] for row in open_set(alone).table().to_pylist()}
    assert of_alone == {row["key"]: row["texts"] for row in theirs.values()}
    assert (alone / "forgotten.parquet").exists()
    other = other.rename(tmp_path / "elsewhere")
    growing.extend(out, [other])
    assert differences(out, fresh) == []
    uid = next(key for key, row in of_alone.items() if len(row) > 1)
    assert forget.main([str(out), "--uid", uid]) == 0
    growing.extend(out, [other])
    assert differences(out, growing.fresh(out, [*inputs, other], "--captions", "3", like=out)) == []
    shutil.rmtree(other)
    growing.hits()
    assert build.main(["--output", str(out), "--drop-input", str(other), *STEERING]) == build.DONE
    assert growing.hits() == []
    assert {row["source_file"] for row in open_set(out).table().to_pylist()} == {"mine.parquet"}
    assert list(verify(str(out), stages=True)) == []


def test_a_set_that_grows_many_times_gets_more_buckets(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, more = (growing.table(f"{name}.parquet", pairs(range(name, name + 3))) for name in (0, 2))
    out, small = tmp_path / "out", Sizes(key_bits=1, groups=1)
    with monkeypatch.context() as patch:
        patch.setattr(Sizes, "of", lambda rows: small)
        growing.build(out, [first])
    growing.build(out, [first])  # goes on with the buckets that it has
    assert InputList.read(str(out)).key_bits == 1  # type: ignore[union-attr]
    growing.extend(out, [more])
    assert InputList.read(str(out)).key_bits == 4  # type: ignore[union-attr]
    growing.table("0.parquet", pairs(range(7, 9)))  # another file under the same name
    growing.extend(out, [first], "--drop-input", "0.parquet")
    assert same(out, growing.fresh(out, [first, more]))


@pytest.mark.parametrize("kept", [True, False], ids=["gather kept its rows", "one pass"])
def test_forgotten_rows_without_a_query(kept: bool, growing: Growing, tmp_path: Path) -> None:
    """Where gather and match were one pass, no file tells of them: they stay `no_query` in the counts."""
    rows = [*pairs(range(3)), ("img/02.jpg", "other words")]
    first, more = growing.table("words.parquet", rows), growing.table("words-2.parquet", pairs(range(1)))
    out = tmp_path / "out"
    for stages in (["--stages", "gather"], []) if kept else ([],):
        growing.build(out, [first], *stages)
    assert forget.main([str(out), "--url", f"{growing.server.base}/img/02.jpg"]) == 0
    growing.extend(out, [more])
    fresh = growing.fresh(out, [first, more], like=out)
    counts = [path for path in differences(out, fresh) if not path.startswith(("shards/", "metadata/"))]
    assert differences(out, fresh) == counts == ([] if kept else ["README.md", "manifest.json", "report/index.html"])
    assert list(verify(str(out), stages=True)) == []


def test_an_interrupted_fetch_keeps_its_images(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, more = (growing.table(f"pieces-{name}.parquet", pairs(range(name, name + 4))) for name in (0, 3))
    out = tmp_path / "out"
    growing.hits()

    def interrupted(*_: object) -> None:
        raise RuntimeError("interrupted before the part is whole")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.fetch.write_part", interrupted)
        given = ["--input", str(first), "--output", str(out), "--shards", SHARDS, *growing.options()]
        assert build.main(given) == build.CRASHED
    assert growing.hits() == [f"{number:02}.jpg" for number in range(4)]
    assert list(out.rglob("*.live"))  # figures of the progress
    growing.extend(out, [more])
    assert growing.hits() == [f"{number:02}.jpg" for number in range(4, 7)]
    assert not list(out.rglob("*.live"))
    assert not list(out.rglob("*.pieces")) and not list(out.rglob("*.asked"))
    assert same(out, growing.fresh(out, [first, more]))


def test_a_url_that_has_changed_is_refused_or_read_anew(
    growing: Growing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, url, pages = tmp_path / "out", f"{growing.server.base}/img/pairs.csv", growing.server.images
    rows = ["url,text", *(f"{growing.server.base}/{path},{text}" for path, text in pairs(range(5)))]
    pages["pairs.csv"] = "\n".join(rows).encode()
    given = ["--input", url, "--output", str(out), "--stages", "gather..match", *growing.options()]
    assert build.main(given) == build.DONE
    again = ["--output", str(out), "--extend", "--input", url, "--stages", "gather..match", *STEERING]
    assert build.main(again) == build.DONE
    pages["pairs.csv"] = "\n".join(rows[:3]).encode()
    capsys.readouterr()
    assert build.main(again) == build.USAGE
    assert f"--input {url}: has changed since the set read it (it had " in capsys.readouterr().err
    assert build.main([*again, "--drop-input", url]) == build.DONE
    assert stage_digests(out)["gather"][1] == 2
    del pages["pairs.csv"]
    assert build.main(again) == build.DONE  # an input of the set need not exist


def test_a_set_that_does_not_fit_is_refused(
    growing: Growing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, out, other = [growing.table("fit.parquet", pairs(range(2)))], tmp_path / "out", tmp_path / "other"
    growing.build(out, inputs, "--stages", "gather..match")
    more = [growing.table("fit-not.parquet", pairs(range(3)))]
    growing.build(other, more, "--stages", "gather..match", "--match", "metaclip")
    (published := tmp_path / "published").mkdir()
    (published / "manifest.json").write_text('{"digest": "", "files": [], "ledger": []}')
    newer = json.dumps({"digest": "", "files": [], "ledger": [], "format": 99})
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer/manifest.json").write_text(newer)
    extend = ["--output", str(out), "--extend", "--input"]
    for command, code, words in (
        ([*extend, str(other)], build.USAGE, "--match was metaclip and is wide"),
        ([*extend, str(out / "stages")], build.USAGE, "must not be the output folder itself"),
        ([*extend, str(published)], build.MISSING, "manifest.json is damaged"),
        ([*extend, str(tmp_path / "newer")], build.MISSING, "has format 99 and this version reads 5"),
        ([*extend, str(other), "--redo", "match"], build.USAGE, "use two commands"),
        (["--output", str(tmp_path / "new"), "--input", str(other)], build.USAGE, "come in by --extend alone"),
    ):
        capsys.readouterr()
        assert build.main([*command, *STEERING]) == code
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("seed", [1])
def test_random_changes(seed: int, growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that come in together share units of three."""
    monkeypatch.setattr(grouping, "FROM_INPUTS", 2)
    monkeypatch.setattr(grouping, "MOST_INPUTS", 3)
    Changes(tmp_path, growing.server, seed).run(2)


def main(sequences: int, first: int) -> None:
    """Runs random sequences by hand: python -m tests.test_growing 200 [FIRST SEED]."""
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    build.runners.run_job = run_job  # type: ignore[assignment]
    with small_web() as server:
        for seed in range(first, first + sequences):
            with tempfile.TemporaryDirectory() as folder:
                changes = Changes(Path(folder), server, seed)
                try:
                    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                        changes.run(4)
                except BaseException:
                    print(f"seed {seed} fails: {changes.log}", file=sys.stderr)
                    raise
            print(f"seed {seed}: {len(changes.log)} changes", flush=True)


if __name__ == "__main__":
    main(*(int(word) for word in [*sys.argv[1:], "0"][:2]))
