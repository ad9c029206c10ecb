"""A whole fetch against hostile servers: good images in every form and by every way, and what must not be let in.

By hand (needs the commands unshare and ip; some minutes): python -m tests.hostile_suite
The small one, which the tests run: python -m tests.hostile_suite --small

It makes a network namespace with only the loopback device, which gets public addresses. So the build runs as users run
it, without exceptions for tests, and no packet can leave the machine. Prints one JSON object, and ends with 1 if a
figure is not as it must be.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageCms

from pipeline.engine import storage
from tests.places import ROOT
from tests.webserver import WebServer, _Handler

SITES = tuple(f"93.184.216.{number}" for number in range(1, 17))
METADATA = "169.254.169.254"
NAMES = {"inner.example": "127.0.0.1", "site.example": SITES[0], "mapped.example": "::ffff:127.0.0.1"}
MOST_MB = 600  # of a process, and of a worker with its decoding process
TOLERANCE = 9.0  # mean difference of a channel between the stored JPEG and what was drawn
SIZE = (200, 152)

# --------------------------------------------------------------------------------------------------------- the pictures


def drawn(seed: int) -> Image.Image:
    """Blocks of colour; two seeds differ by about 85 a channel."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(SIZE, Image.Resampling.NEAREST)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def swapped_profile() -> bytes:
    """A profile with the name of sRGB whose red is green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


def see_through(image: Image.Image) -> bytes:
    image = image.convert("RGBA")
    image.paste((9, 9, 9, 0), (0, 0, *SIZE))
    return encoded(image, "PNG")


def padded(image: Image.Image) -> bytes:
    body = encoded(image, "JPEG", quality=95)
    return body[:-2] + bytes(30) + body[-2:] + b"trailing bytes"


def gray(image: Image.Image) -> Image.Image:
    return image.convert("L")


# name -> the bytes, and what the pixels must be. None: those of `drawn`.
FORMS: dict[str, tuple[Callable[[Image.Image], bytes], Callable[[Image.Image], Image.Image] | None]] = {
    "jpeg": (lambda i: encoded(i, "JPEG", quality=95), None),
    "progressive": (lambda i: encoded(i, "JPEG", quality=95, progressive=True, subsampling=0), None),
    "padded": (padded, None),
    "cmyk": (lambda i: encoded(i.convert("CMYK"), "JPEG", quality=95), None),
    "turned": (turned, None),
    "gray": (lambda i: encoded(gray(i), "JPEG", quality=95), gray),
    "png": (lambda i: encoded(i, "PNG"), None),
    "interlaced": (lambda i: encoded(i, "PNG", interlace=1), None),
    "palette": (lambda i: encoded(i.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), None),
    "deep": (lambda i: encoded(Image.fromarray(np.asarray(gray(i)).astype(np.uint16) * 257), "PNG"), gray),
    "see-through": (see_through, lambda i: Image.new("RGB", SIZE, "white")),
    "profile": (
        lambda i: encoded(i, "PNG", icc_profile=swapped_profile()),
        lambda i: Image.merge("RGB", [i.getchannel(name) for name in "GRB"]),
    ),
    "gif": (lambda i: encoded(i.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"), None),
    "webp": (lambda i: encoded(i, "WEBP", quality=95), None),
    "lossless": (lambda i: encoded(i, "WEBP", lossless=True), None),
    "avif": (lambda i: encoded(i, "AVIF", quality=90, speed=10), None),
    "bmp": (lambda i: encoded(i, "BMP"), None),
    "tiff": (lambda i: encoded(i, "TIFF", compression="tiff_lzw"), None),
    "fax": (
        lambda i: encoded(gray(i).convert("1", dither=Image.Dither.NONE), "TIFF", compression="group4"),
        lambda i: gray(i).convert("1", dither=Image.Dither.NONE),
    ),
}


def cut(body: bytes) -> bytes:
    return body[: len(body) // 2]


def zeros(body: bytes) -> bytes:
    return cut(body) + bytes(len(body) - len(body) // 2)


def bad_files() -> dict[str, bytes]:
    """Files that must not become an image."""
    image = drawn(7)
    jpeg = encoded(image.resize((800, 608)), "JPEG", quality=95)
    fax = bytearray(encoded(gray(image).convert("1"), "TIFF", compression="group4"))
    fax[len(fax) // 2 : len(fax) // 2 + 9] = b"\x55" * 9
    png = bytearray(encoded(image, "PNG"))
    png[len(png) // 2] ^= 16
    side = 5200
    found = {
        "half.jpg": cut(jpeg),
        "zeros.jpg": zeros(jpeg),
        "hole.jpg": jpeg[:4000] + bytes(900) + jpeg[4900:],
        "half-progressive.jpg": zeros(encoded(image.resize((800, 608)), "JPEG", quality=95, progressive=True)),
        "damaged-fax.tif": bytes(fax),
        "int32.tif": encoded(Image.fromarray(np.full((40, 40), 200, np.int32)), "TIFF"),
        "float.tif": encoded(Image.fromarray(np.full((40, 40), 0.5, np.float32)), "TIFF"),
        "flipped.png": bytes(png),
        **{f"half.{form.lower()}": cut(encoded(image, form)) for form in ("PNG", "GIF", "WEBP", "AVIF", "TIFF")},
        "bomb.png": encoded(Image.new("1", (side, side)), "PNG"),
        "bomb.gif": encoded(Image.new("P", (side, side)), "GIF"),
        "bomb.webp": encoded(Image.new("RGB", (side, side)), "WEBP", lossless=True, method=0),
        "bomb.tif": encoded(Image.new("1", (side, side)), "TIFF", compression="group4"),
        "bomb.jpg": encoded(Image.new("L", (side, side)), "JPEG"),
        "line.png": encoded(Image.new("L", (4000, 20)), "PNG"),
        "pixel.gif": encoded(Image.new("P", (1, 1)), "GIF"),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"><rect/></svg>',
        "entities.svg": b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        "document.pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\nshowpage\n",
        "text.jpg": b"this is a text",
        "too-large.jpg": jpeg + bytes(17 << 20),
    }
    return found


def large_files() -> dict[str, bytes]:
    """Images that take much memory, all of them good."""
    noise = np.random.default_rng(5).integers(0, 256, (2300, 2300, 3), dtype=np.uint8)
    return {
        "noise.png": encoded(Image.fromarray(noise), "PNG", compress_level=1),
        "noise.jpg": encoded(Image.fromarray(noise), "JPEG", quality=95, subsampling=0),
        "wide.webp": encoded(Image.new("RGB", (5000, 5000), (9, 99, 200)), "WEBP", lossless=True, method=0),
        "wide.png": encoded(Image.new("RGBA", (5000, 5000), (9, 99, 200, 255)), "PNG"),
        "wide.avif": encoded(Image.new("RGBA", (5000, 5000), (9, 99, 200, 255)), "AVIF", speed=10),
    }


# ---------------------------------------------------------------------------------------------------------- the servers


class Odd(_Handler):
    """More ways to serve: interim answers, wrong types, small pieces, a body in slow parts."""

    def image(self, name: str) -> bytes:
        return super().image(name.partition("?")[0])

    def on_img(self, name: str) -> None:
        super().on_img(name.partition("?")[0])

    def on_hints(self, name: str) -> None:
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
        body = self.image(name)
        self.raw(hints, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    def on_doubled(self, name: str) -> None:
        body = self.image(name)
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        self.raw(answer, answer)

    def on_mistyped(self, name: str) -> None:
        self.send(self.image(name), Content_Type="text/html; charset=utf-8")

    def on_pieces(self, name: str) -> None:
        body = self.image(name)
        size = max(1, len(body) // 50)
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in parts:
            self.raw(b"%x;x=1\r\n%s\r\n" % (len(part), part))
        self.raw(b"0\r\n\r\n")

    def on_slowly(self, name: str) -> None:
        body = self.image(name)
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(4):
            self.raw(body[at * len(body) // 4 : (at + 1) * len(body) // 4])
            time.sleep(0.1)

    def on_broken_once(self, name: str) -> None:
        (self.on_cut if self.first_time() else self.on_img)(name)

    def on_reset_once(self, name: str) -> None:
        self.on_reset() if self.first_time() else self.on_img(name)

    def on_across(self, name: str) -> None:
        self.send(b"", 307, Location=f"http://{SITES[1]}/img/{name}")


GOOD_WAYS = (
    *("img/{}", "chunked/{}", "gzip/{}", "close/{}", "redirect/3/{}", "hints/{}", "doubled/{}", "mistyped/{}"),
    *("pieces/{}", "slowly/{}", "flaky/503/{}", "flaky/500/{}", "later/1/{}", "broken-once/{}", "reset-once/{}"),
    *("across/{}", "img/{}?size=1&x=%20", "img/{}#part"),
)
BAD_WAYS = (
    *("endless", "endless-chunked", "gzip-bomb", "head-bomb", "garbage", "reset", "cut/{}", "cut-chunked/{}", "loop"),
    *("two-lengths/{}", "bad-length/{}", "no-location", "declared/9999999999", "declared/5000", "status/404"),
    *("status/410", "status/403", "status/500", "status/206", "html", "empty", "tdm/{}", "tag/noai/{}"),
    *("tag/noimageai/{}", "tag/OpenWIT:%20noindex/{}", "private/{}", "drip", "drip-head", "silent"),
    "to?file:///etc/hostname",
)
INNER = (
    *("127.0.0.1:8080", "localhost:8080", "127.1:8080", "2130706433:8080", "0x7f.0.0.1:8080", "0177.0.0.1:8080"),
    *("0.0.0.0:8080", "[::1]:8080", "[::ffff:127.0.0.1]:8080", "[64:ff9b::7f00:1]:8080", "inner.example:8080"),
    *("mapped.example:8080", METADATA, "2852039166", "10.0.0.1:8080", "[fe80::1]:8080"),
)


def good_urls(count: int) -> Iterator[tuple[str, str]]:
    """(URL, name) of good images: each form by each way, at all sites in turn."""
    forms = list(FORMS)
    for number in range(count):
        name = f"{forms[number % len(forms)]}.{number}"
        way = GOOD_WAYS[(number // 3) % len(GOOD_WAYS)]
        yield f"http://{SITES[number % len(SITES)]}/{way.format(name)}", name


def bad_urls(files: dict[str, bytes]) -> list[str]:
    site = SITES[2]
    urls = [f"http://{site}/{way.format('jpeg.0')}" for way in BAD_WAYS]
    urls += [f"http://{SITES[3]}/img/{name}" for name in files]
    direct = [f"http://{host}/img/secret.png" for host in INNER]
    urls += direct + [f"http://{site}/to?{url}" for url in direct]
    urls += [f"http://{site}:81/img/jpeg.0", "http://no.such.name.example/a.jpg", f"https://{site}/img/jpeg.0"]
    return urls


# ------------------------------------------------------------------------------------------------------------- the run


class Watch(threading.Thread):
    """The most memory that the processes of a run take, in MB: one process, and a worker with its decoder."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.pair, self.running = 0, 0, True
        self._root = psutil.Process(pid)
        self.start()

    def run(self) -> None:
        while self.running:
            try:
                tree = [self._root, *self._root.children(recursive=True)]
                sizes = {one.pid: (one.ppid(), one.memory_info().rss >> 20) for one in tree}
            except psutil.Error:
                continue
            self.process = max(self.process, *(size for _, size in sizes.values()))
            decoders = [(parent, size) for pid, (parent, size) in sizes.items() if self._decodes(pid)]
            self.pair = max([self.pair, *(size + sizes[parent][1] for parent, size in decoders if parent in sizes)])
            time.sleep(0.02)

    @staticmethod
    def _decodes(pid: int) -> bool:
        try:
            return "pipeline.fetching.helper" in " ".join(psutil.Process(pid).cmdline())
        except psutil.Error:
            return False


def fetched(out: Path) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """(row, stored image) of each pair: its newest outcome."""
    newest: dict[bytes, tuple[dict[str, Any], bytes | None]] = {}
    for path in sorted((out / "stages" / "fetch").glob("images-*/*.arrow")):
        raw = path.with_suffix(".raw")
        images = raw.read_bytes() if raw.exists() else b""
        for batch in storage.read_batches(str(path)):
            for row in batch.to_pylist():
                at = row["image_offset"]
                newest[row["uid"]] = row, None if at is None else images[at : at + row["image_bytes"]]
    yield from newest.values()


def is_right(stored: bytes, name: str) -> bool:
    """True if the stored pixels are those that were drawn."""
    form, _, seed = name.partition(".")
    expected = drawn(int(seed))
    change = FORMS[form][1]
    if change is not None:
        expected = change(expected)
    found = Image.open(io.BytesIO(stored)).convert("RGB")
    if found.size != SIZE:
        return False
    difference = np.asarray(found).astype(int) - np.asarray(expected.convert("RGB"))
    return float(np.abs(difference).mean()) < TOLERANCE


def run(count: int, *, large: int, folder: Path) -> dict[str, Any]:
    """Runs the suite inside the namespace; returns its figures."""
    good = dict(good_urls(count))
    files = {name: FORMS[name.partition(".")[0]][0](drawn(int(name.partition(".")[2]))) for name in good.values()}
    bad = bad_files()
    secret = {"secret.png": encoded(drawn(999), "PNG")}
    big = large_files() if large else {}
    heavy = [f"http://{SITES[n % len(SITES)]}/img/{name}?{n}" for n in range(large) for name in big]
    worse = bad_urls(bad)
    sites = [WebServer(files | big | bad, (site, 80)) for site in SITES]
    inner = [WebServer(secret, address) for address in (("127.0.0.1", 8080), (METADATA, 80))]
    for server in (*sites, *inner):
        server.RequestHandlerClass = Odd
        server.__enter__()
    urls = [*good, *heavy, *worse]
    table = pa.table({"url": urls, "text": [f"a picture of number {n}" for n in range(len(urls))]})
    pq.write_table(table, folder / "pairs.parquet")
    (folder / "queries.txt").write_text("picture\n")
    command = [sys.executable, "-m", "pipeline.build", "--input", str(folder / "pairs.parquet")]
    command += ["--queries", str(folder / "queries.txt"), "--output", str(folder / "out"), "--language-model", "none"]
    command += ["--stages", "gather..fetch", "--workers", "2", "--min-success", "0"]
    command += ["--deadline", "20", "--fetch-rounds", "3"] if large else ["--deadline", "3", "--fetch-rounds", "0"]
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    watch = Watch(process.pid)
    _, said = process.communicate(timeout=560)
    watch.running = False
    return figures(folder / "out", good, heavy, worse) | {
        "exit_code": process.returncode,
        "internal": sum(sum(server.hits.values()) + server.connections for server in inner),
        "most_mb_of_a_process": watch.process,
        "most_mb_of_a_worker_and_its_decoder": watch.pair,
        "seconds": round(time.monotonic() - start, 1),
        "said": "" if process.returncode == 0 else said[-2000:],
    }


def figures(out: Path, good: dict[str, str], heavy: list[str], worse: list[str]) -> dict[str, Any]:
    names = {url.partition("#")[0]: name for url, name in good.items()}
    kept, wrong, lost, let_in, reasons = 0, [], [], [], Counter[str]()
    heavy_kept = 0
    rows = {row["url"]: (row, stored) for row, stored in fetched(out)}
    for url, (row, stored) in rows.items():
        reasons[row["status"]] += 1
        if url in names:
            if stored is None:
                lost.append((url, row["status"], row["error"]))
            elif is_right(stored, names[url]):
                kept += 1
            else:
                wrong.append(url)
        elif url in heavy:
            heavy_kept += stored is not None
        elif stored is not None:
            let_in.append(url)
    lost += [(url, "no row", None) for url in names if url not in rows]
    return {
        "good": len(names),
        "good_kept_with_right_pixels": kept,
        "good_lost": lost[:20],
        "wrong_pixels": wrong[:20],
        "large": len(heavy),
        "large_kept": heavy_kept,
        "bad": len(worse),
        "bad_let_in": let_in,
        "statuses": dict(sorted(reasons.items())),
    }


def is_as_it_must_be(found: dict[str, Any]) -> bool:
    return (
        found["exit_code"] == 0
        and found["good_kept_with_right_pixels"] == found["good"]
        and found["large_kept"] == found["large"]
        and not found["bad_let_in"]
        and not found["internal"]
        and max(found["most_mb_of_a_process"], found["most_mb_of_a_worker_and_its_decoder"]) <= MOST_MB
    )


SET_UP = " && ".join(
    [
        "ip link set lo up",
        *(f"ip addr add {address}/32 dev lo" for address in (*SITES, METADATA)),
        'mount --bind "$HOSTS" /etc/hosts',
        'exec "$@"',
    ]
)


def in_a_namespace(arguments: list[str], folder: Path) -> list[str]:
    """The command that runs this file in a namespace of its own, where the loopback device has the sites' addresses."""
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in NAMES.items()))
    unshare = ["unshare", "-n", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-n", "-m"]
    inside = [*unshare, "env", f"HOSTS={hosts}", "sh", "-c", SET_UP, "sh"]
    return [*inside, sys.executable, "-m", "tests.hostile_suite", "--inside", str(folder), *arguments]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is None:
        with tempfile.TemporaryDirectory() as folder:
            command = in_a_namespace(["--small"] * options.small, Path(folder))
            return subprocess.run(command, cwd=ROOT).returncode
    found = run(76 if options.small else 620, large=0 if options.small else 16, folder=options.inside)
    print(json.dumps(found, indent=1))
    return 0 if is_as_it_must_be(found) else 1


if __name__ == "__main__":
    sys.exit(main())
