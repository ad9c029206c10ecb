"""`pipeline.forget`: nothing of a pair is left, all else stays, and a crash leaves the old set or the new one."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build, forget, inspect_shards
from pipeline.dataset.exports import write_rows
from pipeline.dataset.open_set import open_set
from pipeline.dataset.tombstones import Tombstones
from pipeline.dataset.verify import verify
from pipeline.engine import merging, work
from pipeline.engine.journal import Change
from pipeline.forget import Selection
from pipeline.stages import purge
from tests import samples
from tests.places import ROOT
from tests.webserver import WebServer, picture
from tests.without_beam import without_beam  # noqa: F401

QUERIES = ["red", "dog", "a", "number", "common"]
NUMBERS = range(30)
MERGED = {  # the exchanges of this build: each of them can be made in two levels
    "balance/merged-balance-band-band",
    "dedup-images/merged-dedup-images-clusters-drops",
    "dedup-images/merged-dedup-images-drops-drops",
    "dedup-images/merged-dedup-images-hashes-hashes",
    "dedup-images/merged-dedup-images-similar-similar",
    "dedup/merged-dedup-drops-drops",
    "dedup/merged-dedup-drops-links",
    "dedup/merged-dedup-taken-taken",
    "dedup/merged-match-parts-keys",
    "fetch/merged-fetch-hosts-rows",
    "publish/merged-publish-band-band",
    "publish/merged-publish-selected-rows",
}
MOVED = ("", "", "?utm_source=a", "?utm_source=b")  # of URLs of one image that is redirected, each with another text


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    images = {f"picture-{number:02}.jpg": picture(number) for number in NUMBERS}
    images["again.jpg"] = images["picture-03.jpg"]
    images |= {f"moved.jpg{query}": picture(len(NUMBERS)) for query in MOVED}
    with WebServer(images) as running:
        yield running


@pytest.fixture(scope="module")
def made(server: WebServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs and OUT. Tests work on copies."""
    tmp = tmp_path_factory.mktemp("forget")
    (tmp / "queries.txt").write_text("\n".join(QUERIES))
    other = server.base.replace("127.0.0.1", "localhost")
    urls = [f"{other if n >= 27 else server.base}/img/picture-{n:02}.jpg" for n in NUMBERS]
    texts = [f"a common red dog number {n:02}" for n in NUMBERS]
    more = {"img/again.jpg": "a dog again, in other words", "status/404": "a missing dog", "html": "a red page"}
    urls += [f"{server.base}/{path}" for path in more]
    texts += list(more.values())
    urls += [f"{server.base}/redirect/1/moved.jpg{query}" for query in MOVED]
    texts += [f"a red dog that moved {' on' * number}" for number in range(len(MOVED))]
    urls.append(f"{server.base}/img/never-matched.jpg")
    texts.append("xyzzy plugh")
    pq.write_table(pa.table({"url": urls, "text": texts}), tmp / "pairs.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "MOST_READS", 0)  # so that exchanges merge: their files hold the pairs, too
        assert build.main(command(tmp, tmp / "out")) == build.DONE
    merged = {f"{path.parent.name}/{path.name}" for path in (tmp / "out/stages").glob("*/merged-*")}
    assert merged == MERGED
    return tmp


def command(tmp: Path, out: Path, *more: str) -> list[str]:
    given = ["--input", str(tmp / "pairs.parquet"), "--output", str(out), "--queries", str(tmp / "queries.txt")]
    return [*given, "--allow-address", "127.0.0.0/8", "--workers", "1", "--shards", "4", *more]


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def all_bytes(out: Path) -> bytes:
    """The bytes of all files, and the values of all Parquet and Arrow files. Bucket files and tars are not packed."""
    found = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        found.append(data := path.read_bytes())
        if data.endswith(b"PAR1"):
            found += values(pq.read_table(io.BytesIO(data)))
        elif data.endswith(b"ARROW1"):
            found += values(pa.ipc.open_file(data).read_all())
    return b"\n".join(found)


def values(table: pa.Table) -> Iterator[bytes]:
    for column in table.columns:
        for value in column.to_pylist():
            yield value if isinstance(value, bytes) else str(value).encode()


def traces(row: dict[str, Any], image: bytes) -> dict[str, bytes]:
    """What must not be left of a pair."""
    found = {name: row[name].encode() for name in ("url", "text", "uid", "sha256", "original_sha256")}
    found |= {f"{name} as bytes": bytes.fromhex(row[name]) for name in ("uid", "sha256", "original_sha256")}
    middle = image[-120:-60]
    return found | {"image": middle, "image in the report": base64.b64encode(image)[-200:-120]}


def row_of(out: Path, text: str) -> tuple[dict[str, Any], bytes]:
    pairs = open_set(out)
    for table in pairs.rows():
        for row in table.to_pylist():
            if text in row["text"]:
                return row, pairs.sample(row["key"]).image
    raise AssertionError(text)


def published(out: Path) -> list[dict[str, Any]]:
    """The rows without the places in the tar."""
    rows = open_set(out).table().to_pylist()
    return [
        {name: row[name] for name in row if not name.endswith("_offset") or name == "source_offset"} for row in rows
    ]


@pytest.mark.parametrize("kind", ["url", "uid", "sha256", "domain"])
def test_nothing_of_the_pair_is_left_and_all_else_stays(out: Path, kind: str, capsys: pytest.CaptureFixture) -> None:
    before, gone = published(out), row_of(out, "number 28")
    value = {"domain": "LocalHost.", "sha256": gone[0]["original_sha256"]}.get(kind) or gone[0][kind]
    fit = (lambda row: "localhost" in row["url"]) if kind == "domain" else (lambda row: "number 28" in row["text"])
    old = {path.name: path.read_bytes() for path in (out / "shards").glob("*.tar")}
    assert all(trace in all_bytes(out) for trace in traces(*gone).values())
    assert forget.main([str(out), f"--{kind}", value, "--dry-run"]) == 0
    assert {path.name: path.read_bytes() for path in (out / "shards").glob("*.tar")} == old
    assert not (out / "forgotten.parquet").exists()
    assert forget.main([str(out), f"--{kind}", value]) == 0
    count = 3 if kind == "domain" else 1
    assert f"forgot {count} pairs, {count} of them published" in capsys.readouterr().out
    left = all_bytes(out)
    assert [name for name, trace in traces(*gone).items() if trace in left] == []
    assert published(out) == [row for row in before if not fit(row)]
    touched = {row["shard"] for row in before if fit(row)}
    for path in (out / "shards").glob("*.tar"):
        assert (path.read_bytes() == old[path.name]) == (int(path.stem) not in touched)
    assert list(verify(str(out), stages=True)) == []
    assert not (out / ".change").exists() and os.stat(out / "forgotten.parquet").st_mode & 0o77 == 0


@pytest.mark.usefixtures("without_beam")
def test_it_equals_a_fresh_build_with_the_same_tombstones(made: Path, out: Path, tmp_path: Path) -> None:
    texts = ["number 05", "number 29", "number 03", "a missing dog"]
    listed = [f"uid {uid}" for text in texts for uid in uids_of(out, text)]
    (tmp_path / "list.txt").write_text("# a request\n\n" + "\n".join(listed))
    assert forget.main([str(out), "--list", str(tmp_path / "list.txt")]) == 0
    first = manifest(out)
    ledger = {row["stage"]: row["dropped"] for row in first["ledger"]}
    assert ledger["gather"]["forgotten"] == 4 and ledger["fetch"] == {"not_an_image": 1}
    units = [json.loads(path.read_text()) for path in (out / "stages/match").rglob("*.json")]
    counted = [row for unit in units for row in unit.get("ledgers", {}).values()]
    assert counted and all(row["rows_in"] == row["rows_out"] + sum(row["dropped"].values()) for row in counted)
    for stage in ("publish", "dedup-images"):  # the stages' folders fit
        assert build.main(command(made, out, "--redo", stage)) == build.DONE
        assert list(verify(str(out), stages=True)) == []
        if "again" not in str(published(out)):
            assert manifest(out)["digest"] == first["digest"]
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copy(out / "forgotten.parquet", fresh)
    (fresh / ".workers").touch()
    assert build.main(command(made, fresh)) == build.DONE
    assert build.main(command(made, out, "--redo", "gather")) == build.DONE
    assert manifest(fresh)["digest"] == manifest(out)["digest"]
    rows = {row["stage"]: row for row in manifest(fresh)["ledger"]}
    assert rows["gather"]["dropped"] == {"forgotten": 4}
    for out_dir in (out, fresh):
        left = all_bytes(out_dir)
        assert not any(text.encode() in left for text in texts)


def uids_of(out: Path, text: str) -> list[str]:
    """The uids of the matched pairs with this text."""
    found = pa.ipc.open_file(next((out / "stages/match/parts").glob("*.arrow")).read_bytes()).read_all()
    return [row["uid"].hex() for row in found.to_pylist() if text in row["text"]]


@pytest.mark.usefixtures("without_beam")
def test_dropped_pairs_go_too(out: Path) -> None:
    """A pair that match dropped is only among the rejected rows; one that the fetch lost is in many files."""
    assert b"never-matched.jpg" in all_bytes(out)
    (twin,) = pq.read_table(out / "rejected/dedup-images.parquet").to_pylist()
    assert [twin["key"]] == pq.read_table(out / "duplicates.parquet")["key"].to_pylist()
    (url,) = {row["url"] for row in pq.read_table(out / "rejected/match.parquet").to_pylist()}
    before = manifest(out)
    assert forget.main([str(out), "--url", url, "--url", url.replace("img/never-matched.jpg", "html")]) == 0
    left = all_bytes(out)
    assert b"never-matched" not in left and b"a red page" not in left and b"xyzzy" not in left
    assert not (out / "rejected/match.parquet").exists()
    assert [entry for entry in manifest(out)["files"] if "shards/0" in entry["path"]] == [
        entry for entry in before["files"] if "shards/0" in entry["path"]
    ]
    assert list(verify(str(out), stages=True)) == []


@pytest.mark.usefixtures("without_beam")
def test_an_image_does_not_come_back_under_another_url(made: Path, out: Path, server: WebServer) -> None:
    row, image = row_of(out, "number 28")
    assert forget.main([str(out), "--sha256", row["sha256"]]) == 0  # the stored bytes: those as served follow
    table = pq.read_table(made / "pairs.parquet")
    more = pa.table({"url": [f"{server.base}/img/picture-28.jpg"], "text": ["a red dog elsewhere"]})
    pq.write_table(pa.concat_tables([table, more]), out.parent / "pairs.parquet")
    given = command(made, out, "--redo", "gather")
    given[1] = str(out.parent / "pairs.parquet")
    assert build.main(given) == build.DONE
    dropped = {row["stage"]: row["dropped"] for row in manifest(out)["ledger"]}
    assert dropped["fetch"]["forgotten"] == 1 and dropped["gather"]["forgotten"] == 1
    left = all_bytes(out)
    assert traces(row, image)["image"] not in left and row["original_sha256"].encode() not in left
    assert b"dog elsewhere" not in (out / "rejected/fetch.parquet").read_bytes()


@pytest.mark.parametrize("kind", ["url", "sha256"])
@pytest.mark.usefixtures("without_beam")
def test_all_urls_and_texts_of_a_redirected_image_go(made: Path, server: WebServer, out: Path, kind: str) -> None:
    """The pairs of the other URLs and texts were dropped before the fetch, so only their URLs tie them to the image."""
    row, image = row_of(out, "that moved")
    value = f"{server.base}/img/moved.jpg" if kind == "url" else row["original_sha256"]
    assert b"moved.jpg" in (out / "rejected/dedup.parquet").read_bytes() and "/img/moved.jpg?" in row["final_url"]
    assert forget.main([str(out), f"--{kind}", value]) == 0
    traces_left = [name for name, trace in traces(row, image).items() if trace in all_bytes(out)]
    assert traces_left == [] and b"moved" not in all_bytes(out) and list(verify(str(out), stages=True)) == []
    first, asked = manifest(out), Counter(server.hits)
    if kind == "url":
        assert build.main(command(made, out, "--redo", "gather")) == build.DONE
        pages = ("README.md", "report/index.html")  # they count who was asked for rights, and the forgotten were
        files = [[file for file in of["files"] if file["path"] not in pages] for of in (manifest(out), first)]
        assert files[0] == files[1] and b"moved" not in all_bytes(out)
        assert not [path for path in server.hits - asked if "moved" in path]


def test_inside_an_interrupted_fetch(made: Path, server: WebServer, out: Path) -> None:
    """An attempt of the fetch was interrupted. The shards of the publication before it are still there."""
    for path in ("stages/dedup-images", "stages/publish"):
        shutil.rmtree(out / path)
    (out / "manifest.json").unlink()
    fetched = out / "stages/fetch"
    for path in (fetched / "COMPLETED", fetched / "info.json", fetched / "files.json"):
        path.unlink()
    for path in fetched.glob("images-*/*.json"):
        path.unlink()
    (fetched / "images-000/00000-000.pieces").write_bytes(b"number 28 in pieces")
    assert forget.main([str(out), "--url", f"{server.base.replace('127.0.0.1', 'localhost')}/img/picture-28.jpg"]) == 0
    assert b"number 28" not in all_bytes(out) and b"picture-28" not in all_bytes(out)
    assert build.main(command(made, out)) == build.DONE
    assert list(verify(str(out), stages=True)) == []
    assert b"number 28" not in all_bytes(out) and manifest(out)["rows"] == len(NUMBERS)


def test_a_copy_of_the_published_files(tmp_path: Path) -> None:
    samples.publish(tmp_path / "some", count=30)
    samples.publish(tmp_path / "all", count=30, numbers=[n for n in range(30) if n % 4 != 1])
    for name in ("some", "all"):
        shutil.rmtree(tmp_path / name / "stages")
    assert forget.main([str(tmp_path / "some"), "--domain", "example.com", "--domain", "none.example"]) == 0
    assert list(verify(str(tmp_path / "some"))) == []
    for path in ("shards", "metadata"):
        for file in (tmp_path / "all" / path).iterdir():
            assert file.read_bytes() == (tmp_path / "some" / path / file.name).read_bytes()
    assert open_set(tmp_path / "some").ledger[0]["dropped"]["forgotten"] == 8


def test_pages_and_a_shard_that_loses_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    samples.publish(out, count=15)
    shutil.rmtree(out / "stages")
    keys = [row["key"] for row in open_set(out).table(["key"]).to_pylist()][12:]
    given = [word for key in keys for word in ("--uid", key)]
    assert forget.main([str(out), *given, "--page-domain", "bilder.example.de"]) == 0
    assert list(verify(str(out))) == [] and not (out / "shards/00001.tar").exists()
    assert {row["page_url"].split("/")[2] for row in open_set(out).table().to_pylist()} == set(samples.HOSTS[:3])
    stones = Tombstones.load(str(out))
    assert stones is not None and stones.has("page_domain", "a.bilder.example.de") and stones.has("uid", keys[0])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "nothing to forget"),
        (["--url", "not a url"], 2, "--url: 'not a url' is no http or https URL"),
        (["--uid", "12"], 2, "--uid: '12' is not 32 hexadecimal digits"),
        (["--domain", "a b"], 2, "--domain: 'a b' is no domain"),
        (["--domian", "a.org"], 2, "did you mean --domain?"),
        (["--list", "LIST"], 2, "2 bad lines (line 2: 'example.org' must be a URL"),
        (["--list", "EMPTY"], 2, "it has no line"),
        (["--list", "NONE"], 4, "cannot be read"),
    ],
)
def test_refusals(tmp_path: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture) -> None:
    samples.publish(tmp_path / "out", count=3)
    (tmp_path / "LIST").write_text("https://example.org/a.jpg\nexample.org\nuid 77\ndomain: example.org\n")
    (tmp_path / "EMPTY").write_text("# nothing\n\n")
    given = [str(tmp_path / word) if word.isupper() else word for word in words]
    before = all_bytes(tmp_path / "out")
    assert forget.main([str(tmp_path / "out"), *given]) == code
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert all_bytes(tmp_path / "out") == before and not (tmp_path / "out/forgotten.parquet").exists()


def test_no_set_and_a_running_build(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--domain", "example.org"]
    assert forget.main([str(tmp_path / "none"), *words]) == 4 and not (tmp_path / "none").exists()
    (tmp_path / "other").mkdir()
    assert forget.main([str(tmp_path / "other"), *words]) == 4 and not list((tmp_path / "other").iterdir())
    samples.publish(tmp_path / "out", count=3)
    capsys.readouterr()
    with work.lock_run_folder(str(tmp_path / "out")):
        script = [sys.executable, "-m", "pipeline.forget", str(tmp_path / "out"), *words]
        run = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "another run holds the output folder" in run.stderr and run.stderr.count("\n") == 1


def test_find_says_where_each_pair_is(out: Path, server: WebServer, capsys: pytest.CaptureFixture) -> None:
    def find(*words: str) -> tuple[int, dict[str, Any]]:
        code = inspect_shards.main(["find", str(out), "--json", *words])
        return code, json.loads(capsys.readouterr().out)

    def where(*words: str) -> list[tuple[str, str]]:
        return [(pair["stage"], pair["reason"]) for pair in find(*words)[1]["pairs"]]

    base = server.base
    capsys.readouterr()  # of the build
    rows = open_set(out).table(["key", "url", "original_sha256"]).to_pylist()
    (row,) = (row for row in rows if row["url"].endswith("picture-05.jpg"))
    for flag, value in (("url", row["url"]), ("uid", row["key"]), ("sha256", row["original_sha256"])):
        assert [pair["uid"] for pair in find(f"--{flag}", value)[1]["pairs"]] == [row["key"]]
        assert where(f"--{flag}", value) == [("published", "")]
    twins = find("--url", f"{base}/img/picture-03.jpg", "--url", f"{base}/img/again.jpg")[1]["pairs"]
    fell, stayed = sorted(twins, key=lambda pair: pair["stage"])
    assert (fell["stage"], fell["reason"], stayed["stage"]) == ("dedup-images", "same_image", "published")
    assert fell["detail"] == f"{stayed['uid']} stayed in its place"
    assert where("--url", f"{base}/status/404") == [("fetch", "http_4xx")]
    assert where("--url", f"{base}/html")[0][0] == "fetch"
    assert where("--url", f"{base}/img/never-matched.jpg") == [("match", "no_query")]
    assert len(where("--domain", "127.0.0.1", "--limit", "5")) == 5
    assert find("--url", "http://nowhere.example/a.jpg") == (3, {"pairs": [], "forgotten": [], "text_reason": None})
    assert find("--text", "IMG_0042.jpg")[1]["text_reason"] == "file_name"

    assert forget.main([str(out), "--uid", row["key"]]) == 0
    capsys.readouterr()
    code, found = find("--uid", row["key"])
    assert (code, found["pairs"], found["forgotten"]) == (0, [], [{"kind": "uid", "value": row["key"]}])
    shutil.rmtree(out / "stages")
    assert where("--url", f"{base}/img/picture-06.jpg") == [("published", "")]
    assert where("--url", f"{base}/status/404") == [("fetch", "http_4xx")]


def test_inspect_says_what_was_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    samples.publish(tmp_path / "out", count=6)
    asked = ["forgotten", str(tmp_path / "out"), "--url", "https://static.example.com/1.jpg"]
    assert inspect_shards.main(asked) == 3
    assert forget.main([str(tmp_path / "out"), "--domain", "example.com"]) == 0
    capsys.readouterr()
    assert inspect_shards.main(asked) == 0 and capsys.readouterr().out.startswith("forgotten      url https://static")
    assert inspect_shards.main([*asked, "--uid", "0" * 32, "--json"]) == 3
    assert [row["forgotten"] for row in json.loads(capsys.readouterr().out)] == [True, False]
    assert inspect_shards.main(["forgotten", str(tmp_path / "out")]) == 2
    raw = (tmp_path / "out/forgotten.parquet").read_bytes() + b"".join(
        values(pq.read_table(tmp_path / "out/forgotten.parquet"))
    )
    assert b"example" not in raw


CRASHES = """
import os, shutil, signal, sys
from pathlib import Path
from pipeline import forget
from pipeline.dataset.verify import verify
from pipeline.engine import storage, work
from pipeline.forget import Selection

source, room, url = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
NAMES = ("replace", "rename", "unlink", "fsync", "pwrite", "rmdir")
kept = {name: getattr(os, name) for name in NAMES}
steps = [0]

def counting(last):
    def wrap(function):
        def call(*args, **more):
            steps[0] += 1
            if steps[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **more)
        return call
    for name in NAMES:
        setattr(os, name, wrap(kept[name]))

def content(out):
    ours = (".lock", ".workers", "forgotten.parquet")  # its key is random
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*")
            if path.is_file() and path.name not in ours and ".tmp" not in str(path.relative_to(out))}

def run(out, last=0):
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    child = os.fork()
    if not child:
        counting(last)
        forget.forget(str(out), Selection.of([("url", url)]))
        (out.parent / "steps").write_text(str(steps[0]))
        os._exit(0)
    return os.waitpid(child, 0)[1]

old = content(source)
assert run(room / "whole") == 0
new, total = content(room / "whole"), int((room / "steps").read_text())
seen = []
for last in range(1, total + 1, int(sys.argv[4])):
    out = room / "out"
    assert run(out, last) == signal.SIGKILL
    work.settle(str(out))
    with work.lock_run_folder(str(out)):
        storage.remove_stale_files(str(out))
    found = content(out)
    assert found in (old, new), (last, [p for p in {**old, **found} if found.get(p) not in (old.get(p), new.get(p))])
    seen.append(found == new)
    assert (out / "forgotten.parquet").exists() == seen[-1]
assert seen == sorted(seen) and seen[0] is False and seen[-1] is True, seen
print(total, len(seen), sum(seen))
"""


def test_kill_9_at_each_step(made: Path, tmp_path: Path) -> None:
    """Each 37th call that changes the disk is the last one. The folder is then as before, or as after."""
    row, _ = row_of(made / "out", "number 11")
    script = [sys.executable, "-c", CRASHES, str(made / "out"), str(tmp_path), row["url"], "37"]
    run = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


@pytest.mark.usefixtures("without_beam")
def test_examples_of_refusals_go(tmp_path: Path) -> None:
    """The ledger of rights names a few URLs that were refused."""
    purging = purge.Purge(
        Change(str(tmp_path)),
        purge.Uids(set()),
        covers_rejected=Selection().rows,
        covers_urls=Selection(domain=frozenset({"gone.example"})).rows,
        covers_images=Selection().rows,
        by_image=False,
    )
    examples = [{"hash": 1, "url": f"https://{host}/a", "evidence": "noai"} for host in ("x.gone.example", "b.example")]
    examples[1]["page"] = "https://c.example/p"
    counted = {"pairs": 2, "hosts": 2, "spared": 0}
    found = purging.without_examples({"stage": "fetch", "rights": {"robots": {**counted, "examples": examples}}})
    assert found == {"stage": "fetch", "rights": {"robots": {**counted, "examples": examples[1:]}}}
    purging._covers_urls = Selection(page_domain=frozenset({"c.example"})).rows
    found = purging.without_examples({"stage": "gather", "rights": {"tdmrep": {**counted, "examples": examples}}})
    assert found["rights"]["tdmrep"]["examples"] == examples[:1]


def build_variants(tmp: Path, *more: str) -> list[tuple[str, str, str | None]]:
    """(uid, url, url_as_found) of balance's rows: the larger variant of each second image stands with a poorer text."""
    rows = [(f"http://h{n}.example/w{n}-300x200.jpg", f"a red dog on the green grass {n}") for n in range(30)]
    rows += [(f"http://h{n}.example/w{n}.jpg", f"dog {n}") for n in range(0, 30, 2)]
    pq.write_table(pa.table({"url": [row[0] for row in rows], "text": [row[1] for row in rows]}), tmp / "pairs.parquet")
    (tmp / "queries.txt").write_text("dog\n")
    given = ["--input", str(tmp / "pairs.parquet"), "--output", str(tmp / "out"), "--queries", str(tmp / "queries.txt")]
    given += ["--stages", "gather..balance", "--workers", "1", "--language-model", "none"]
    assert build.main([*given, *more]) == 0
    write_rows(str(tmp / "out"), "balance", str(tmp / "rows.parquet"))
    table = pq.read_table(tmp / "rows.parquet")
    return sorted((row["uid"].hex(), row["url"], row["url_as_found"]) for row in table.to_pylist())


@pytest.mark.parametrize("kind", ["as_found", "larger"])
@pytest.mark.usefixtures("without_beam")
def test_the_variants_of_an_image_go_together(tmp_path: Path, kind: str) -> None:
    before = build_variants(tmp_path)
    gone = next(row for row in before if row[2] is not None)
    assert sum(row[2] is not None for row in before) == 15
    out = str(tmp_path / "out")
    assert forget.main([out, "--url", gone[2] if kind == "as_found" else gone[1]]) == 0
    assert build_variants(tmp_path, "--redo", "balance") == [row for row in before if row != gone]
    left = all_bytes(tmp_path / "out")
    assert gone[2].encode() not in left and gone[1].encode() not in left  # a pair that was dropped had this URL, too
    assert Tombstones.load(out).has("url", gone[1]) and Tombstones.load(out).has("url", gone[2])
