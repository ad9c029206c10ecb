"""The rules for texts and URLs: all spellings of a value get one form, or the value is dropped for a named reason.

**Texts** (`clean_one_text`). These steps are repeated in this order until nothing changes:

1. Entities that survived the markup ("&amp;amp;") are decoded. They need a semicolon: "AT&T" and "?a=1&copy=2" stay.
2. Mojibake ("cafÃ©") is repaired if the whole text turns back into valid UTF-8.
3. Control, bidi, zero-width, private-use and non-characters are removed. Joiners (ZWJ, ZWNJ) stay between two non-ASCII
   characters, because emoji, Persian and Indic scripts need them.
4. Every Unicode blank, tab and newline becomes a blank. Runs of blanks become one. Blanks at the ends are removed.
5. The text is put into NFC.

The reasons for which a text is then dropped:

- `empty_text`: nothing is left.
- `too_long`: over 2,000 characters, or over 8,000 as found, which bounds the work on hostile text.
- `too_short`: fewer than two letters or digits, or no letter. One letter is enough in scripts without case (猫).
- `url_like`: the whole text is an address.
- `file_name`: the whole text is a file's name or a camera's number (IMG_1234, "DSC 0001.jpg", b01.png). "Golden Gate
  Bridge.jpg" holds words and stays.
- `boilerplate`: the whole text is one of `BOILERPLATE`, with at most a number after it ("logo", "Image 3").
- `unstable_text`: entities are nested too deep.

**URLs** (`canonical_url`):

- Blanks and control characters at the ends are removed, and tabs and line ends everywhere.
- Scheme and host are in lower case. Escapes in the host are resolved. The host is in IDNA (UTS-46).
- The default port and the fragment are removed. Any number of slashes before the host becomes two.
- An empty path becomes "/", and dot segments are resolved. Backslashes before the query become slashes.
- Bytes that must be escaped are escaped ("%zz" becomes "%25zz"). All other bytes stay, above all those of the query.

The reasons for which a URL is dropped:

- `bad_scheme`: not http or https.
- `bad_url`: a bad port.
- `user_info`: name@host.
- `bad_host`: empty, odd characters, labels too long, or an IPv4 address that is not written as four decimals.
- `url_too_long`: over 2,048 bytes.

This is the URL standard (WHATWG) but for the drops, which are stricter: browsers take names and passwords, odd
characters in host names, and addresses like 0x7f.1. tests/sources/test_links.py has the cases.
- `svg_url`: the path ends in .svg or .svgz. A drawing of vectors cannot be stored as pixels of its own.

Both functions are idempotent, take linear time and give valid UTF-8. Plain Python takes some 10 us for a row. `clean`
does whole columns: `clean_kernel` finds the rows that need no work (most of them), and only the others come here.
"""

from __future__ import annotations

import html
import ipaddress
import re
import unicodedata
import urllib.parse

import can_ada
import pyarrow as pa

TEXT_REASONS = (
    "",
    "empty_text",
    "too_short",
    "too_long",
    "file_name",
    "url_like",
    "boilerplate",
    "unstable_text",
)
URL_REASONS = ("", "bad_scheme", "bad_url", "url_too_long", "user_info", "bad_host", "svg_url")

MAX_TEXT = 2_000  # characters
MAX_RAW_TEXT = 8_000  # characters as found
MAX_URL = 2_048  # bytes in canonical form
MAX_RAW_URL = 8_192  # bytes as found
LONGEST_NAME = 80  # longer texts are neither a camera's name nor boilerplate
_ROUNDS = 8  # rounds of cleaning until nothing changes; ordinary text takes two

# Whole texts that say nothing, in lower case and without punctuation at their ends.
BOILERPLATE = frozenset(
    """
    ad|ads|advertisement|advertising|alt|alt text|alternate text|arrow|article image|author image|avatar|back
    background|background image|banner|banner ad|banner image|blank|blog image|blog post image|bullet|button|click here
    click to enlarge|click to view larger image|click to zoom|close|company logo|cover|cover image|cover photo|default
    default avatar|default image|default thumbnail|description|divider|download|enlarge|enlarge image|error|false
    featured image|footer|footer logo|gallery|gallery image|graphic|gravatar|header|header image|header logo|hero
    hero image|home|icon|icons|illustration|image|image alt|image alt text|image description|image may contain
    image not available|image not found|image placeholder|image unavailable|images|img|lazy load|lazyload|learn more
    left arrow|line|loader|loading|loading image|loading icon|loading spinner|logo|logo image|logos|main image|menu
    missing image|more|mobile logo|nan|next|no alt text|no avatar|no description|no image|no image available
    no photo|no photo available|no picture|none|null|page|photo|photo gallery|photograph|photos|pic|pics|picture
    pictures|pixel|placeholder|placeholder image|play|play button|post image|post thumbnail|prev|preview|previous|print
    product|product image|profile|profile image|profile photo|profile picture|read more|right arrow|screenshot|search
    search icon|separator|share|site logo|slide|slide image|slider|slider image|spacer|spinner|sponsor|sponsor logo
    thumb|thumbnail|thumbnail image|thumbnails|title|tracking pixel|transparent|true|undefined|unknown|untitled
    user|user avatar|user image|user photo|video|video thumbnail|view|view image|view larger image|website logo|zoom
    """.replace("\n", "|")
    .replace("    ", "")
    .strip("|")
    .split("|")
)

_EXTENSION = r"\.(?:jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|ico|avif|heic|psd|eps|pdf|mp4|webm|mov|cr2|nef|dng|raw)"
_CAMERA = re.compile(
    r"_?(?:img|image|imgp|mg|dsc|dscn|dscf|dsci|pict|pic|picture|photo|scan|screenshot|screen shot|capture|wp|vid|mvi"
    r"|gopr|dji|cimg|kimg|pxl|fb img|whatsapp image|p|sam|untitled)[ _-]?[ _-]?(?:[0-9]{3,}|[0-9]+[ ._-][0-9])"
    r"[0-9 ._:()@-]*(?:copy|edited|edit|at|wa|am|pm|e|x|hdr|pano|bw|web|small|large|scaled)?[0-9 ._:()x-]*"
    r"(?:copy|edited|am|pm|scaled)?"
)
_HEX_NAME = re.compile(r"(?=[a-f-]*[0-9])[0-9a-f]{8}[0-9a-f-]{4,}[0-9a-f]")
_FILE_EXTENSION = re.compile(_EXTENSION + r"\Z", re.IGNORECASE | re.ASCII)
_TOKEN_NAME = re.compile(r"(?=[^0-9]*[0-9])(?=[^_]*_)[A-Za-z0-9_.+-]+")
_WORD = re.compile(r"[^\W\d_]{3}")
_ADDRESS = re.compile(
    r"(?:https?:|ftp:|data:|javascript:|mailto:|www\.)\S*"
    r"|(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|info|biz|co\.[a-z]{2}|com\.[a-z]{2}|html?|php|aspx?|jsp)(?:[/?#:]\S*)?",
    re.IGNORECASE | re.ASCII,
)
_BOILERPLATE_EDGES = " .,:;!?-_*#()[]{}<>|/\\'\"…"
_TRAILING_NUMBER = re.compile(r"[ _#-]*[0-9]{1,4}\Z")

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_AMPERSANDS = re.compile(r"&(?:(?:amp|AMP|#0{0,5}38|#[xX]0{0,4}26);)+")  # "&amp;amp;amp;" in one round
DROPPED = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ufdd0-\ufdef\ue000-\uf8ff\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
)
_STRAY_JOINER = re.compile("(?<![^\x00-\x7f\\s])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f\\s])")
# The byte of each character in Windows-1252, or in Latin-1 where Windows-1252 has none. Mojibake shows the lead byte
# and the continuation byte of a UTF-8 sequence as two such characters.
BYTE_OF = {
    **{chr(byte): byte for byte in range(256)},
    **{bytes([byte]).decode("cp1252", "ignore"): byte for byte in range(0x80, 0xA0)},
}
CONTINUATIONS = "".join(char for char, byte in BYTE_OF.items() if char and 0x80 <= byte < 0xC0)
_MOJIBAKE = re.compile(f"[\u00c2-\u00f4][{re.escape(CONTINUATIONS)}]")

_URL = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_URL_ENDS = bytes(range(33))
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_PATH_ESCAPED = re.compile(rb"[\x00-\x20\x7f-\xff\"<>^`{}]")
_QUERY_ESCAPED = re.compile(rb"[\x00-\x20\x7f-\xff\"<>']")
_DOT = re.compile(rb"(?:\.|%2e){1,2}", re.IGNORECASE)
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER_LABEL = re.compile(r"0x[0-9a-f]*|[0-9]+")
_DEFAULT_PORT = {"http": 80, "https": 443}


def tidy(texts: pa.Array) -> pa.Array:
    """Applies steps 4 and 5 alone, to many texts at once. The texts have no line feed.

    NFC never joins a line feed with its neighbour. So the texts are composed as one, with line feeds between them.
    """
    folded = [" ".join(text.split()) for text in texts.to_pylist()]
    return pa.array(unicodedata.normalize("NFC", "\n".join(folded)).split("\n"), texts.type)


def clean_one_text(found: bytes) -> tuple[str, int]:
    """Cleans one text. Returns its clean form and its code."""
    text = found.decode("utf-8", "replace")
    if len(text) > MAX_RAW_TEXT:
        return text, TEXT_REASONS.index("too_long")
    for _ in range(_ROUNDS):
        before, text = text, _clean_round(text)
        if text == before:
            return text, TEXT_REASONS.index(_why_drop_text(text))
    return text, TEXT_REASONS.index("unstable_text")


def canonical_url(found: bytes) -> tuple[str, int]:
    """Makes one URL canonical. Returns its canonical form and its code."""
    try:
        return _canonical_url(found.strip(_URL_ENDS).translate(None, b"\t\n\r")), 0
    except _BadUrl as problem:
        return found.decode("utf-8", "replace"), URL_REASONS.index(problem.args[0])


class _BadUrl(ValueError):
    """Carries one of URL_REASONS."""


def _clean_round(text: str) -> str:
    """One round of steps 1-5."""
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), _AMPERSANDS.sub("&", text))
    if text.isascii():
        return " ".join(DROPPED.sub("", text).split())
    if _MOJIBAKE.search(text):
        text = _repair(text)
    text = _STRAY_JOINER.sub("", DROPPED.sub("", text))
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _repair(text: str) -> str:
    """Decodes UTF-8 that was read as Windows-1252 or Latin-1. Returns any other text unchanged."""
    try:
        return bytes([BYTE_OF[char] for char in text]).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return text


def _why_drop_text(text: str) -> str:
    """One of TEXT_REASONS for a text in its clean form."""
    if not text:
        return "empty_text"
    if len(text) > MAX_TEXT:
        return "too_long"
    if not _says_something(text):
        return "too_short"
    if " " not in text and _ADDRESS.fullmatch(text):
        return "url_like"
    if _is_file_name(text):
        return "file_name"
    words = text.lower().strip(_BOILERPLATE_EDGES) if len(text) <= LONGEST_NAME else ""
    if words in BOILERPLATE or _TRAILING_NUMBER.sub("", words) in BOILERPLATE:
        return "boilerplate"
    return ""


def _says_something(text: str) -> bool:
    """True for two letters or digits with a letter among them, or for one letter of a script without case."""
    letters = others = 0
    for char in text:
        if char.isalpha():
            letters += 1 if char.lower() != char.upper() else 2
        elif char.isdigit():
            others += 1
        if letters and letters + others > 1:
            return True
    return False


def _is_file_name(text: str) -> bool:
    """True if the whole text is the name of a file, or a camera's name for a picture."""
    stem = _FILE_EXTENSION.sub("", text)
    if len(stem) < len(text) and (" " not in stem or not _WORD.search(stem)):
        return True
    lower = stem.lower() if len(stem) <= LONGEST_NAME else ""
    if _CAMERA.fullmatch(lower) or _CAMERA.fullmatch(lower.replace("_", " ")):
        return True
    return " " not in stem and bool(_HEX_NAME.fullmatch(lower) or _TOKEN_NAME.fullmatch(stem))


def _canonical_url(url: bytes) -> str:
    """The canonical form.

    Raises:
        _BadUrl: the URL is dropped.
    """
    if len(url) > MAX_RAW_URL:
        raise _BadUrl("url_too_long")
    match = _URL.fullmatch(url)
    if not match or match[1].lower() not in (b"http", b"https"):
        raise _BadUrl("bad_scheme")
    scheme, rest = match[1].lower().decode(), match[2].partition(b"#")[0]
    before_query, mark, query = rest.partition(b"?")
    before_query = before_query.replace(b"\\", b"/")
    authority, _, path = before_query.lstrip(b"/").partition(b"/")  # "http:////host/" or "http:host/", as browsers do
    if path.lower().endswith((b".svg", b".svgz")):
        raise _BadUrl("svg_url")
    canonical = f"{scheme}://{_authority(authority, scheme)}/{_path(path)}{_query(mark + query)}"
    if len(canonical) > MAX_URL:
        raise _BadUrl("url_too_long")
    return canonical


def _authority(authority: bytes, scheme: str) -> str:
    """The host, and the port if it is not the default of the scheme."""
    if b"@" in authority:
        raise _BadUrl("user_info")
    split = re.fullmatch(rb"(\[[^\]]*\]|[^:]*)(?::([0-9]*))?", authority)
    if not split:
        raise _BadUrl("bad_url")
    port = int(split[2].lstrip(b"0")[:6] or b"0") if split[2] else _DEFAULT_PORT[scheme]
    if not 0 < port < 65536:
        raise _BadUrl("bad_url")
    host = _host(split[1])
    return host if port == _DEFAULT_PORT[scheme] else f"{host}:{port}"


def _host(raw: bytes) -> str:
    """A host name in lower-case ASCII, an IPv4 address of four decimals or a bracketed IPv6 address."""
    try:
        if raw.startswith(b"["):
            return f"[{ipaddress.IPv6Address(raw[1:-1].decode('ascii')).compressed}]"
        return ascii_host(urllib.parse.unquote_to_bytes(raw).decode("utf-8"))
    except (ValueError, UnicodeError) as problem:
        raise _BadUrl("bad_host") from problem


def ascii_host(host: str) -> str:
    """A host name in lower-case ASCII (UTS-46, not transitional, as in browsers), or an IPv4 address of four decimals.

    Raises:
        ValueError: it is neither.
    """
    host = host.lower()
    if not host.isascii() and len(host) <= 253:
        host = can_ada.idna_encode(host).decode("ascii")  # empty if it cannot be encoded
    host = host.removesuffix(".")
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise ValueError("not a host name")
    return str(ipaddress.IPv4Address(host)) if _NUMBER_LABEL.fullmatch(host.rpartition(".")[2]) else host


def _path(path: bytes) -> str:
    """The path after its first slash: escaped, with dot segments resolved."""
    path = _PATH_ESCAPED.sub(_escape, _BAD_ESCAPE.sub(b"%25", path))
    if b"." not in path and b"%2" not in path:
        return path.decode("ascii")
    kept: list[bytes] = []
    segments = path.split(b"/")
    for number, segment in enumerate(segments):
        dots = len(segment.lower().replace(b"%2e", b".")) if _DOT.fullmatch(segment) else 0
        if dots == 2 and kept:
            kept.pop()
        if dots == 0:
            kept.append(segment)
        elif number == len(segments) - 1:
            kept.append(b"")
    return b"/".join(kept).decode("ascii")


def _query(query: bytes) -> str:
    """The query with its question mark, escaped where it must be."""
    return _QUERY_ESCAPED.sub(_escape, _BAD_ESCAPE.sub(b"%25", query)).decode("ascii")


def _escape(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]
