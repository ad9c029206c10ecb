"""Pictures in a terminal: each protocol is decoded again, and the choice follows the terminal."""

from __future__ import annotations

import base64
import io
import os
import pty
import re

import pytest
from PIL import Image

from pipeline.inspector import picture


def two_colours() -> bytes:
    """16 x 12 pixels, the left half red, the right half blue."""
    image = Image.new("RGB", (16, 12), (250, 0, 0))
    image.paste((0, 0, 250), (8, 0, 16, 12))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_kitty_gets_a_png() -> None:
    text = picture.draw(two_colours(), "kitty")
    chunks = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", text)
    assert chunks[0][0] == "a=T,f=100,m=0" and "".join(f"\x1b_G{a};{b}\x1b\\" for a, b in chunks) + "\n" == text
    assert Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in chunks)))).size == (16, 12)


def test_kitty_gets_a_large_image_in_chunks() -> None:
    noise = Image.effect_noise((300, 200), 100)
    out = io.BytesIO()
    noise.save(out, "PNG")
    chunks = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", picture.draw(out.getvalue(), "kitty"))
    assert [control for control, _ in chunks] == ["a=T,f=100,m=1", *["m=1"] * (len(chunks) - 2), "m=0"]
    assert all(len(data) <= 4096 for _, data in chunks)


def test_sixels_give_the_pixels_back() -> None:
    text = picture.draw(two_colours(), "sixel")
    body = re.fullmatch('\x1bP0;1q"1;1;16;12(.*)\x1b\\\\\n', text, re.DOTALL)
    assert body is not None
    colours = {name: (r, g, b) for name, r, g, b in re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)", body[1])}
    bands = re.sub(r"#\d+;2;\d+;\d+;\d+", "", body[1]).split("-")
    assert len(bands) == 3 and bands[2] == ""
    for band in bands[:2]:
        seen = {}
        for name, runs in re.findall(r"#(\d+)([^#$]*)\$", band):
            line = re.sub(r"!(\d+)(.)", lambda found: found[2] * int(found[1]), runs)
            seen |= {x: colours[name] for x, sixel in enumerate(line) if ord(sixel) - 63 == 0b111111}
        assert [seen[x] for x in range(16)] == [("98", "0", "0")] * 8 + [("0", "0", "98")] * 8


def test_half_blocks() -> None:
    lines = picture.draw(two_colours(), "blocks", columns=40, rows=10).splitlines()
    assert len(lines) == 6
    cells = re.findall("\x1b\\[38;2;([0-9;]+)m\x1b\\[48;2;([0-9;]+)m▀", lines[0])
    assert cells == [("250;0;0", "250;0;0")] * 8 + [("0;0;250", "0;0;250")] * 8


def test_a_picture_fits_the_terminal() -> None:
    out = io.BytesIO()
    Image.new("RGB", (900, 300)).save(out, "JPEG")
    lines = picture.draw(out.getvalue(), "blocks", columns=30, rows=50).splitlines()
    assert lines[0].count("▀") == 30 and len(lines) == 5


def test_what_is_no_image() -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        picture.draw(b"\xff\xd8 no", "blocks")


class Terminal(io.StringIO):
    """A stdout that is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "kitty"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, None),
        ({"TERM": "vt100"}, None),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
    ],
)
def test_the_terminal_decides(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], kind: str | None) -> None:
    for name in ("TERM", "TERM_PROGRAM", "COLORTERM", "NO_COLOR", "KITTY_WINDOW_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert picture.kind_of_terminal() == kind
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert picture.kind_of_terminal() is None


@pytest.mark.parametrize(
    ("answer", "says"), [(b"\x1b[?62;4;22c", True), (b"\x1b[?62;22c", False), (b"\x1b[?64c", False)]
)
def test_a_terminal_that_is_asked(monkeypatch: pytest.MonkeyPatch, answer: bytes, says: bool) -> None:
    ours, theirs = pty.openpty()

    class Asked(Terminal):
        """Answers the question when it is written."""

        def write(self, text: str) -> int:
            assert text == "\x1b[c"
            return os.write(ours, answer)

    with os.fdopen(theirs, "r") as stdin, os.fdopen(ours, "r+b", buffering=0):
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", Asked())
        monkeypatch.setattr(picture, "WAIT", 5.0)
        assert picture._says_sixel() == says
