"""The bytes of a page as UTF-8, by the rules of the Encoding and HTML standards (WHATWG).

The encoding comes from the byte order mark, else from HTTP, else from the page's first bytes: a `<meta charset>`, a
`<meta http-equiv=content-type>`, else an XML declaration. Without any it is UTF-8 if that is valid. Else it comes from
a meta anywhere in the page, or it is Windows-1252 (browsers take the default of the user's language).
"""

from __future__ import annotations

import codecs
import re

PRESCANNED = 8_192  # bytes; browsers look at 1,024

# The encodings by Python's codec, with their labels. Where Python's codec of that name differs, a superset stands here.
_LABELS = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso8859-3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso8859-5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988",
    "iso8859-6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e"
    " iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7"
    " iso_8859-7:1987 sun_eu_greek",
    "iso8859-8": "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 iso88598 iso_8859-8"
    " iso_8859-8:1988 visual csiso88598i iso-8859-8-i logical",
    "iso8859-10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859-14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1"
    " iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252 x-user-defined",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5"
    " windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc-jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022-jp": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601"
    " windows-949",
    "utf-16-be": "unicodefffe utf-16be",
    "utf-16-le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
    "replacement": "csiso2022kr hz-gb-2312 iso-2022-cn iso-2022-cn-ext iso-2022-kr replacement",
}
_CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}
REPLACEMENT = "replacement"  # of encodings that browsers do not read, since ASCII in them may mean something else
_SPACE = "\t\n\f\r "


def codec(label: str | None) -> str | None:
    """Python's codec for a label; None for an unknown one."""
    return _CODECS.get((label or "").strip(_SPACE).lower())


def to_utf8(html: bytes, charset: str | None) -> bytes:
    """The page in valid UTF-8.

    Args:
        charset: the label in the HTTP header, if there is one.
    """
    html, name = _named(html, charset)
    if not name or name == "utf-8":
        if html.isascii():
            return html
        try:
            html.decode()
            return html
        except UnicodeDecodeError:
            name = name or prescan(html) or "cp1252"  # browsers read the page anew for a meta that comes late
    return b"" if name == REPLACEMENT else _decoded(html, name).encode("utf-8", "replace")


def _named(html: bytes, charset: str | None) -> tuple[bytes, str | None]:
    """(page without its byte order mark, its codec if it is named)."""
    if html[:3] == codecs.BOM_UTF8:
        return html[3:], "utf-8"
    if html[:2] == codecs.BOM_UTF16_LE:
        return html[2:], "utf-16-le"
    if html[:2] == codecs.BOM_UTF16_BE:
        return html[2:], "utf-16-be"
    return html, codec(charset) or prescan(html[:PRESCANNED])


def _decoded(html: bytes, name: str) -> str:
    if name == "euc-jp":
        try:
            return html.decode(name)
        except UnicodeDecodeError:
            name = "euc-jis-2004"  # has the characters of NEC and IBM, as the standard's table
    return html.decode(name, _C1 if name.startswith("cp125") else "replace")


def _c1(error: UnicodeError) -> tuple[str, int]:
    """Bytes from 80 to 9F that an encoding of Windows leaves free are control characters in the standard."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    byte = error.object[error.start]
    return chr(byte) if byte < 0xA0 else "\ufffd", error.start + 1


_C1 = "openwit-c1"
codecs.register_error(_C1, _c1)

# ---- the HTML standard, "prescan a byte stream to determine its encoding"

_MARKUP = re.compile(rb"<(?:(!--)|(/?[a-z][^\t\n\f\r />]*)|[!/?])", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    rb"[\t\n\f\r /]*+([^\t\n\f\r />][^\t\n\f\r />=]*+)"
    rb"(?:[\t\n\f\r ]*+=[\t\n\f\r ]*+(?:\"([^\"]*)\"|'([^']*)'|([^\t\n\f\r >\"'][^\t\n\f\r >]*+)?))?"
)
_CONTENT_CHARSET = re.compile(r"charset[\t\n\f\r ]*=[\t\n\f\r ]*", re.IGNORECASE)
_LABEL = re.compile(r"\"([^\"]*)\"|'([^']*)'|([^\"'\t\n\f\r ;][^\t\n\f\r ;]*)")
_XML_ENCODING = re.compile(rb"<\?xml[^>]*?encoding[\x00-\x20]*=[\x00-\x20]*(?:\"([^\">]*)\"|'([^'>]*)')")


def prescan(start: bytes) -> str | None:
    """The codec that the page's first bytes name; None if they name none that is known."""
    if start.startswith(b"<\0?\0x\0"):
        return "utf-16-le"
    if start.startswith(b"\0<\0?\0x"):
        return "utf-16-be"
    at = 0
    while match := _MARKUP.search(start, at):
        if match[2]:
            attributes, at = _attributes(start, match.end())
            if match[2].lower() == b"meta" and (name := _meta_codec(attributes)):
                return _of_ascii(name)
            continue
        end = start.find(b"-->", match.end() - 2) if match[1] else start.find(b">", match.end())
        if end < 0:
            break
        at = end + 1
    xml = _XML_ENCODING.match(start)
    name = codec((xml[1] or xml[2] or b"").decode("latin-1")) if xml else None
    return _of_ascii(name) if name else None


def _of_ascii(name: str) -> str:
    """The name was read as ASCII, so the page is not UTF-16."""
    return "utf-8" if name.startswith("utf-16") else name


def _attributes(start: bytes, at: int) -> tuple[dict[str, str], int]:
    """(attributes of a tag, the first of each name; place after them)."""
    found: dict[str, str] = {}
    while match := _ATTRIBUTE.match(start, at):
        at = match.end()
        value = next((group for group in match.groups()[1:] if group is not None), b"")
        found.setdefault(match[1].decode("latin-1").lower(), value.decode("latin-1"))
    return found, at


def _meta_codec(attributes: dict[str, str]) -> str | None:
    """The codec that a meta names by charset, or by content if it stands for the Content-Type header."""
    if "charset" in attributes:
        return codec(attributes["charset"])
    if attributes.get("http-equiv", "").lower() != "content-type":
        return None
    content = attributes.get("content", "")
    match = _CONTENT_CHARSET.search(content)
    label = _LABEL.match(content, match.end()) if match else None
    return codec(next(filter(None, label.groups()), "")) if label else None
