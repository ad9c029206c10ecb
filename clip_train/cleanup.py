"""Cleans up captions that are not plain ASCII, before byte-pair encoding.

OpenAI's tokenizer applies ftfy, html.unescape (twice), a collapse of blanks, and lower case. This module has the steps
of ftfy that matter for captions, in the order of ftfy, and needs the standard library only: HTML entities, mojibake
(UTF-8 that was decoded as Windows-1252 or Latin-1), ligatures, full-width forms, curly quotes, line breaks, surrogates,
control characters, NFC. ftfy also repairs rarer mixtures of encodings.
"""

from __future__ import annotations

import html
import re
import unicodedata

_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
_TERMINAL_ESCAPE = re.compile("\033\\[((?:\\d|;)*)([a-zA-Z])")
_SURROGATE = re.compile("[\ud800-\udfff]")
_C1 = re.compile("[\x80-\x9f]")
_SINGLE_QUOTES = re.compile("[\u02bc\u2018-\u201b]")
_DOUBLE_QUOTES = re.compile("[\u201c-\u201f]")
_LINE_BREAKS = re.compile("\r\n|[\r\u2028\u2029\x85]")
_WINDOWS_1252 = {code: bytes([code]).decode("cp1252", "replace") for code in range(0x80, 0xA0)}
# Windows-1252 leaves five bytes undefined; in mojibake they are C1 characters of Latin-1
_TO_BYTES = {ord(char): code for code, char in _WINDOWS_1252.items() if char != "\ufffd"}
_CONTINUATION = "\x80-\xbf" + "".join(re.escape(chr(point)) for point in _TO_BYTES)
# a UTF-8 lead byte and its continuation bytes, each decoded as one character
_MISREAD = re.compile(
    f"(?:[\xc2-\xdf][{_CONTINUATION}]|[\xe0-\xef][{_CONTINUATION}]{{2}}|[\xf0-\xf4][{_CONTINUATION}]{{3}})+"
)
_DROPPED = dict.fromkeys(
    [*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
)
_LIGATURES = {
    point: unicodedata.normalize("NFKC", chr(point))
    for point in [0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), 0x1F1, 0x1F2, 0x1F3, *range(0xFB00, 0xFB05), 0xFB06]
} | {0xFB05: "\u017ft"}
_WIDTHS = {0x3000: " "} | {point: unicodedata.normalize("NFKC", chr(point)) for point in range(0xFF01, 0xFFF0)}


def repair(text: str) -> str:
    """Repairs the encoding of a caption and normalises its characters."""
    if "&" in text and "<" not in text:
        text = _ENTITY.sub(_unescape, text)
    if "\033" in text:
        text = _TERMINAL_ESCAPE.sub("", text)
    if not text.isascii():
        for _ in range(4):  # the text may have been decoded wrongly more than once
            fixed = _fix_encoding(text)
            if fixed == text:
                break
            text = fixed
        text = text.translate(_LIGATURES).translate(_WIDTHS)
        text = _DOUBLE_QUOTES.sub('"', _SINGLE_QUOTES.sub("'", text))
    text = _LINE_BREAKS.sub("\n", text)
    if _SURROGATE.search(text):
        text = _SURROGATE.sub("\ufffd", text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return unicodedata.normalize("NFC", text.translate(_DROPPED))


def _unescape(match: re.Match[str]) -> str:
    """Decodes one HTML entity. Its name may be in capitals (&EACUTE;)."""
    entity = match[0]
    plain = html.unescape(entity)
    if plain == entity and entity == entity.upper() and entity.endswith(";"):
        lower = html.unescape(entity.lower())
        if lower != entity.lower() and len(lower) == 1:
            return lower.upper()
    return plain if ";" not in plain or plain == ";" else entity


def _as_bytes(text: str) -> bytes:
    """Encodes mojibake as the bytes it came from: Windows-1252, with Latin-1 in its gaps. ValueError if that fails."""
    return bytes([_TO_BYTES.get(ord(char), ord(char)) for char in text])


def _fix_encoding(text: str) -> str:
    """Repairs UTF-8 that was decoded as Windows-1252 or Latin-1, and C1 characters that were Windows-1252."""
    try:
        return _as_bytes(text).decode("utf-8")
    except ValueError:  # a character above 255, or not UTF-8: repair parts of the text
        pass
    text = _MISREAD.sub(_decode_place, text)
    return _C1.sub(lambda match: bytes([ord(match[0])]).decode("cp1252", "ignore") or match[0], text)


def _decode_place(match: re.Match[str]) -> str:
    try:
        return _as_bytes(match[0]).decode("utf-8")
    except ValueError:
        return match[0]
