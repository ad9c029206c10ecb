"""A set that is corrected without a new fetch: scores, evaluation images. Tests change copies of one built folder."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from PIL import Image

from pipeline import build, forget
from pipeline.dataset.compare import compare
from pipeline.dataset.open_set import open_set
from pipeline.dataset.verify import verify
from pipeline.fetching import images
from pipeline.fetching.options import FetchOptions
from tests.test_forget import all_bytes
from tests.webserver import WebServer, picture
from tests.without_beam import without_beam  # noqa: F401

NUMBERS = range(12)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the inputs and OUT. The server is gone afterwards: nothing can be fetched."""
    tmp = tmp_path_factory.mktemp("curation")
    (tmp / "queries.txt").write_text("red\ndog\n")
    with WebServer({f"picture-{number:02}.jpg": picture(number) for number in NUMBERS}) as server:
        urls = [f"{server.base}/img/picture-{number:02}.jpg" for number in NUMBERS]
        table = pa.table({"url": urls, "text": [f"red dog number {number:02}" for number in NUMBERS]})
        pq.write_table(table, tmp / "pairs.parquet")
        assert run(tmp, tmp / "out") == build.DONE
    yield tmp


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


@pytest.mark.usefixtures("without_beam")
def test_evaluation_images_leave_the_set(made: Path, out: Path, tmp_path: Path) -> None:
    flowers = tmp_path / "flowers"
    (flowers / "a").mkdir(parents=True)
    (flowers / "a" / "3.jpg").write_bytes(picture(3))
    for number in (5, 90, 91):
        with Image.open(io.BytesIO(picture(number))) as image:
            image.resize((480, 360)).save(flowers / f"{number}.png")
    (flowers / "broken.jpg").write_bytes(b"no image")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(flowers / "a" / "3.jpg", "1.jpg")
    given = ("--decontaminate", str(flowers), f"o={tmp_path / 'other.tar'}", "--decontaminate-distance", "2")
    before = {row["key"]: row["text"] for row in open_set(out).table(["key", "text"]).to_pylist()}
    assert redo(made, out, *given) == build.DONE
    assert ledger(out)["dropped"] == {"contaminated": 2}
    table = pq.read_table(out / "contamination.parquet")
    found = [(before[row["key"]], row["set"], row["image"], row["kind"]) for row in table.to_pylist()]
    assert sorted(found) == [
        ("red dog number 03", "flowers", "a/3.jpg", "bytes"),
        ("red dog number 03", "o", "1", "bytes"),
        ("red dog number 05", "flowers", "5.png", "picture"),
    ]
    assert len(keys(out)) == len(before) - 2 and not set(keys(out)) & set(table["key"].to_pylist())
    assert json.loads((out / "manifest.json").read_text())["contamination"] == {
        "flowers": {"images": 4, "unreadable": 1, "overlap": 2, "pairs": 2},
        "o": {"images": 1, "unreadable": 0, "overlap": 1, "pairs": 1},
    }
    page = (out / "report/index.html").read_text()
    assert '<bdi>flowers</bdi></td><td class="n">4</td>' in page and '<td class="n">50.00 %</td>' in page
    assert list(verify(str(out), stages=True)) == []

    scores = ("--scores", str(tmp_path / "scores.parquet"), "--keep", "s > 0")
    pq.write_table(pa.table({"key": keys(out), "s": range(len(keys(out)))}), tmp_path / "scores.parquet")
    assert redo(made, out, *given, *scores) == build.DONE  # a table for the set without the contaminated pairs
    assert ledger(out)["dropped"] == {"no_score": 2, "score": 1}
    assert pq.read_table(out / "contamination.parquet").equals(table)

    gone = next(key for key, text in before.items() if text == "red dog number 03")
    assert forget.main([str(out), "--uid", gone]) == 0
    assert bytes.fromhex(gone) not in (left := all_bytes(out)) and gone.encode() not in left
    assert ledger(out)["dropped"] == {"no_score": 1, "score": 1} and list(verify(str(out), stages=True)) == []
    overlap = json.loads((out / "manifest.json").read_text())["contamination"]
    assert (overlap["flowers"]["overlap"], overlap["o"]["overlap"]) == (1, 0)


def test_evaluation_images_leave_the_set_by_their_embeddings(
    made: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("faiss")
    (tmp_path / "flowers").mkdir()
    (tmp_path / "flowers" / "3.jpg").write_bytes(picture(3))
    before = {row["text"][-2:]: row["key"] for row in open_set(out).table(["key", "text"]).to_pylist()}
    own, shown = np.eye(12, dtype=np.float32), {"3.jpg": 3, "mirrored.jpg": 7, "other.jpg": 0}
    vectors = {"own": (list(before.values()), own[[int(number) for number in before]])}
    near = own[list(shown.values())] + np.float32(0.03)
    vectors["shown"] = [*shown], np.where([[1], [1], [0]], near, -near)
    for name, (names, rows) in vectors.items():
        lists = pa.array(rows.tolist(), pa.list_(pa.float32()))
        pq.write_table(pa.table({"key": names, "embedding": lists}), tmp_path / f"{name}.parquet")
    given = ("--decontaminate", str(tmp_path / "flowers"), "--embeddings", str(tmp_path / "own.parquet"))
    more = ("--decontaminate-embeddings", f"flowers={tmp_path / 'shown.parquet'}", "--workers", "2")
    assert redo(made, out, *given, *more) == build.DONE
    assert ledger(out)["dropped"] == {"contaminated": 2}
    rows = pq.read_table(out / "contamination.parquet").sort_by("image").to_pylist()
    assert [(row["key"], row["set"], row["image"], row["kind"]) for row in rows] == [
        (before["03"], "flowers", "3.jpg", "bytes"),
        (before["07"], "flowers", "mirrored.jpg", "embedding"),
    ]
    assert rows[0]["cosine"] is None and rows[1]["distance"] is None and 0.99 <= rows[1]["cosine"] < 1
    counted = {"images": 1, "unreadable": 0, "overlap": 2, "pairs": 2}
    assert json.loads((out / "manifest.json").read_text())["contamination"] == {"flowers": {**counted, "images": 3}}
    shown = json.loads((out / "manifest.json").read_text())["options"]
    named = [shown[name] for name in ("decontaminate", "decontaminate_embeddings", "embeddings")]
    assert [item["name"] for items in named for item in items] == ["flowers", "flowers", "own.parquet"]
    assert len({item["digest"] for items in named for item in items}) == 3 and str(tmp_path) not in str(shown)
    assert not list((out / "stages" / "dedup-images").glob("*embeddings*"))
    assert list(verify(str(out), stages=True)) == []
    assert redo(made, out, *more) == build.USAGE
    assert "shown.parquet: needs --embeddings TABLE, the embeddings of the set by" in capsys.readouterr().err


@pytest.mark.usefixtures("without_beam")
def test_evaluation_images_that_cannot_be_decoded(
    made: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "flowers").mkdir()
    (tmp_path / "flowers" / "1.jpg").write_bytes(b"no image")
    assert redo(made, out, "--decontaminate", str(tmp_path / "flowers")) == build.BELOW
    assert "none of the 1 images of the set flowers can be decoded. The set is not published" in capsys.readouterr().err
    assert keys(out) == keys(made / "out")  # the set that was there stays
    staged = out / "stages" / "publish" / "set" / "metadata"
    assert list(staged.iterdir()) and list(verify(str(out), stages=True)) == []
    table = min(staged.iterdir())
    table.write_bytes(table.read_bytes()[:-9] + b"x" + table.read_bytes()[-8:])
    faults = [(fault.path, fault.problem) for fault in verify(str(out), stages=True)]
    remedy = "run the same command again with --redo dedup-images"
    assert faults == [
        (str(table.relative_to(out)), f"is damaged (its checksum does not fit): {remedy}"),
    ]


@pytest.mark.usefixtures("without_beam")
def test_a_set_without_a_pair_is_not_published(made: Path, out: Path, capsys: pytest.CaptureFixture) -> None:
    assert redo(made, out, "--min-image-side", "5000") == build.BELOW
    assert "no pair is left after dedup-images: of 12 fell 12 too_small. The set is not pub" in capsys.readouterr().err


@pytest.mark.usefixtures("without_beam")
def test_listed_content_never_enters_the_set(tmp_path: Path) -> None:
    pictures = {f"{name}.jpg": picture(n) for n, name in enumerate("url page md5 sha1 sha256 phash moved good".split())}
    phash = images.decode(pictures["phash.jpg"], FetchOptions()).phash
    with WebServer(pictures) as server:
        pairs = [{"url": f"{server.base}/img/{name}", "text": f"red dog {name}"} for name in pictures]
        pairs += [{"url": f"{server.base}/redirect/1/moved.jpg", "text": "red dog redirected"}]
        pairs[6]["url"] = "http://sub.bad.example/x.jpg"
        pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "pairs.parquet")
        (tmp_path / "queries.txt").write_text("red\n")
        digests = [hashlib.new(kind, pictures[f"{kind}.jpg"]).hexdigest() for kind in ("md5", "sha1", "sha256")]
        lines = [f"{server.base}/img/url.jpg", f"{server.base}/img/page.jpg", "bad.example", *digests, f"{phash:016x}"]
        (tmp_path / "list.txt").write_text("\n".join([*lines, f"{server.base}/img/moved.jpg"]))
        given = ("--blocklist", str(tmp_path / "list.txt"))
        assert run(tmp_path, tmp_path / "out", "--keep-rejected", "all", *given) == build.DONE
        assert not {"/img/url.jpg", "/img/page.jpg"} & server.hits.keys() and server.hits["/img/md5.jpg"] == 1
        assert run(tmp_path, tmp_path / "out") == build.USAGE  # without the list it is another set
        out = tmp_path / "out"
        assert ledger(out, "gather")["dropped"] == {"blocklisted": 3} and ledger(out, "fetch")["dropped"] == {
            "blocklisted": 5
        }
        assert open_set(out).table(["text"]).to_pylist() == [{"text": "red dog good"}]
        assert [item["name"] for item in json.loads((out / "manifest.json").read_text())["options"]["blocklist"]] == [
            "list.txt"
        ]
        assert list(verify(str(out), stages=True)) == []
        left = all_bytes(out)
        assert not [name for name, body in pictures.items() if name != "good.jpg" and body[-120:-60] in left]
        assert b"sub.bad.example" not in left and b"img/url.jpg" not in left
        assert not (out / "rejected").exists() or "blocklisted" not in str(list((out / "rejected").iterdir()))

        hashes = [hashlib.sha256(pictures["good.jpg"]).hexdigest(), "bad.example"]
        (tmp_path / "list.txt").write_text("\n".join([*digests[:2], *hashes, f"{phash:016x}"]))
        before = server.hits.copy()
        again = (*given, "--keep-rejected", "all", "--redo", "gather")
        assert run(tmp_path, tmp_path / "out", *again, "--stages", "gather..fetch") == build.DONE
        asked = {path.rpartition("/")[2] for path in server.hits if server.hits[path] > before[path]}
        assert asked - {"robots.txt", "tdmrep.json"} == {
            *("url.jpg", "page.jpg"),  # no longer listed
            *("md5.jpg", "sha1.jpg", "sha256.jpg", "phash.jpg", "moved.jpg"),  # refused before: asked again
        }
        info = json.loads((tmp_path / "out/stages/fetch/info.json").read_text())
        assert info["dropped"] == {"blocklisted": 4} and info["rows_out"] == 4


def run(tmp: Path, out: Path, *more: str) -> int:
    given = ["--input", str(tmp / "pairs.parquet"), "--output", str(out), "--queries", str(tmp / "queries.txt")]
    fixed = ["--allow-address", "127.0.0.0/8", "--workers", "1", "--shards", "2", "--phash-distance", "none"]
    return build.main([*given, *fixed, *more])


def redo(made: Path, out: Path, *more: str) -> int:
    return run(made, out, "--redo", "dedup-images", *more)


def ledger(out: Path, stage: str = "dedup-images") -> dict[str, Any]:
    return {row["stage"]: row for row in json.loads((out / "manifest.json").read_text())["ledger"]}[stage]


def keys(out: Path) -> list[str]:
    return [f"{uid}" for uid in open_set(out).table(["key"])["key"].to_pylist()]


@pytest.mark.usefixtures("without_beam")
def test_scores_drop_rows_and_stay_in_the_metadata(made: Path, out: Path, tmp_path: Path) -> None:
    before = keys(out)
    numbers = list(range(len(before) - 1))  # the last key has no score
    scores = pa.array([number / 10 for number in numbers], pa.float32())
    table = pa.table({"key": before[:-1], "clip_score": scores, "odd": numbers})
    pq.write_table(table, tmp_path / "scores.parquet")
    given = ("--scores", str(tmp_path / "scores.parquet"), "--keep", "clip_score >= 0.3 and width > 100")
    assert redo(made, out, *given) == build.DONE
    assert ledger(out)["dropped"] == {"no_score": 1, "score": 3} and keys(out) == before[3:-1]
    published = open_set(out).table(["key", "clip_score", "odd"])
    assert published.equals(table.slice(3).cast(published.schema))
    croissant = json.loads((out / "croissant.json").read_text())
    types = {field["name"]: field["dataType"] for field in croissant["recordSet"][1]["field"]}
    assert (types["clip_score"], types["odd"]) == ("sc:Float", "sc:Integer")
    assert list(verify(str(out), stages=True)) == []
    changed = compare(open_set(made / "out"), open_set(out))["options"]
    digest = xxhash.xxh3_128_hexdigest(xxhash.xxh3_128_digest((tmp_path / "scores.parquet").read_bytes()))
    scores_shown = [{"name": "scores.parquet", "digest": digest}]
    assert changed == {"keep": [None, given[-1]], "scores": [None, scores_shown]}

    rejected = pq.read_table(out / "rejected" / "dedup-images.parquet")
    assert sorted(rejected["reason"].to_pylist()) == ["no_score", "score", "score", "score"]

    gone = [before[0], before[-2]]  # one was dropped for its score
    assert forget.main([str(out), "--uid", gone[0], "--uid", gone[1]]) == 0
    assert ledger(out)["dropped"] == {"no_score": 1, "score": 2} and ledger(out)["rows_in"] == len(before) - 2
    left = all_bytes(out)
    assert not [key for key in gone if bytes.fromhex(key) in left or key.encode() in left]
    assert list(verify(str(out), stages=True)) == [] and keys(out) == before[3:-2]
    assert open_set(out).table(["key", "clip_score", "odd"]).equals(published.slice(0, published.num_rows - 1))


@pytest.mark.usefixtures("without_beam")
def test_nothing_is_left_of_a_forgotten_pair_with_an_embedding_and_a_score(
    made: Path, out: Path, tmp_path: Path
) -> None:
    pytest.importorskip("faiss")
    before, vectors = keys(out), np.eye(12, dtype=np.float32)
    vectors[4] = vectors[7]  # one of the two goes as a near-duplicate of the other
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 12)
    pq.write_table(pa.table({"key": before, "embedding": lists}), tmp_path / "embeddings.parquet")
    pq.write_table(pa.table({"key": before, "score": range(12)}), tmp_path / "scores.parquet")
    given = ("--embeddings", str(tmp_path / "embeddings.parquet"), "--scores", str(tmp_path / "scores.parquet"))
    assert redo(made, out, *given) == build.DONE
    assert list(verify(str(out), stages=True)) == []
    replaced = pq.read_table(out / "duplicates.parquet").to_pylist()
    assert {(row["key"], row["keeper"]) for row in replaced} <= {(before[4], before[7]), (before[7], before[4])}
    gone = [replaced[0]["key"], before[1]]
    for uid, rows in ((gone[1], replaced), (gone[0], [])):  # the first leaves the list of duplicates as it is
        assert forget.main([str(out), "--uid", uid]) == 0
        files = json.loads((out / "manifest.json").read_text())["files"]
        assert "duplicates.parquet" in {file["path"] for file in files}
        assert pq.read_table(out / "duplicates.parquet").to_pylist() == rows
    left = all_bytes(out)
    assert not [key for key in gone if bytes.fromhex(key) in left or key.encode() in left]
    assert list(verify(str(out), stages=True)) == []
    expected = [(key, number) for number, key in enumerate(before) if key not in gone]
    assert [tuple(row.values()) for row in open_set(out).table(["key", "score"]).to_pylist()] == expected


@pytest.mark.usefixtures("without_beam")
def test_fewer_rejected_rows_are_shown_without_a_fetch(
    made: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "scores.csv").write_text("".join(["key,s\n", *(f"{key},{at}\n" for at, key in enumerate(keys(out)))]))
    given = ("--scores", str(tmp_path / "scores.csv"), "--keep", "s > 5")
    assert redo(made, out, *given, "--keep-rejected", "all") == build.USAGE
    assert "--keep-rejected was sample and is all" in capsys.readouterr().err
    assert redo(made, out, *given, "--keep-rejected", "none") == build.DONE
    assert not (out / "rejected").exists() and list(verify(str(out), stages=True)) == []
    assert run(made, out, *given, "--redo", "publish") == build.DONE
    assert pq.read_table(out / "rejected/dedup-images.parquet").num_rows == 6


@pytest.mark.usefixtures("without_beam")
def test_scores_of_another_set(made: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "scores.csv").write_text(f"key,s\n{'0' * 32},1\n")
    given = ("--scores", str(tmp_path / "scores.csv"), "--keep", "s > 0.5")
    assert redo(made, out, *given) == build.BELOW
    message = "no pair is left after dedup-images: of 12 fell 12 no_score. The set is not published. Check that --sc"
    assert message in capsys.readouterr().err
    assert redo(made, out, "--keep", "width > 1e6") == build.BELOW
    said = capsys.readouterr().err
    assert "fell 12 score. The set is not published. Check --keep." in said and "--scores" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--keep", "s > 0.5"), "--keep s > 0.5: there is no column 's' (columns: height, language_score, "),
        (("--scores", "SCORES", "--keep", "noted > 0.5"), "there is no column 'noted'; did you mean note?"),
        (("--scores", "SCORES", "--keep", "s > 99"), "--keep s > 99: is true for none of the "),
        (("--scores", "SCORES", "--keep", "s"), "--keep s: takes 's' as true or false, but it is a number: compare it"),
        (("--scores", "SCORES", "--keep", "note > 1"), "there is no column 'note' (columns: height"),
        (("--scores", "SCORES", "SCORES"), "has a s in"),
        (("--scores", "NOWHERE"), "--scores NOWHERE: no such file"),
        (("--keep", ""), "--keep '': cannot be read at its end"),
        (("--decontaminate", "NOWHERE"), "--decontaminate NOWHERE: no such file or folder"),
        (("--decontaminate", "EMPTY"), "holds no image, tar or table of images"),
        (("--decontaminate", "SCORES"), "must be a folder, a .tar or a .parquet file, or NAME=PATH"),
        (("--decontaminate-distance", "9"), "must be a whole number of at least 0 and at most 8"),
    ],
)
def test_bad_scores(
    made: Path, out: Path, tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture
) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text(f"key,s,note\n{'0' * 32},1,x\n")
    before = sorted(path for path in out.rglob("*"))
    (tmp_path / "empty").mkdir()
    places = {"SCORES": str(scores), "EMPTY": str(tmp_path / "empty")}
    given = [places.get(word, word) for word in words]
    assert redo(made, out, *given) in (build.USAGE, build.MISSING)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(path for path in out.rglob("*")) == before


def test_a_folder_with_other_scores_is_refused(made: Path, out: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(made, out, "--keep", "width > 10") == build.USAGE
    message = "--keep was not given and is width > 10): repeat those, use another --output, or add --redo dedup-images"
    assert message in capsys.readouterr().err
