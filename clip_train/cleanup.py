"""Caption clean-up before byte-pair encoding, for text that is not plain ASCII.

OpenAI's tokenizer passes captions through ftfy, html.unescape (twice), a fold of blanks, and lower case. These are the
steps of ftfy that matter for captions, in its order, on the standard library alone: HTML entities, mojibake of UTF-8
read as Windows-1252 or Latin-1, ligatures, full-width forms, curly quotes, line breaks, surrogates, control characters,
NFC. ftfy repairs rarer mixtures of encodings too.
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
# Windows-1252 leaves five bytes undefined; text that was misread shows them as the C1 characters of Latin-1
_TO_BYTES = {ord(char): code for code, char in _WINDOWS_1252.items() if char != "\ufffd"}
_CONTINUATION = "\x80-\xbf" + "".join(re.escape(chr(point)) for point in _TO_BYTES)
# a UTF-8 lead byte and the right number of continuation bytes, each seen as a character of its own
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
    """Undoes what happened to a caption on its way through the web."""
    if "&" in text and "<" not in text:
        text = _ENTITY.sub(_unescape, text)
    if "\033" in text:
        text = _TERMINAL_ESCAPE.sub("", text)
    if not text.isascii():
        for _ in range(4):  # mojibake may have been made more than once
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
    """One HTML entity, also where the page wrote its name in capitals (&EACUTE;)."""
    entity = match[0]
    plain = html.unescape(entity)
    if plain == entity and entity == entity.upper() and entity.endswith(";"):
        lower = html.unescape(entity.lower())
        if lower != entity.lower() and len(lower) == 1:
            return lower.upper()
    return plain if ";" not in plain or plain == ";" else entity


def _as_bytes(text: str) -> bytes:
    """The bytes that, read as Windows-1252 with the gaps of Latin-1, gave this text; ValueError if none did."""
    return bytes([_TO_BYTES.get(ord(char), ord(char)) for char in text])


def _fix_encoding(text: str) -> str:
    """UTF-8 that was read as Windows-1252 or Latin-1, whole or in places; C1 characters that were Windows-1252."""
    try:
        return _as_bytes(text).decode("utf-8")
    except ValueError:  # a character above 255, or not UTF-8: look at places
        pass
    text = _MISREAD.sub(_decode_place, text)
    return _C1.sub(lambda match: bytes([ord(match[0])]).decode("cp1252", "ignore") or match[0], text)


def _decode_place(match: re.Match[str]) -> str:
    try:
        return _as_bytes(match[0]).decode("utf-8")
    except ValueError:
        return match[0]
