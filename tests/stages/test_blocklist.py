"""The lines of a block list: what each form means, and which are refused. A run with a list: tests/test_curation.py."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.engine.cli import UsageError
from pipeline.engine.work import StageFolder
from pipeline.fetching import images
from pipeline.fetching.helper import Decoder
from pipeline.fetching.options import FetchOptions
from pipeline.stages.blocklist import KINDS, Blocklist, blocklist_of, parse
from pipeline.text import clean
from tests.webserver import picture

BODY = b"the bytes of an image"


def listed(tmp_path: Path, *lines: str) -> Blocklist:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines))
    return Blocklist.read([str(path)])


@pytest.mark.parametrize(
    ("line", "url", "found"),
    [
        ("http://a.example/x.jpg", "http://a.example/x.jpg", True),
        ("HTTP://A.example:80/x.jpg", "http://a.example/x.jpg", True),  # both are made canonical
        ("http://a.example/x.jpg", "https://a.example/x.jpg", False),
        ("http://a.example/x.jpg", "http://a.example/x.jpg?w=9", False),
        ("a.example/x.jpg", "https://a.example/x.jpg", True),
        ("url:a.example/x.jpg", "https://a.example/x.jpg", True),
        ("https://a.example/x.jpg#part", "https://a.example/x.jpg", True),
        ("https://a.example/x.jpg # why", "https://a.example/x.jpg", True),
        ("bad.example", "http://bad.example/1", True),
        ("bad.example", "https://a.b.bad.example:8080/1", True),
        ("a.bad.example", "https://bad.example/1", False),
        ("bad.example", "https://notbad.example/1", False),
        ("BAD.example.", "https://bad.example/1", True),
        ("domain: bad.example", "https://bad.example/1", True),
        ("Domain:bad.example\r", "https://bad.example/1", True),
        ("||bad.example^", "https://x.bad.example/1", True),
        ("*.bad.example", "https://x.bad.example/1", True),
        ("0.0.0.0 bad.example # hosts", "https://bad.example/1", True),
        ("127.0.0.1\tbad.example", "https://bad.example/1", True),
        ("bücher.example", "https://xn--bcher-kva.example/1", True),
        ("10.0.0.1", "https://10.0.0.1/1", True),
        ("\ufeffbad.example", "https://bad.example/1", True),
        ("ftp://a.example/x", "http://a.example/x", False),  # never fetched: it is no fault
    ],
)
def test_addresses(tmp_path: Path, line: str, url: str, found: bool) -> None:
    blocked = listed(tmp_path, "# a list", "", "127.0.0.1 localhost", "! adblock", line, "x.example")
    assert blocked.among_urls(pa.array([url, "http://x.example/"])).tolist() == [found, True]
    assert blocked.among_pages(pa.array([url, "", url])).tolist() == [found, False, found]


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("prefix", [True, False])
def test_files(tmp_path: Path, kind: str, prefix: bool) -> None:
    digest = hashlib.new(kind, BODY).hexdigest().upper()
    blocked = listed(tmp_path, f"{kind}:{digest}" if prefix else digest)
    assert len(blocked.entries[kind]) == 1
    for body, found in ((BODY, True), (BODY + b".", False)):
        assert blocked.served(body, hashlib.sha256(body).digest(), None) is found
    assert listed(tmp_path, "b.example").served(b"", hashlib.sha256(b"").digest(), "http://b.example/x")


def test_pictures(tmp_path: Path) -> None:
    shown = images.decode(picture(3), FetchOptions())
    for bits, entry in ((0, ""), (2, ""), (3, ""), (3, "/3"), (3, "/2")):
        digits = f"{shown.phash ^ (1 << bits) - 1:016x}"
        blocked = listed(tmp_path, f"phash:{digits}{entry}" if entry else digits)
        assert blocked.shown(shown) is (bits <= int(entry[1:] or 2))
    plain = images.decode(picture(3, (16, 16)), FetchOptions())
    assert listed(tmp_path, f"{plain.phash:016x}").shown(plain)
    grey = dataclasses.replace(plain, colours=b"\x80" * 192)
    assert not listed(tmp_path, f"{plain.phash:016x}").shown(grey)


def test_pdq(tmp_path: Path) -> None:
    shown = dataclasses.replace(images.decode(picture(3), FetchOptions()), pdq="f0" * 32)
    for bits, entry in ((0, ""), (31, ""), (32, ""), (32, "/32"), (40, "/39")):
        digits = f"{int('f0' * 32, 16) ^ (1 << bits) - 1:064x}"
        blocked = listed(tmp_path, f"pdq:{digits.upper()}{entry}", "pdq:" + "0" * 64)
        assert blocked.entries["pdq"].shape == (2, 5)
        assert blocked.shown(shown) is (bits <= int(entry[1:] or 31))
        assert not blocked.shown(dataclasses.replace(shown, pdq=None))  # too little detail, or not asked for
    with pytest.raises(UsageError, match="line 1"):
        listed(tmp_path, "pdq:" + "0" * 64 + "/65")


def test_pdq_of_a_picture(tmp_path: Path) -> None:
    pdqhash = pytest.importorskip("pdqhash", reason="the extra pdq is not installed")
    with Image.open(io.BytesIO(picture(3))) as image:
        bits, _ = pdqhash.compute(np.asarray(image.convert("RGB")))
    digits = f"{int(''.join(map(str, bits)), 2):064x}"  # the text form of ThreatExchange
    with contextlib.closing(Decoder(FetchOptions(pdq=True))) as decoder:
        shown = decoder.decode(picture(3))
        plain = decoder.decode(encoded_plain())
    assert shown.pdq is not None and plain.pdq is None
    assert (int(shown.pdq, 16) ^ int(digits, 16)).bit_count() <= 4  # the stored picture is 256 pixels high
    assert listed(tmp_path, f"pdq:{digits}").shown(shown)


def encoded_plain() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ok.example", "", "two words"], "line 3 (two words): must be a URL, a domain, md5"),
        (["phash:abc"], "line 1 (phash:abc)"),
        (["0123456789abcdef/17"], "line 1 (0123456789abcdef/17)"),
        (["md5:" + "0" * 40], "line 1 (md5:"),
        (["http://"], "line 1 (http://)"),
        (["a@b.example"], "line 1 (a@b.example)"),
        (["x y"] * 5, "line 1 (x y), line 2 (x y), line 3 (x y) and more"),
        (["# nothing", ""], "holds no entry"),
        ([], "holds no entry"),
    ],
)
def test_what_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        listed(tmp_path, *lines)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--blocklist {tmp_path}")


def test_a_large_packed_list_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.blocklist.PIECE", 100)
    names = [f"d{number}.example" for number in range(200)]
    (tmp_path / "list.gz").write_bytes(gzip.compress("\n".join(names).encode()))
    blocked = Blocklist.read([str(tmp_path / "list.gz")])
    assert blocked.among_urls(pa.array([f"http://{name}/" for name in names])).all()
    (tmp_path / "list.gz").write_bytes(gzip.compress("\n".join([*names, "no entry"]).encode()))
    with pytest.raises(UsageError, match=r"line 201 \(no entry\)"):
        Blocklist.read([str(tmp_path / "list.gz")])
    (tmp_path / "cut.gz").write_bytes(gzip.compress("\n".join(names).encode())[:-9])
    with pytest.raises(UsageError, match="cut.gz: cannot be read"):
        Blocklist.read([str(tmp_path / "cut.gz")])


def test_files_of_a_stage(tmp_path: Path) -> None:
    blocked = listed(tmp_path, "a.example", "0" * 32, "http://b.example/", "0" * 16)
    folder = blocklist_of(StageFolder(str(tmp_path), "gather", "f"))
    assert Blocklist.load(folder) is None
    blocked.write(folder)
    again = Blocklist.load(folder)
    assert again is not None and again.digest(*KINDS) == blocked.digest(*KINDS)
    assert {kind: len(words) for kind, words in again.entries.items() if len(words)} == {
        "url": 1, "domain": 1, "md5": 1, "phash": 1,
    }  # fmt: skip
    other = listed(tmp_path, "0" * 32, "a.example", "0" * 32, "# more", "http://b.example", "c.example")
    assert other.digest("md5") == blocked.digest("md5") and other.digest("domain") != blocked.digest("domain")
    assert other.digest("sha1", "sha256") is None
    other.write(folder)
    found = Blocklist.load(folder)
    assert found is not None and len(found.entries["domain"]) == 2


@settings(max_examples=40)
@given(st.lists(st.text(max_size=30), max_size=5))
def test_any_text_is_an_entry_or_refused(lines: list[str]) -> None:
    text = pa.array([line.replace("\n", "").encode("utf-8", "replace").decode() for line in lines], pa.string())
    try:
        found = parse(text)
    except UsageError:
        return
    assert set(found) == set(KINDS)


@given(st.lists(st.sampled_from(["a.example", "b.a.example", "c.example", "x.b.a.example"]), min_size=1))
def test_domains_are_those_of_a_plain_loop(hosts: list[str]) -> None:
    blocked = Blocklist(parse(pa.array(["b.a.example", "c.example"])))
    urls = clean.canonical_urls(pa.array([f"http://{host}/x" for host in hosts]))[0]
    assert blocked.among_urls(urls).tolist() == [host.endswith(("b.a.example", "c.example")) for host in hosts]
