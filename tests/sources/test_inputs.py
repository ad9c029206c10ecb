"""The values of --input, and the messages for values that name no input."""

import functools
import gzip
import http.server
import os
import threading
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources import base, tables
from pipeline.sources.base import open_bytes
from pipeline.sources.inputs import Input, InputError, expand

pytestmark = pytest.mark.usefixtures("shipped")

WARC = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 0\r\n\r\n\r\n\r\n"
WAT = (
    b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 0\r\n\r\n\r\n\r\n"
    b"WARC/1.0\r\nWARC-Type: metadata\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
    b'{"Envelope":{}}\r\n\r\n'
)


@pytest.fixture
def folder(tmp_path):
    """A folder with every kind of file, and files that no reader takes."""
    root = tmp_path / "crawl"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a.warc").write_bytes(WARC)
    (root / "b.warc.gz").write_bytes(gzip.compress(WARC))
    (root / "c.warc.wat.gz").write_bytes(gzip.compress(WAT))
    (root / "deep" / "really-a-wat.warc.gz").write_bytes(gzip.compress(WAT[:57]) + gzip.compress(WAT[57:]))
    (root / "deep" / "d.arc").write_bytes(b"filedesc://d.arc 0.0.0.0 20080430204825 text/plain 0\n")
    (root / "deep" / "er" / "e.tsv").write_text("url\ttext\n")
    (root / "deep" / "er" / "f.jsonl.gz").write_bytes(gzip.compress(b'{"url": "u"}\n'))
    (root / "notes.txt").write_text("no input")
    (root / "_pairs.tsv").write_text("url\ttext\n")
    (root / ".hidden.csv").write_text("url,text\n")
    pq.write_table(pa.table({"url": ["u"], "text": ["t"]}), root / "g.parquet")
    return root


def names(*specs, **options):
    return [(made.name, made.format) for made in expand([str(spec) for spec in specs], **options)]


FOLDER = [
    ("a.warc", "warc"),
    ("b.warc.gz", "warc"),
    ("c.warc.wat.gz", "wat"),
    ("deep/d.arc", "warc"),
    ("deep/er/e.tsv", "table"),
    ("deep/er/f.jsonl.gz", "table"),
    ("deep/really-a-wat.warc.gz", "wat"),
    ("g.parquet", "table"),
]


def test_names_with_all_that_a_file_system_allows(tmp_path):
    odd = [
        "a b.warc",
        "c%41d:[1]?#\u00e9.warc",
        "'\"\\.warc",
        "@x.warc",
        "\U0001f415.warc",
        "-f.warc",
        "line\nbreak.warc",
    ]
    for name in odd:
        (tmp_path / name).write_bytes(WARC)
    assert names(tmp_path) == sorted((name, "warc") for name in odd)
    assert names(*(tmp_path / name for name in odd)) == sorted((name, "warc") for name in odd)
    assert names((tmp_path / "a b.warc").as_uri()) == [("a b.warc", "warc")]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_list_as_other_systems_write_it(tmp_path, newline):
    (tmp_path / "a b.warc").write_bytes(WARC)
    (tmp_path / "c#.warc").write_bytes(WARC)
    lines = ["# the files", "", "a b.warc", "   c#.warc\t", "#c.warc", ""]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + newline.join(lines).encode())
    assert names(f"@{tmp_path}/list.txt") == [("a b.warc", "warc"), ("c#.warc", "warc")]


def test_what_is_no_file_is_refused_at_once(tmp_path):
    (tmp_path / "to-nowhere.warc").symlink_to("nowhere")
    (tmp_path / "loop.warc").symlink_to("loop.warc")
    os.mkfifo(tmp_path / "pipe.warc")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "sub" / "pipe.warc")
    (tmp_path / "latin").mkdir()
    with open(os.fsencode(tmp_path) + b"/latin/\xe9.warc", "wb") as file:
        file.write(WARC)
    for name, message in (
        *(("to-nowhere.warc", "cannot be read"), ("loop.warc", "cannot be read"), ("pipe.warc", "a pipe")),
        *(("sub", "a pipe"), ("latin", "no UTF-8")),
    ):
        with pytest.raises(InputError, match=message):
            expand([str(tmp_path / name)])
    for spec, message in (("", "empty name"), (" ", "empty name"), ("nope://h/x.warc", "nope")):
        with pytest.raises(InputError, match=message):
            expand([spec])


def test_archives_of_all_compressions_are_known_by_name(tmp_path):
    for name in ("a.warc.gz", "b.warc.lz4", "c.warc.zst", "d.arc.zst", "e.wat.zst"):
        (tmp_path / name).write_bytes(b"what is in it is for the reader")
    expected = [("a.warc.gz", "warc"), ("b.warc.lz4", "warc"), ("c.warc.zst", "warc"), ("d.arc.zst", "warc")]
    assert names(tmp_path) == [*expected, ("e.wat.zst", "wat")]


def test_a_folder_is_read_recursively_sorted_and_other_files_are_skipped(folder):
    assert names(folder) == FOLDER
    made = expand([str(folder)])
    assert made == sorted(made, key=lambda item: item.name)
    assert all(os.path.isabs(item.path) and item.bytes == os.path.getsize(item.path) for item in made)


def test_names_do_not_change_when_the_data_moves(folder, tmp_path, monkeypatch):
    before = names(folder), names(f"{folder}/*.gz"), names(f"@{_list(folder)}")
    moved = tmp_path / "elsewhere" / "under" / "crawl"
    moved.parent.mkdir(parents=True)
    folder.rename(moved)
    assert (names(moved), names(f"{moved}/*.gz"), names(f"@{moved}/list.txt")) == before
    monkeypatch.chdir(moved)
    assert names(".") == before[0]


def _list(folder):
    path = folder / "list.txt"
    path.write_text("# what to read\n\na.warc\ndeep/*.arc\ndeep/er\n")
    return path


def test_globs_take_two_stars_and_name_from_their_root(folder):
    assert names(f"{folder}/**/*.gz") == [entry for entry in FOLDER if entry[0].endswith(".gz")]
    assert names(f"{folder}/**") == FOLDER
    assert names(f"{folder}/d*") == [entry for entry in FOLDER if entry[0].startswith("deep/")]


def test_a_file_whose_name_holds_glob_characters_is_that_file(tmp_path):
    (tmp_path / "a[1].warc").write_bytes(WARC)
    assert names(tmp_path / "a[1].warc") == [("a[1].warc", "warc")]


def test_lists_plain_and_gzip(folder):
    path = _list(folder)
    expected = [("a.warc", "warc"), ("deep/d.arc", "warc"), ("deep/er/e.tsv", "table"), ("deep/er/f.jsonl.gz", "table")]
    assert names(f"@{path}") == expected
    packed = folder / "list.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert names(f"@{packed}") == expected


def test_absolute_paths_in_a_list_give_relative_names(folder, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(f"{folder}/deep/d.arc\n{folder}/deep/er/e.tsv\n")
    assert names(f"@{path}") == [("d.arc", "warc"), ("er/e.tsv", "table")]


def test_one_file_named_twice_is_one_input_whatever_the_order(folder):
    specs = [str(folder), f"{folder}/deep/d.arc", f"{folder}/*.warc"]
    once = expand(specs)
    assert once == expand(specs[::-1])
    assert len(once) == len(FOLDER)
    os.symlink(folder / "a.warc", folder / "z-link.warc")
    os.symlink(folder, folder / "deep" / "loop")
    assert len(expand([str(folder)])) == len(FOLDER)


def test_equal_names_under_two_roots_are_told_apart(tmp_path):
    for root in ("x/data", "y/data"):
        (tmp_path / root).mkdir(parents=True)
        (tmp_path / root / "a.warc").write_bytes(WARC)
    (tmp_path / "x" / "data" / "only.warc").write_bytes(WARC)
    assert [name for name, _ in names(tmp_path / "x/data", tmp_path / "y/data")] == [
        "only.warc",
        "x/data/a.warc",
        "y/data/a.warc",
    ]


def test_large_parquet_files_are_cut_by_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_PART", 25)
    pq.write_table(pa.table({"url": ["u"] * 100, "text": ["t"] * 100}), tmp_path / "a.parquet", row_group_size=10)
    made = expand([str(tmp_path)])
    assert [item.part for item in made] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert {item.name for item in made} == {"a.parquet"}


def test_a_wacz_gives_its_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.wacz", "w") as pack:
        pack.writestr("archive/data.warc.gz", gzip.compress(WARC))
        pack.writestr("pages/pages.jsonl", "{}")
    (made,) = expand([str(tmp_path)])
    assert (made.name, made.format) == ("a.wacz/archive/data.warc.gz", "warc")
    with open_bytes(made.path) as file:
        assert gzip.decompress(file.read()) == WARC


def test_the_first_bytes_decide_where_the_name_does_not(folder, tmp_path):
    for name, data in {"w": WARC, "w2": gzip.compress(WARC), "m": WAT, "j": b'{"url": 1}\n'}.items():
        (tmp_path / name).write_bytes(data)
    got = {name: names(tmp_path / name)[0][1] for name in ("w", "w2", "m", "j")}
    assert got == {"w": "warc", "w2": "warc", "m": "wat", "j": "table"}
    (tmp_path / "p").write_bytes((folder / "g.parquet").read_bytes())
    assert names(tmp_path / "p") == [("p", "table")]


def test_the_user_may_say_the_format(folder):
    assert names(folder / "notes.txt", input_format="table") == [("notes.txt", "table")]
    with pytest.raises(InputError, match="auto, wat, warc, table, set or webdataset"):
        expand([str(folder)], input_format="what")


@pytest.fixture
def crawl(tmp_path):
    """A small imitation of Common Crawl's folder."""
    root = tmp_path / "cc"
    listing = root / "crawl-data" / "CC-MAIN-2026-05"
    (listing / "wat").mkdir(parents=True)
    paths = [f"crawl-data/CC-MAIN-2026-05/wat/{number:05d}.warc.wat.gz" for number in range(5)]
    for path in paths:
        (root / path).write_bytes(gzip.compress(WAT))
    (listing / "wat.paths.gz").write_bytes(gzip.compress("\n".join(paths).encode()))
    return root, paths


def test_a_crawl_is_expanded_from_its_path_list(crawl, monkeypatch):
    root, paths = crawl
    assert [made.name for made in expand(["cc:CC-MAIN-2026-05"], cc_base=str(root))] == paths
    monkeypatch.setenv("OPENWIT_CC_BASE", str(root))
    assert [made.name for made in expand(["cc:CC-MAIN-2026-05[1:3]"])] == paths[1:3]
    assert [made.name for made in expand(["cc:CC-MAIN-2026-05[:2]"])] == paths[:2]
    with pytest.raises(InputError, match="5 files"):
        expand(["cc:CC-MAIN-2026-05[7:9]"])
    with pytest.raises(InputError, match="Is 'CC-MAIN-2026-05' a crawl"):
        expand(["cc:CC-MAIN-2026-05:warc"])
    with pytest.raises(InputError, match="is no crawl"):
        expand(["cc:CC MAIN"])


def test_a_crawl_over_http(crawl):
    root, paths = crawl
    handler = functools.partial(_Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        made = expand(["cc:CC-MAIN-2026-05:wat[0:2]"], cc_base=base)
        assert made == [Input(path, f"{base}/{path}", "wat") for path in paths[:2]]
        with open_bytes(made[0].path) as file:
            assert gzip.decompress(file.read()) == WAT
        listed = expand([f"@{base}/crawl-data/CC-MAIN-2026-05/wat.paths.gz"], cc_base=base)
        assert len(listed) == 5
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_urls_keep_no_secrets_in_their_names():
    made = expand(
        ["https://user:word@host.example/a/b.warc.gz?sig=secret", "https://host.example/a/b.warc.gz?sig=other"]
    )
    assert all("secret" not in item.name and "word" not in item.name for item in made)
    assert len({item.name for item in made}) == 2
    assert made[0].name.startswith("https://host.example/a/b.warc.gz")


def test_a_store_that_can_list(folder):
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("a.warc.gz", "deep/b.csv", "notes.txt"):
        store.pipe(f"/bucket/{name}", b"x")
    assert names("memory://bucket/") == [
        ("memory:///bucket/a.warc.gz", "warc"),
        ("memory:///bucket/deep/b.csv", "table"),
    ]
    assert len(names("memory://bucket/*.gz")) == 1
    with pytest.raises(InputError, match="no file to read matches"):
        expand(["memory://bucket/*.parquet"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{root}/a.wrac", "did you mean .*a.warc"),
        ("{root}/nosuch.parquet", "'nosuch.parquet' is not in"),
        ("{root}/nowhere/at/all.warc", "'nowhere' is not in"),
        ("{root}/*.zip", "no file to read matches"),
        ("{root}/nope/*.warc", "does not exist"),
        ("{root}/empty", "holds no file to read"),
        ("@{root}/lst", "the list behind"),
        ("@{root}/blank", "names no file"),
        ("@{root}/wrong", "in the list .*did you mean .*a.warc"),
        ("{root}/notes.txt", "has an unknown format"),
        ("{root}/x.warc.wet.gz", "is a WET"),
        ("{root}/cut.parquet", "no readable Parquet"),
        ("{root}/bad.wacz", "no readable WACZ"),
    ],
)
def test_what_is_said_where_a_spec_cannot_be_used(folder, spec, message):
    (folder / "empty").mkdir()
    (folder / "blank").write_text("# nothing\n")
    (folder / "wrong").write_text("a.wrac\n")
    (folder / "x.warc.wet.gz").write_bytes(gzip.compress(WARC))
    (folder / "cut.parquet").write_bytes((folder / "g.parquet").read_bytes()[:100])
    (folder / "bad.wacz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=message):
        expand([spec.format(root=folder)])


@pytest.mark.parametrize("name", [b"a\xff.tsv", b"folder\xff/a.tsv"])
def test_a_path_that_is_no_utf8_is_refused_at_once(tmp_path, name):
    path = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(b"url\ttext\n")
    with pytest.raises(InputError, match="is no UTF-8, and names stand in the data: rename it"):
        expand([os.fsdecode(path)])


def test_what_a_run_writes_below_its_input_folder_is_no_input(folder):
    out = folder / "out"
    (out / "stages" / "gather").mkdir(parents=True)
    pq.write_table(pa.table({"url": ["u"], "text": ["t"]}), out / "stages" / "gather" / "rejected.parquet")
    assert names(folder, without=str(out)) == FOLDER
    assert names(f"{folder}/**/*.parquet", without=str(out)) == [("g.parquet", "table")]
    (folder / "link").symlink_to(out)
    assert names(folder, without=str(folder / "link")) == FOLDER
    (folder / "output").mkdir()
    (folder / "output" / "a.tsv").write_text("url\ttext\n")  # a name that begins alike is another folder
    (folder / "link").unlink()
    assert ("output/a.tsv", "table") in names(folder, without=str(out))


@pytest.mark.parametrize("spec", ["{out}/a.tsv", "{out}", "{out}/*.tsv", "@{out}/list.txt"])
def test_inputs_in_the_output_folder_are_refused(folder, spec):
    out = folder / "out"
    out.mkdir()
    (out / "a.tsv").write_text("url\ttext\n")
    (out / "list.txt").write_text("a.tsv\n../a.warc\n")
    with pytest.raises(InputError, match="names files in the output folder .*: name another output folder"):
        expand([spec.format(out=out)], without=str(out))


def test_no_input_at_all():
    with pytest.raises(InputError, match="no input was given"):
        expand([])


def test_a_glob_that_names_a_suffix_takes_files_by_their_first_bytes(tmp_path):
    (tmp_path / "a.json").write_text('[{"url": "http://x/1", "text": "a"}]')
    (tmp_path / "c.json").write_text('{"image_url": "http://x/1", "Caption": "a"}')
    (tmp_path / "dataset_infos.json").write_text('{"default": {"features": {"url": {}, "license": ""}}}')
    (tmp_path / "list.json").write_text("[1]")
    assert [made.name for made in expand([str(tmp_path)])] == ["a.json", "c.json"]  # others describe the folder
    assert [made.format for made in expand([str(tmp_path / "a*.json")])] == ["table"]
    with pytest.raises(InputError, match="list.json' has an unknown format"):
        expand([str(tmp_path / "*t.json")])


def test_a_list_of_addresses_or_a_table_without_names_is_known(tmp_path):
    (tmp_path / "urls.txt").write_text("http://x/1.jpg\nHTTPS://x/2.jpg\n\n")
    with pytest.raises(InputError, match="lists addresses without texts.* name the list as @.*urls.txt"):
        expand([str(tmp_path / "urls.txt")])
    for text in ("http://x/1.jpg\ta cat\n", '"a cat","http://x/1.jpg"\n'):
        (tmp_path / "pairs.txt").write_text(text)
        assert [made.format for made in expand([str(tmp_path / "pairs.txt")])] == ["table"]
    (tmp_path / "notes.txt").write_text("see http://x/1.jpg, and more\n")
    with pytest.raises(InputError, match="unknown format"):
        expand([str(tmp_path / "notes.txt")])


def test_an_error_of_a_store_is_one_line():
    from pipeline.engine.input_errors import one_line

    assert one_line(OSError("\nUnable to load libjvm\ndlopen(a) failed\ndlopen(b) failed")) == "Unable to load libjvm"
    assert one_line(OSError()) == "OSError"


@pytest.mark.parametrize(("path", "remote", "http"), [
    ("https://x.example/a", True, True), ("HTTP://x.example/a", True, True), ("s3://bucket/a", True, False),
    ("httpsx://a", True, False), ("s3:/bucket", False, False), ("c://a", False, False), ("/s3://bucket", False, False),
    ("crawl/a:b", False, False), ("", False, False),
])  # fmt: skip
def test_what_a_url_is(path: str, remote: bool, http: bool):
    from pipeline.engine.input_errors import TransferError, is_http, is_remote

    assert TransferError("it broke").reached and not TransferError("it broke").changed
    assert (is_remote(path), is_http(path)) == (remote, http)


def csv_files(folder: Path, *names: str, rows: int = 1) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("url,text\n" + "https://a.example/x.jpg,a red dog\n" * rows)
    return [str(folder / name) for name in names]


def names_of(inputs: list[Input]) -> list[str]:
    return [item.name for item in inputs]


def test_known_inputs_are_not_opened_and_may_be_named_again(tmp_path: Path) -> None:
    first, more = csv_files(tmp_path, "a/one.csv", "b/two.csv")
    known = expand([first])
    assert expand([first, more], known=known) == expand([first, more])
    os.unlink(first)
    both = expand([more], known=known)
    assert names_of(both) == ["one.csv", "two.csv"] and both[0] is known[0]
    assert names_of(expand([], known=known)) == ["one.csv"]
    csv_files(tmp_path, "a/one.csv", rows=2)
    with pytest.raises(InputError, match="one.csv' has changed: it had 43 bytes when the set read it, and has 77"):
        expand([first], known=known)


def test_a_known_input_that_was_moved_keeps_its_name(tmp_path: Path) -> None:
    (first,) = csv_files(tmp_path, "a/one.csv")
    known = expand([first])
    (tmp_path / "c").mkdir()
    os.rename(first, tmp_path / "c/one.csv")
    (moved,) = expand([str(tmp_path / "c")], known=known)
    assert moved == Input("one.csv", str(tmp_path / "c/one.csv"), "table", known[0].bytes)


def test_a_new_input_with_a_known_name_lengthens_both(tmp_path: Path) -> None:
    first, more = csv_files(tmp_path, "a/one.csv", "b/one.csv")
    found = expand([more], known=expand([first]))
    assert found == expand([first, more]) and names_of(found) == ["a/one.csv", "b/one.csv"]
    assert names_of(expand([], known=found, drop=["a/one.csv"])) == ["one.csv"]  # as if it alone was ever named


@pytest.mark.parametrize("value", ["two.csv", "b/two.csv", "{}/b/two.csv", "{}/b", "t*.csv", "{}/b/*"])
def test_inputs_are_dropped_by_name_path_folder_or_glob(value: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = csv_files(tmp_path, "a/one.csv", "b/two.csv")
    assert names_of(expand(given, drop=[value.format(tmp_path)])) == ["one.csv"]
    assert names_of(expand([], known=expand(given[:1]), drop=[value.format(tmp_path)], dropped=given[1:])) == [
        "one.csv"
    ]


def test_what_cannot_be_dropped_is_named(tmp_path: Path) -> None:
    given = csv_files(tmp_path, "a/one.csv", "b/two.csv")
    with pytest.raises(InputError, match="--drop-input 'tow.csv': must be the name or path .* mean 'two.csv'?"):
        expand(given, drop=["tow.csv"])
    with pytest.raises(InputError, match="no input is left"):
        expand(given, drop=["*.csv"])


def test_a_format_is_told_from_the_first_64_kib(tmp_path: Path) -> None:
    """A first line may be long. gzip is undone."""
    data = bytes(range(256)) * 400
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "packed").write_bytes(gzip.compress(data[:40_000]) + gzip.compress(data[40_000:], mtime=0))
    assert base.read_head(str(tmp_path / "plain")) == data[: 64 << 10]
    assert base.read_head(str(tmp_path / "packed"))[: 64 << 10] == data[: 64 << 10]
