"""All stages: a table of URLs on a loopback server is fetched, deduplicated, balanced again and published."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import build, forget
from pipeline.dataset.verify import verify
from pipeline.inspect_shards import main as inspect
from pipeline.schema import STAGES
from tests.webserver import WebServer, picture
from tests.without_beam import without_beam  # noqa: F401

QUERIES = ["red", "dog", "a", "number", "common"]


@pytest.fixture(scope="module")
def server():
    images = {f"{number}.jpg": picture(number) for number in range(40)}
    images["copy.jpg"] = images["3.jpg"]
    with WebServer(images) as running:
        yield running


def arguments(tmp: Path, server: WebServer, out: str = "out") -> list[str]:
    (tmp / "queries.txt").write_text("\n".join(QUERIES))
    urls = [f"{server.base}/img/{number}.jpg" for number in range(40)]
    texts = [f"a common red dog number {number}" for number in range(40)]
    bad = {"img/copy.jpg": "a copy of a dog", "status/404": "a missing dog", "html": "a red page"}
    bad["flaky/503/1.jpg"] = "a dog at second sight"
    urls += [f"{server.base}/{path}" for path in bad]
    texts += list(bad.values())
    pq.write_table(pa.table({"url": urls, "text": texts}), tmp / "pairs.parquet")
    return [
        *("--input", str(tmp / "pairs.parquet"), "--output", str(tmp / out), "--queries", str(tmp / "queries.txt")),
        *("--allow-address", "127.0.0.0/8", "--workers", "1", "--rows-per-shard", "12"),
    ]


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def sizes(out: Path) -> dict[str, int]:
    return json.loads((out / "shards/sizes.json").read_text())


def ranges(out: Path) -> int:
    """The number of ranges, which stands in three places."""
    found = manifest(out)["shards"]["ranges"]
    info = json.loads((out / "stages/publish/info.json").read_text())
    assert info["shards"] == found == json.loads((out / "shards.json").read_text())["ranges"]
    assert list(verify(str(out))) == []
    return found


def test_published_folder(tmp_path: Path, server: WebServer) -> None:
    assert build.main(arguments(tmp_path, server)) == build.DONE
    out = tmp_path / "out"
    rows = {row["stage"]: row for row in manifest(out)["ledger"]}
    assert list(rows) == list(STAGES)
    for row in rows.values():
        assert row["rows_in"] == row["rows_out"] + sum(row["dropped"].values())
    assert rows["fetch"]["dropped"] == {"http_4xx": 1, "not_an_image": 1}
    assert rows["dedup-images"]["dropped"]["same_image"] >= 1
    tars = sorted((out / "shards").glob("*.tar"))
    assert {path.name for path in tars} == set(sizes(out)) <= {f"{number:05d}.tar" for number in range(ranges(out))}
    assert ranges(out) == -(-rows["publish"]["rows_out"] // 12)
    names: list[str] = []
    for path in tars:
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert len(names) == 3 * rows["publish"]["rows_out"]
    metadata = pq.read_table(sorted((out / "metadata").glob("*.parquet")))
    assert metadata.num_rows == rows["publish"]["rows_out"]
    assert metadata["key"].to_pylist() == sorted(metadata["key"].to_pylist())


@pytest.mark.usefixtures("without_beam")
def test_the_first_build_fixes_the_ranges(tmp_path: Path, server: WebServer, capsys: pytest.CaptureFixture) -> None:
    given, out = arguments(tmp_path, server)[:-2], tmp_path / "out"
    assert build.main([*given, "--rows-per-shard", "12"]) == build.DONE
    first = ranges(out)
    before = manifest(out)
    assert build.main([*given, "--redo", "publish"]) == build.DONE  # nothing is said: as it was
    assert ranges(out) == first == 4 and manifest(out)["digest"] == before["digest"]
    assert build.main(given) == build.DONE
    table = pq.read_table(tmp_path / "pairs.parquet")
    pq.write_table(table.slice(0, 9), tmp_path / "pairs.parquet")
    fewer = [*given, "--redo", "gather"]
    assert build.main([*fewer, "--rows-per-shard", "12"]) == build.DONE  # the same is said: as it was
    assert ranges(out) == 4 and manifest(out)["rows"] == 9
    (out / "shards.json").unlink()  # a copy without it
    assert build.main([*given, "--redo", "publish"]) == build.DONE
    assert ranges(out) == 4
    assert build.main([*given, "--redo", "publish", "--rows-per-shard", "5"]) == build.DONE  # something else is said
    assert ranges(out) == 2
    assert build.main([*given, "--redo", "publish", "--shards", "7"]) == build.DONE
    assert ranges(out) == 7
    assert build.main([*given, "--redo", "publish"]) == build.DONE
    assert ranges(out) == 7
    (out / "shards.json").write_text('{"ranges": 0}')
    capsys.readouterr()
    kept = manifest(out)
    assert build.main([*given, "--redo", "publish", "--rows-per-shard", "5"]) == build.USAGE
    assert "shards.json is damaged" in capsys.readouterr().err and manifest(out) == kept
    assert build.main([*given, "--redo", "publish", "--shards", "3"]) == build.DONE
    assert ranges(out) == 3


@pytest.mark.parametrize("exchange", ["files", "shuffle"])
def test_more_ranges_than_pairs(tmp_path: Path, server: WebServer, exchange: str) -> None:
    """The names get a sixth digit, and the work follows the pairs, not the ranges."""
    given, out = arguments(tmp_path, server)[:-2], tmp_path / "out"
    assert build.main([*given, "--shards", "1000000", "--exchange", exchange]) == build.DONE
    assert ranges(out) == 1_000_000
    found = pq.read_table(sorted((out / "metadata").glob("*.parquet")))
    wanted = {f"{int(key, 16) * 1_000_000 >> 128:06d}.tar" for key in found["key"].to_pylist()}
    assert set(sizes(out)) == wanted and sum(sizes(out).values()) == found.num_rows == manifest(out)["rows"]
    assert len(list((out / "stages/publish/shards").glob("*.json"))) <= found.num_rows


@pytest.mark.usefixtures("without_beam")
def test_more_pairs_leave_the_other_shards_as_they_are(tmp_path: Path, server: WebServer) -> None:
    """More pairs with the same queries change every keep_probability, and no tar but those that they are in."""
    given = [*arguments(tmp_path, server)[:-2], "--cap", "30", "--shards", "16"]
    pq.write_table(pq.read_table(tmp_path / "pairs.parquet").slice(0, 36), tmp_path / "pairs.parquet")
    assert build.main(given) == build.DONE
    more = pa.table({"url": [f"{server.base}/img/{n}.jpg" for n in range(36, 40)], "text": ["a red dog number"] * 4})
    pq.write_table(more, tmp_path / "more.parquet")
    grown = ["--input", *(str(tmp_path / name) for name in ("pairs.parquet", "more.parquet")), *given[2:]]
    assert build.main([*grown, "--output", str(tmp_path / "more")]) == build.DONE
    tars, chances = [], []
    for name in ("out", "more"):
        out = tmp_path / name
        assert ranges(out) == 16
        found = pq.read_table(sorted((out / "metadata").glob("*.parquet")))
        rows = found.select(["shard", "key", "keep_probability"]).to_pylist()
        tars.append({n: [row["key"] for row in rows if row["shard"] == n] for n in {row["shard"] for row in rows}})
        chances.append({row["key"]: row["keep_probability"] for row in rows})
    same = [n for n, keys in tars[0].items() if tars[1].get(n) == keys]
    assert 2 <= len(same) < len(tars[1])
    for number in same:
        path = f"shards/{number:05d}.tar"
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "more" / path).read_bytes()
        assert all(chances[0][key] > chances[1][key] for key in tars[0][number])


def test_publishing_again_gives_the_same_bytes(tmp_path: Path, server: WebServer) -> None:
    given = arguments(tmp_path, server)
    assert build.main(given) == build.DONE
    before = manifest(tmp_path / "out")
    assert build.main([*given, "--redo", "dedup-images", "--workers", "2", "--exchange", "shuffle"]) == build.DONE
    after = manifest(tmp_path / "out")
    assert after["files"] == before["files"] and after["digest"] == before["digest"]
    shutil.rmtree(tmp_path / "out" / "shards")


@pytest.mark.usefixtures("without_beam")
def test_retry_failed_fetches_only_what_may_pass(tmp_path: Path, server: WebServer) -> None:
    given = [*arguments(tmp_path, server, "retried"), "--fetch-rounds", "0"]
    table = pq.read_table(tmp_path / "pairs.parquet")
    dead = pa.table({"url": [f"{server.base}/status/500"], "text": ["a broken dog"]})
    pq.write_table(pa.concat_tables([table, dead]), tmp_path / "pairs.parquet")
    assert build.main(given) == build.DONE
    hits = sum(server.hits.values())
    info = json.loads((tmp_path / "retried/stages/fetch/info.json").read_text())
    assert info["dropped"]["http_5xx"] == 1 and info["retryable"] == 1
    assert build.main([*given, "--retry-failed"]) == build.DONE
    again = json.loads((tmp_path / "retried/stages/fetch/info.json").read_text())
    assert again["attempts"] == 2 and again["rows_in"] == info["rows_in"]
    assert sum(server.hits.values()) - hits < 6


@pytest.mark.usefixtures("without_beam")
def test_the_cap_is_met_after_expected_losses(tmp_path: Path, server: WebServer) -> None:
    given = arguments(tmp_path, server, "lossy")
    urls = [f"{server.base}/{f'status/404?n={number}' if number % 2 else f'img/{number}.jpg'}" for number in range(40)]
    texts = [f"a common red dog number {number}" for number in range(40)]
    pq.write_table(pa.table({"url": urls, "text": texts}), tmp_path / "pairs.parquet")
    assert build.main([*given, "--cap", "4", "--expected-yield", "0.5"]) == build.DONE
    out = tmp_path / "lossy"
    names = ("balance", "fetch", "dedup-images", "publish")
    stages = {stage: json.loads((out / f"stages/{stage}/info.json").read_text()) for stage in names}
    assert stages["balance"]["cap"] == 8 and stages["publish"]["cap"] == 4
    assert set(stages["fetch"]["dropped"]) == {"http_4xx"} and stages["fetch"]["rows_out"] > 0
    metadata = pq.read_table(sorted((out / "metadata").glob("*.parquet")))
    picks = [query for kept_by in metadata["kept_by"].to_pylist() for query in kept_by]
    left = stages["dedup-images"]["rows_out"]  # the selected URLs depend on the port of the server
    assert {picks.count(query) for query in range(len(QUERIES))} == {min(4, left)}
    assert stages["publish"]["dropped"].get("over_cap", 0) == left - metadata.num_rows


@pytest.mark.usefixtures("without_beam")
def test_images_of_a_poor_shape_are_dropped_without_a_new_fetch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"icon": (63, 63), "small": (300, 63), "fine": (64, 64), "banner": (600, 199), "wide": (600, 200)}
    shapes = {f"{name}.png": picture(1, size, "PNG") for name, size in sizes.items()}
    with WebServer(shapes) as server:
        given = [*arguments(tmp_path, server), "--phash-distance", "none"]  # they show the same
        urls = [f"{server.base}/img/{name}" for name in shapes]
        texts = [f"a red {name}" for name in sizes]
        pq.write_table(pa.table({"url": urls, "text": texts}), tmp_path / "pairs.parquet")
        assert build.main(given) == build.DONE
    out = tmp_path / "out"
    rows = {row["stage"]: row for row in manifest(out)["ledger"]}
    assert rows["dedup-images"] == {
        "stage": "dedup-images", "rows_in": 5, "rows_out": 2, "dropped": {"too_small": 2, "aspect": 1},
    }  # fmt: skip
    found = pq.read_table(sorted((out / "metadata").glob("*.parquet"))).to_pylist()
    assert {(row["text"], row["image_side"], row["aspect"]) for row in found} == {
        ("a red fine", 64, 1.0),
        ("a red wide", 200, 3.0),
    }
    rejected = pq.read_table(out / "rejected/dedup-images.parquet").to_pylist()
    assert {(row["text"], row["reason"]) for row in rejected} == {
        ("a red icon", "too_small"),
        ("a red small", "too_small"),
        ("a red banner", "aspect"),
    }
    page = (out / "report/index.html").read_text()
    assert page.count('<span class="shape"><img') == 3 and "a red banner" in page
    (tmp_path / "like.png").write_bytes(picture(1, (320, 320), "PNG"))
    capsys.readouterr()
    words = ["find", str(out), "--like", str(tmp_path / "like.png"), "--distance", "64", "--json"]
    assert inspect(words) == build.DONE
    near = json.loads(capsys.readouterr().out)["pairs"]
    assert {(pair["text"], pair["reason"]) for pair in near} >= {("a red icon", "too_small"), ("a red fine", "")}
    bits = [int(pair["detail"].split(" bit")[0]) for pair in near]
    assert len(near) == 5 and bits == sorted(bits) and bits[0] < 8
    assert inspect([*words[:3], str(tmp_path / "pairs.parquet")]) == build.USAGE
    copy = shutil.copytree(out, tmp_path / "copy")
    assert forget.main([str(copy), "--url", urls[0], "--quiet"]) == build.DONE
    page = (copy / "report/index.html").read_text()  # what is forgotten is not shown, and the pictures are gone
    assert '<span class="shape"><img' not in page and "a red icon" not in page
    other = [*given, "--redo", "dedup-images", "--min-image-side", "16", "--max-aspect", "20"]
    assert build.main(other) == build.DONE  # the server is gone
    assert manifest(out)["rows"] == 5 and list(verify(str(out))) == []


def test_near_duplicates_are_dropped_and_come_back_without_a_new_fetch(tmp_path: Path) -> None:
    large = picture(1, (800, 600))
    image = Image.open(io.BytesIO(large))
    out_of = {
        "large.jpg": image,
        "smaller.webp": image.resize((600, 450)),
        "other.jpg": Image.open(io.BytesIO(picture(2))),
    }
    files = {name: encoded(image, "WEBP" if name.endswith("webp") else "JPEG") for name, image in out_of.items()}
    files["copy.webp"] = files["smaller.webp"]
    plain = {f"plain{level}.png": encoded(Image.new("RGB", (80, 80), (level, 0, 0)), "PNG") for level in (10, 200)}
    with WebServer(files | plain) as server:
        given = arguments(tmp_path, server)
        urls = [f"{server.base}/img/{name}" for name in files | plain]
        texts = [
            "a red dog",
            "a very red dog in a long text",
            "another dog",
            "a copy",
            "a red surface",
            "a dark number",
        ]
        pq.write_table(pa.table({"url": urls, "text": texts}), tmp_path / "pairs.parquet")
        assert build.main(given) == build.DONE
    out = tmp_path / "out"
    first = manifest(out)
    ledger = {row["stage"]: row for row in first["ledger"]}
    assert ledger["dedup-images"]["dropped"] == {"near_duplicate": 1, "same_image": 1}
    keys = {row["text"]: row["key"] for row in pq.read_table(sorted((out / "metadata").glob("*"))).to_pylist()}
    assert set(keys) == set(texts) - {texts[1], texts[3]}
    table = pq.read_table(out / "duplicates.parquet")
    assert [row["keeper"] for row in table.to_pylist()] == [keys["a red dog"]] * 2  # the largest original
    assert (
        sorted(table["kind"].to_pylist()) == ["near_duplicate", "same_image"]
        and max(table["distance"].to_pylist()) <= 2
    )
    assert {"path": "duplicates.parquet", "rows": 2}.items() <= next(
        entry for entry in first["files"] if entry["path"] == "duplicates.parquet"
    ).items()
    again = [*given[:-4], "--rows-per-shard", "12", "--redo", "dedup-images"]
    assert build.main([*again, "--workers", "2", "--exchange", "shuffle"]) == build.DONE  # the server is gone
    assert manifest(out)["digest"] == first["digest"]
    assert build.main([*again, "--workers", "1", "--phash-distance", "none"]) == build.DONE
    assert manifest(out)["rows"] == 5 and list(verify(str(out))) == []

    pytest.importorskip("faiss")
    given, vectors = [keys["another dog"], keys["a red surface"], "0" * 32], [[1.0, 0.0], [2.0, 0.1], [1.0, 0.0]]
    pq.write_table(pa.table({"key": given, "embedding": vectors}), tmp_path / "embeddings.parquet")
    more = ["--embeddings", str(tmp_path / "embeddings.parquet"), "--embedding-threshold", "0.99"]
    assert build.main([*again, *more, "--workers", "2", "--exchange", "shuffle"]) == build.DONE
    kinds = pq.read_table(out / "duplicates.parquet")["kind"].to_pylist()
    assert sorted(kinds) == ["near_duplicate", "near_embedding", "same_image"]
    assert manifest(out)["rows"] == 3 and list(verify(str(out))) == []
    said = json.loads((out / "stages" / "dedup-images" / "info.json").read_text())["embeddings"]
    assert said == {"rows": 2, "without": 4, "other_keys": 1}
    assert not (out / "stages" / "dedup-images" / "embeddings").exists()


def encoded(image: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, form)
    return out.getvalue()


@pytest.mark.usefixtures("without_beam")
def test_a_target_out_of_reach_is_said(tmp_path: Path, server: WebServer, capsys: pytest.CaptureFixture) -> None:
    given = arguments(tmp_path, server)
    select = [*given, "--stages", "gather..balance", "--target-pairs"]
    for target, more, said in (
        ("44", [], ""),
        ("1", [], "--target-pairs 1 cannot be reached: each query that a text contains picks one pair at least, "),
        ("45", [], "--target-pairs 45 cannot be reached: queries can pick 44 pairs\n"),
        ("40", ["--expected-yield", "0.8"], "queries can pick 44 pairs, and --expected-yield asks for 50\n"),
    ):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        capsys.readouterr()
        assert build.main([*select, target, *more]) == build.DONE
        printed = capsys.readouterr().out
        assert said in printed and ("--target-pairs" in printed) == bool(said)
    assert build.main([*given, "--target-pairs", "40", "--expected-yield", "0.8", "--json"]) == build.DONE
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning.startswith("--target-pairs 40 cannot be reached")
    assert build.main([*given, "--target-pairs", "44", "--redo", "balance"]) == build.DONE
    assert "--target-pairs 44 is not reached: 40 pairs are left after the fetch" in capsys.readouterr().out
