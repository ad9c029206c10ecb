"""Draws a picture in a terminal: by kitty's protocol, as sixels, or with half blocks of colour.

A library would bring its own rich text engine (textual-image) or a pager (term-image). Three short writers do not.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("kitty", "sixel", "blocks")
COLUMNS, ROWS = 60, 24  # of the terminal, that a picture takes at most
CELL = (8, 16)  # pixels of a character, where the terminal does not say
CHUNK = 4096  # bytes of base64 in one escape sequence of kitty
COLOURS = 128  # of sixels
WAIT = 0.2  # seconds for the terminal's answer
# Terminals that draw sixels, by the beginning of TERM. Others are asked.
SIXEL_TERMS = ("foot", "mlterm", "yaft", "contour")
KITTY_PROGRAMS = ("ghostty", "wezterm", "konsole")


def kind_of_terminal() -> str | None:
    """How stdout can show a picture: one of KINDS, or None.

    None where stdout is no terminal, or one without colours (NO_COLOR, TERM=dumb).
    """
    term, program = os.environ.get("TERM", ""), os.environ.get("TERM_PROGRAM", "").lower()
    if not sys.stdout.isatty() or term in ("", "dumb"):
        return None
    if "KITTY_WINDOW_ID" in os.environ or term == "xterm-kitty" or program in KITTY_PROGRAMS:
        return "kitty"
    if term.startswith(SIXEL_TERMS) or _says_sixel():
        return "sixel"
    has_colours = "256color" in term or os.environ.get("COLORTERM") in ("truecolor", "24bit")
    utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    return "blocks" if has_colours and utf8 and not os.environ.get("NO_COLOR") else None


def _says_sixel() -> bool:
    """Asks the terminal for its device attributes (DA1). Attribute 4 means sixels."""
    try:
        import select
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        if not os.isatty(descriptor):
            return False
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError):
        return False
    answer = b""
    try:
        tty.setcbreak(descriptor)
        sys.stdout.write("\x1b[c")
        sys.stdout.flush()
        while not answer.endswith(b"c") and len(answer) < 64 and select.select([descriptor], [], [], WAIT)[0]:
            answer += os.read(descriptor, 64)
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
    return answer.startswith(b"\x1b[?") and b"4" in answer[3:-1].split(b";")[1:]


def draw(data: bytes, kind: str, *, columns: int = COLUMNS, rows: int = ROWS) -> str:
    """The escape sequences and characters that show an image.

    Args:
        data: a JPEG, PNG or WebP.
        kind: one of KINDS.
        columns, rows: of the terminal, at most.

    Raises:
        ValueError: it is not an image that can be decoded.
    """
    from PIL import Image

    columns, rows = min(columns, COLUMNS), min(rows, ROWS)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (columns * CELL[0], rows * CELL[1]))
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error
    if kind == "blocks":
        return _blocks(_fitted(image, columns, rows * 2))
    image = _fitted(image, columns * CELL[0], rows * CELL[1])
    return "".join(_kitty(image)) if kind == "kitty" else _sixels(image)


def _fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image, made smaller until it fits."""
    scale = min(1.0, width / image.width, height / image.height)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _kitty(image: Image.Image) -> Iterator[str]:
    """A PNG, in chunks: https://sw.kovidgoyal.net/kitty/graphics-protocol/ ."""
    out = io.BytesIO()
    image.save(out, "PNG")
    text = base64.b64encode(out.getvalue()).decode()
    for start in range(0, len(text), CHUNK):
        control = f"{'a=T,f=100,' if start == 0 else ''}m={int(start + CHUNK < len(text))}"
        yield f"\x1b_G{control};{text[start : start + CHUNK]}\x1b\\"
    yield "\n"


def _sixels(image: Image.Image) -> str:
    """Six rows of pixels a band, for each colour a line of bits: DEC STD 070, chapter 9."""
    indexed = image.quantize(COLOURS)
    palette, pixels = indexed.getpalette() or [], indexed.tobytes()
    used = sorted(set(pixels))
    parts = [f'\x1bP0;1q"1;1;{image.width};{image.height}']
    for colour in used:
        red, green, blue = (round(part * 100 / 255) for part in palette[3 * colour : 3 * colour + 3])
        parts.append(f"#{colour};2;{red};{green};{blue}")
    for top in range(0, image.height, 6):
        lines = [pixels[y * image.width : (y + 1) * image.width] for y in range(top, min(top + 6, image.height))]
        for colour in sorted({pixel for line in lines for pixel in line}):
            bits = [sum((line[x] == colour) << row for row, line in enumerate(lines)) for x in range(image.width)]
            parts.append(f"#{colour}{''.join(_runs(bits))}$")
        parts.append("-")
    return "".join(parts) + "\x1b\\\n"


def _runs(bits: list[int]) -> Iterator[str]:
    """The characters of a line of sixels. A run of equal ones is written as its length."""
    start = 0
    for at in range(1, len(bits) + 1):
        if at == len(bits) or bits[at] != bits[start]:
            character, length = chr(63 + bits[start]), at - start
            yield f"!{length}{character}" if length > 3 else character * length
            start = at


def _blocks(image: Image.Image) -> str:
    """Two pixels a character: the upper one is the colour of the half block, the lower one is that behind it."""
    pixels, lines = image.load(), []
    assert pixels is not None
    for top in range(0, image.height - 1, 2):
        cells = [
            "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*pixels[x, top], *pixels[x, top + 1])  # type: ignore[misc]
            for x in range(image.width)
        ]
        lines.append("".join(cells) + "\x1b[0m\n")
    return "".join(lines)
