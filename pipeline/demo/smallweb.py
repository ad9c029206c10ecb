"""A small web, drawn by program: pages in four languages, pictures, and the faults of the real web.

`draw(base)` returns the sites as plain data. `write_warc` and `write_wat` archive them as a crawler would, with broken
records among them. `serve` puts the pictures on loopback. The demo and the tests run the whole pipeline on this web.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import html
import io
import json
import math
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image, ImageDraw

COLOURS = {"red": "#d03a2f", "blue": "#2f62d0", "green": "#2f9e4f", "yellow": "#e8c23a", "purple": "#7d3ac1"}
SHAPES = ("circle", "square", "triangle", "star", "house", "tree", "boat", "fish")
PLACES = ("on a hill", "by the sea", "in the snow", "under the moon", "in a garden")
GROUNDS = {"on a hill": "#b7d7a8", "by the sea": "#9fc5e8", "in the snow": "#f3f3f3", "under the moon": "#3d4a66"}
TRANSLATED = {  # colours and shapes, then places
    "de": (
        "roter blauer grüner gelber violetter Kreis Quadrat Dreieck Stern Haus Baum Boot Fisch",
        ("auf einem Hügel", "am Meer", "im Schnee", "unter dem Mond", "in einem Garten"),
    ),
    "fr": (
        "rouge bleu vert jaune violet cercle carré triangle étoile maison arbre bateau poisson",
        ("sur une colline", "au bord de la mer", "dans la neige", "sous la lune", "dans un jardin"),
    ),
    "es": (
        "rojo azul verde amarillo morado círculo cuadrado triángulo estrella casa árbol barco pez",
        ("en una colina", "junto al mar", "en la nieve", "bajo la luna", "en un jardín"),
    ),
}
WORDS = {
    language: dict(zip((*COLOURS, *SHAPES, *PLACES), (*words.split(), *places), strict=True))
    for language, (words, places) in TRANSLATED.items()
}
SIZE = 320  # pixels, the long side


@dataclasses.dataclass(frozen=True)
class Scene:
    """One picture. What it shows decides every pixel and every caption."""

    colour: str
    shape: str
    place: str

    def caption(self, language: str = "en") -> str:
        """The alt-text in English, German, French or Spanish."""
        if language == "en":
            return f"A {self.colour} {self.shape} {self.place}"
        colour, shape, place = (WORDS[language][word] for word in (self.colour, self.shape, self.place))
        return {
            "de": f"Ein {colour} {shape} {place}",
            "fr": f"Un dessin: {shape} {colour} {place}",
            "es": f"Un dibujo: {shape} {colour} {place}",
        }[language]

    def name(self) -> str:
        """The picture's file name."""
        return "-".join((self.colour, self.shape, *self.place.split())) + ".jpg"

    def picture(self) -> bytes:
        """The drawing as a JPEG."""
        rng = random.Random(self.caption())
        image = Image.new("RGB", (SIZE, SIZE * 3 // 4), GROUNDS.get(self.place, "#a9c98f"))
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, SIZE, SIZE // 3), "#1c2438" if "moon" in self.place else "#cfe2f3")
        if "moon" in self.place:
            draw.ellipse((250, 12, 290, 52), "#f6efcf")
        for _ in range(24):
            x, y = rng.randrange(SIZE), rng.randrange(SIZE // 3, SIZE * 3 // 4)
            draw.ellipse((x, y, x + 6, y + 3), "#ffffff44" if "snow" in self.place else "#6b8f5a")
        _draw_shape(draw, self.shape, COLOURS[self.colour], 100 + rng.randrange(60), 70 + rng.randrange(30))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=88)
        return out.getvalue()


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, colour: str, x: int, y: int) -> None:
    """One of SHAPES, about 110 pixels wide, with its upper left corner at (x, y)."""
    edge: dict[str, Any] = {"fill": colour, "outline": "#222222"}
    if shape == "circle":
        draw.ellipse((x, y, x + 110, y + 110), **edge)
    elif shape == "square":
        draw.rectangle((x, y, x + 105, y + 105), **edge)
    elif shape == "triangle":
        draw.polygon([(x, y + 110), (x + 55, y), (x + 110, y + 110)], **edge)
    elif shape == "star":
        points = [(60 if n % 2 == 0 else 25, math.pi * (n / 5 - 0.5)) for n in range(10)]
        draw.polygon([(x + 55 + r * math.cos(a), y + 60 + r * math.sin(a)) for r, a in points], **edge)
    elif shape == "house":
        draw.rectangle((x + 10, y + 45, x + 100, y + 115), **edge)
        draw.polygon([(x, y + 45), (x + 55, y), (x + 110, y + 45)], fill="#7a4a2f", outline="#222222")
    elif shape == "tree":
        draw.rectangle((x + 47, y + 60, x + 63, y + 120), fill="#7a4a2f", outline="#222222")
        draw.ellipse((x + 10, y, x + 100, y + 80), **edge)
    elif shape == "boat":
        draw.polygon([(x, y + 70), (x + 110, y + 70), (x + 85, y + 105), (x + 25, y + 105)], **edge)
        draw.polygon([(x + 52, y), (x + 52, y + 62), (x + 100, y + 62)], fill="#ffffff", outline="#222222")
    else:
        draw.ellipse((x, y + 30, x + 85, y + 90), **edge)
        draw.polygon([(x + 78, y + 60), (x + 115, y + 32), (x + 115, y + 88)], **edge)


@dataclasses.dataclass(frozen=True)
class Page:
    """An HTML page: its links for the WAT, its markup for the WARC."""

    url: str
    language: str
    markup: str
    links: tuple[tuple[str, str], ...]  # (src as written, alt)
    noai: bool = False


@dataclasses.dataclass(frozen=True)
class SmallWeb:
    """Pages, and pictures by path. The server sends noai with the pictures in `refused`."""

    base: str
    pages: tuple[Page, ...]
    pictures: dict[str, bytes]
    refused: frozenset[str]


def draw(base: str, *, pages: int = 60, seed: int = 7) -> SmallWeb:
    """A web of `pages` pages under `base` (such as http://127.0.0.1:8000). The same seed gives the same web."""
    rng = random.Random(seed)
    scenes = [Scene(colour, shape, place) for colour in COLOURS for shape in SHAPES for place in PLACES]
    rng.shuffle(scenes)
    made, pictures = [], {}
    for number in range(pages):
        language = rng.choice(("en", "en", "en", "de", "fr", "es"))
        chosen = rng.sample(scenes, 8)
        for scene in chosen:
            pictures["/pictures/" + scene.name()] = b""
        made.append(_page(base, number, language, chosen, rng))
    for scene in scenes:
        path = "/pictures/" + scene.name()
        if path in pictures:
            pictures[path] = scene.picture()
    pictures["/pictures/logo.jpg"] = Scene("blue", "circle", "in the snow").picture()
    copy_of = next(iter(pictures))
    pictures["/copies/same-bytes.jpg"] = pictures[copy_of]
    pictures["/copies/broken.jpg"] = pictures[copy_of][:900]
    refused = frozenset(sorted(pictures)[40:44])
    return SmallWeb(base, tuple(made), pictures, refused)


def _page(base: str, number: int, language: str, scenes: list[Scene], rng: random.Random) -> Page:
    """One page with eight pictures and a few bad links."""
    links = [(f"/pictures/{scene.name()}", scene.caption(language)) for scene in scenes]
    links += [("/pictures/logo.jpg", "logo"), ("/pictures/IMG_0042.jpg", "IMG_0042.jpg"), ("", "no address here")]
    links += [("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "a red square inline")]
    if number % 5 == 0:
        links += [
            ("/copies/same-bytes.jpg", "The same red circle once more"),
            ("/gone.jpg", "A green tree that is gone"),
        ]
    if number % 7 == 0:
        links += [("/copies/broken.jpg", "A broken blue house"), ("http://192.168.0.1/a.jpg", "A private yellow fish")]
    noai = number % 11 == 3
    body = []
    for position, (source, alt) in enumerate(links):
        text = html.escape(alt)
        if position == 1:  # lazy loading: src is a placeholder
            body.append(f'<img src="/pictures/blank.gif" data-src="{source}" alt="{text}">')
        elif position == 2:
            body.append(
                f"<figure><img src='{source}' alt='{text}'><figcaption>Drawing {number}: {text}</figcaption></figure>"
            )
        else:
            body.append(f'<p><img src="{source}" alt="{text}" title=""> {rng.choice(("lorem", "ipsum", "dolor"))}</p>')
    meta = '<meta name="robots" content="noai, noimageai">' if noai else ""
    markup = (
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8"><title>Page {number}</title>{meta}'
        f'<link rel="license" href="https://creativecommons.org/publicdomain/zero/1.0/"></head>'
        f"<body>{''.join(body)}</body></html>"
    )
    return Page(f"{base}/site{number % 6}/page{number}.html", language, markup, tuple(links), noai)


# ------------------------------------------------------------------------------------------------------- archives


def record(kind: str, url: str, block: bytes, *, content_type: str = "application/http; msgtype=response") -> bytes:
    """One WARC record."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-05T12:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-{abs(hash_of(url + kind)) % 10**12:012d}>\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def hash_of(text: str) -> int:
    """A number from a text, the same in every process."""
    return int.from_bytes(text.encode()[-8:], "big")


def response(body: bytes, content_type: str, *more: str) -> bytes:
    """An HTTP response."""
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def write_warc(web: SmallWeb, path: str, *, pages: slice = slice(None), pictures: int = 20) -> int:
    """Writes the pages as a WARC with `pictures` of the pictures. One member is damaged.

    Returns:
        The number of records.
    """
    members = [
        gzip.compress(
            record("warcinfo", "", b"software: smallweb\r\n", content_type="application/warc-fields"), mtime=0
        )
    ]
    for page in web.pages[pages]:
        block = response(page.markup.encode(), "text/html; charset=utf-8")
        members.append(gzip.compress(record("response", page.url, block), mtime=0))
    for name in sorted(web.pictures)[:pictures]:
        block = response(web.pictures[name], "image/jpeg")
        members.append(gzip.compress(record("response", web.base + name, block), mtime=0))
    damaged = bytearray(members[len(members) // 2])
    damaged[len(damaged) // 2] ^= 0xFF
    members.insert(3, bytes(damaged))
    with open(path, "wb") as file:
        file.write(b"".join(members))
    return len(members)


def write_wat(web: SmallWeb, path: str, *, pages: slice = slice(None)) -> int:
    """Writes the pages as a WAT of Common Crawl. One record is not JSON.

    Returns:
        The number of records.
    """
    members = [
        gzip.compress(
            record("warcinfo", "", b"software: smallweb\r\n", content_type="application/warc-fields"), mtime=0
        )
    ]
    for number, page in enumerate(web.pages[pages]):
        metas = [{"name": "robots", "content": "noai, noimageai"}] if page.noai else []
        links = [{"path": "IMG@/src", "url": source, "alt": alt} for source, alt in page.links]
        links.append({"path": "A@/href", "url": "/next.html", "text": "next"})  # type: ignore[dict-item]
        envelope = {
            "Envelope": {
                "WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": page.url},
                "Payload-Metadata": {
                    "HTTP-Response-Metadata": {
                        "Headers": {"Content-Type": "text/html"},
                        "HTML-Metadata": {"Head": {"Title": "Page", "Metas": metas}, "Links": links},
                    }
                },
            }
        }
        block = json.dumps(envelope).encode() if number != 4 else b'{"Envelope": {"Payload-Metadata": {"HTML-Metadata'
        members.append(gzip.compress(record("metadata", page.url, block, content_type="application/json"), mtime=0))
    with open(path, "wb") as file:
        file.write(b"".join(members))
    return len(members)


# ---------------------------------------------------------------------------------------------------------- server


class _Handler(BaseHTTPRequestHandler):
    """Serves the pictures of `server.web`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing."""

    def do_GET(self) -> None:
        web: SmallWeb = self.server.web  # type: ignore[attr-defined]
        body = web.pictures.get(self.path)
        if self.path == "/robots.txt":
            body, kind = b"User-agent: *\nDisallow: /private/\n", "text/plain"
        else:
            kind = "image/jpeg"
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body or b"")))
        if self.path in web.refused:
            self.send_header("X-Robots-Tag", "noai")
        self.end_headers()
        self.wfile.write(body or b"")


@contextlib.contextmanager
def serve(*, pages: int = 60, seed: int = 7) -> Iterator[SmallWeb]:
    """Draws a web and serves it on a free port of 127.0.0.1 while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.web = draw(f"http://127.0.0.1:{server.server_address[1]}", pages=pages, seed=seed)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.web  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
