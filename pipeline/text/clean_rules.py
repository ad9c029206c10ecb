"""The rules for texts and URLs: all spellings of a value get one form, or the value is dropped for a named reason.

**Texts** (`clean_one_text`). These steps are repeated in this order until nothing changes:

1. Entities that survived the markup ("&amp;amp;") are decoded. They need a semicolon: "AT&T" and "?a=1&copy=2" stay.
2. Mojibake ("cafÃ©") is repaired if the whole text turns back into valid UTF-8.
3. Control, bidi, zero-width, private-use and non-characters are removed. Joiners (ZWJ, ZWNJ) stay between two non-ASCII
   characters, because emoji, Persian and Indic scripts need them. The tags of a flag (Scotland's) stay. A zero-width
   space becomes a blank, but in the scripts that write no blanks. A filler that shows as a blank becomes one.
4. Tags of markup that only style a text (`<b>`) are removed.
5. Every Unicode blank, tab and newline becomes a blank. Runs of blanks become one. Blanks at the ends are removed.
6. The text is put into NFC.
7. The name of a file becomes words, if it has two: "golden-retriever_300x200.jpg" becomes "golden retriever", and
   "CheckboxNotChecked.png" three.

The reasons for which a text is then dropped:

- `empty_text`: nothing is left.
- `too_long`: over 2,000 characters, or over 8,000 as found, which bounds the work on hostile text.
- `too_short`: fewer than two letters or digits, or no letter. One letter is enough in scripts without case (猫).
- `replaced_characters`: it holds U+FFFD, which stands for bytes that some program could not read.
- `url_like`: the whole text is an address. A name such as MP3.com or Amazon.com, with capitals, is none.
- `file_name`: the whole text is a file's name without two words, or a camera's number (IMG_1234, "DSC 0001.jpg",
  b01.png). Names of products (iPhone_15, F-22_Raptor) are no file names.
- `code`: formulas, templates and markup (`{\\displaystyle`, `{{ }}`, `[object Object]`, `<img src=`).
- `boilerplate`, `machine_caption`, `sharing`, `rating`, `lorem_ipsum`: phrases, see `phrases.py`.
- `personal`: it holds an e-mail address or a phone number (`--keep-personal` keeps it).
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

import functools
import html
import ipaddress
import re
import unicodedata
import urllib.parse

import can_ada
import pyarrow as pa

from pipeline.text import phrases

TEXT_REASONS = (
    "",
    "empty_text",
    "too_short",
    "too_long",
    "file_name",
    "url_like",
    "boilerplate",
    "unstable_text",
    "replaced_characters",
    "code",
    "machine_caption",
    "sharing",
    "rating",
    "lorem_ipsum",
    "personal",
)
URL_REASONS = ("", "bad_scheme", "bad_url", "url_too_long", "user_info", "bad_host", "svg_url")

MAX_TEXT = 2_000  # characters
MAX_RAW_TEXT = 8_000  # characters as found
MAX_URL = 2_048  # bytes in canonical form
MAX_RAW_URL = 8_192  # bytes as found
LONGEST_NAME = 80  # longer texts are no camera's name
_LONGEST_REMEMBERED = 200  # bytes: 8,192 texts take 6 MiB at most
_ROUNDS = 8  # rounds of cleaning until nothing changes; ordinary text takes two

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
_STEM_WORD = re.compile(r"[^\W\d_]{2,}")
_UNCASED = re.compile("[\u0590-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")  # a letter is a word
_VOWEL = re.compile(r"[aeiouy]|[^\x00-\x7f]", re.IGNORECASE)
_LOWER_NAME = re.compile(r"[^\W_A-Z]+(?:[-_]+[^\W_A-Z]+)+")  # golden-retriever
_PIECE = re.compile(r"[-_+.]+")
_HUMP, _BEFORE_HUMP = re.compile("[A-Z][a-z]+"), re.compile("(?<=[a-z0-9])(?=[A-Z])")
_NO_WORD = re.compile(  # a piece of a file's name that is dropped: a size, a hash, a long number
    r"[0-9]{1,5}x[0-9]{1,5}(?:@[0-9]x)?|[0-9]{2,5}px|@[0-9]x|scaled|(?=[a-f]*[0-9])[0-9a-f]{8,}|[0-9]{5,}",
    re.IGNORECASE,
)
_PRODUCT = re.compile(r"[A-Z][A-Za-z]*|[a-z][A-Z][A-Za-z]+|[A-Z]?[1-9][0-9]{0,3}[A-Za-z]{0,2}")
_OF_FILES = frozenset(  # capital words that number a file rather than name a product
    "step figure fig slide page part chapter image img header footer logo banner icon table chart screen screenshot"
    " photo picture pic background bg button thumb thumbnail cover view diagram example sample test untitled scan file"
    " version photo1 demo draft final copy".split()
)
_DOMAIN = r"(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|info|biz|co\.[a-z]{2}|com\.[a-z]{2}|html?|php|aspx?|jsp)"
_ADDRESS = re.compile(
    rf"(?i:(?:https?:|ftp:|data:|javascript:|mailto:|www\.)\S*|{_DOMAIN}[/?#:]\S*)|{_DOMAIN}", re.ASCII
)
_STYLE = re.compile(
    r"</?(?:a|abbr|b|bdi|big|br|center|cite|em|font|h[1-6]|i|mark|p|q|s|small|span|strong|sub|sup|u|wbr)"
    r"(?: ?/?| [^<>]{0,300})>",
    re.IGNORECASE,
)
_LATEX = (  # commands of formulas
    "alpha approx ast bar begin beta cdot cdots delta displaystyle ell epsilon eta exists forall frac"
    " gamma geq hat infty int lambda ldots left leq lim mathbb mathbf mathcal mathrm mathsf max mid min mu"
    " nabla neq omega operatorname overline partial phi pi prod psi quad rho right sigma sim sqrt sum tau"
    " text theta tilde times underline vec"
)
_CODE = re.compile(
    r"\{\\|\{\{|\}\}|\{%|%\}|\[object |\$\{|<%|%>|<\?(?:php|=|xml)|</[a-z]"
    r"|<(?:a|div|iframe|img|input|li|p|script|span|style|svg|table|td|ul)(?:[ />]|\Z)"
    rf"|\\(?:{_LATEX.replace(' ', '|')})(?![a-z])",
    re.IGNORECASE,
)
_MAIL = re.compile(r"[A-Za-z0-9._%+-]@[A-Za-z0-9](?:[A-Za-z0-9-]*\.)+[A-Za-z]{2}")
_PHONE = re.compile(
    r"(?<![\w+])\+[1-9][0-9]{0,2}(?:[ .()/-]{0,3}[0-9]){8,12}(?![\w-])"  # +49 30 123456-78
    r"|(?<![\w-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2} ?[.-] ?|[2-9][0-9]{2} )[2-9][0-9]{2} ?[ .-] ?[0-9]{4}"
    r"(?![\w-])"  # (850) 244-5117
    r"|\b(?:tel|phone|call|fax|mobile|mob|whatsapp|telefon|telefono|teléfono|téléphone|тел|电话|電話)\b[ .:]{0,3}"
    r"[0-9](?:[ .()/-]{0,3}[0-9]){9,12}(?![\w-])",
    re.IGNORECASE,
)

_NINE_DIGITS = re.compile(r"[0-9](?:[ .()/-]{0,3}[0-9]){8}")  # in every match of _PHONE, and much faster to look for

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_AMPERSANDS = re.compile(r"&(?:(?:amp|AMP|#0{0,5}38|#[xX]0{0,4}26);)+")  # "&amp;amp;amp;" in one round
DROPPED = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\u2800\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\ufffe\uffff\ufdd0-\ufdef\ue000-\uf8ff\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
)
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,8}\U000e007f")
_KEPT_OR_DROPPED = re.compile(f"({_FLAG.pattern})|{DROPPED.pattern}")
# Thai, Lao, Tibetan, Myanmar and Khmer mark with it where a line may break.
_BREAK_IN_WORDS = re.compile("(?<=[\u0e00-\u109f\u1780-\u17ff])\u200b|\u200b(?=[\u0e00-\u109f\u1780-\u17ff])")
_SHOWN_AS_BLANK = re.compile("[\u200b\u2800\u3164\uffa0]")
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
    """Applies steps 5 and 6 alone, to many texts at once. The texts have no line feed.

    NFC never joins a line feed with its neighbour. So the texts are composed as one, with line feeds between them.
    """
    folded = [" ".join(text.split()) for text in texts.to_pylist()]
    return pa.array(unicodedata.normalize("NFC", "\n".join(folded)).split("\n"), texts.type)


def clean_one_text(found: bytes) -> tuple[str, int]:
    """Cleans one text. Returns its clean form and its code. Short texts are remembered: on the web many come again."""
    return _remembered(found) if len(found) <= _LONGEST_REMEMBERED else _clean_one_text(found)


@functools.lru_cache(maxsize=8192)
def _remembered(found: bytes) -> tuple[str, int]:
    return _clean_one_text(found)


def _clean_one_text(found: bytes) -> tuple[str, int]:
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
    """One round of all steps."""
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), _AMPERSANDS.sub("&", text))
    if "<" in text:
        text = _STYLE.sub(" ", text) if "<br" in text or "<p" in text else _STYLE.sub("", text)
    if text.isascii():
        return _words_of_name(" ".join(DROPPED.sub("", text).split()))
    if _MOJIBAKE.search(text):
        text = _repair(text)
    text = _SHOWN_AS_BLANK.sub(" ", _BREAK_IN_WORDS.sub("", text))
    text = _STRAY_JOINER.sub("", _KEPT_OR_DROPPED.sub(lambda match: match[1] or "", text))
    return _words_of_name(unicodedata.normalize("NFC", " ".join(text.split())))


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
    if "\ufffd" in text:
        return "replaced_characters"
    if len(text) > MAX_TEXT:
        return "too_long"
    if not _says_something(text):
        return "too_short"
    if " " not in text and _ADDRESS.fullmatch(text):
        return "url_like"
    if _is_file_name(text):
        return "file_name"
    if _CODE.search(text):
        return "code"
    return phrases.reason_of(text) or ("personal" if is_personal(text) else "")


def is_personal(text: str) -> bool:
    """True for a text with an e-mail address or a phone number of at least ten digits."""
    return ("@" in text and bool(_MAIL.search(text))) or bool(_NINE_DIGITS.search(text) and _PHONE.search(text))


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
    stem = _FILE_EXTENSION.sub("", text) if "." in text else text
    if len(stem) < len(text) or _is_camera_name(stem):
        return True
    return " " not in stem and bool(_TOKEN_NAME.fullmatch(stem)) and not _is_product(stem)


def _is_camera_name(stem: str) -> bool:
    """True for the name that a camera or a program gives to a picture."""
    lower = stem.lower() if len(stem) <= LONGEST_NAME else ""
    if _CAMERA.fullmatch(lower) or _CAMERA.fullmatch(lower.replace("_", " ")):
        return True
    return " " not in stem and bool(_HEX_NAME.fullmatch(lower))


def _words_of_name(text: str) -> str:
    """The words of a file's name. Any other text, and a name without two words, stays as it is."""
    stem = _FILE_EXTENSION.sub("", _FILE_EXTENSION.sub("", text)) if "." in text else text  # dog.jpg.webp
    has_ending, in_one = len(stem) < len(text), " " not in stem
    if not (has_ending or (in_one and ("_" in stem or _LOWER_NAME.fullmatch(stem)))):
        return text
    if _is_camera_name(stem) or (in_one and _ADDRESS.fullmatch(text)) or (not has_ending and _is_product(stem)):
        return text
    if "@" in stem and _MAIL.search(stem):
        return text  # it is personal, and must stay so
    if in_one:
        stem = stem.rpartition("/")[2] if has_ending else stem
        pieces = [piece for piece in _PIECE.split(stem) if piece and not _NO_WORD.fullmatch(piece)]
    else:
        pieces = stem.replace("_", " ").split()
    if has_ending:
        pieces = [word for piece in pieces for word in _humps(piece)]
    found = (word for piece in pieces for word in _STEM_WORD.findall(piece)[:1])
    words = [word for word in found if word.isupper() or _VOWEL.search(word)]
    is_enough = len(words) > 1 and max(map(len, words)) > 2
    return " ".join(pieces) if is_enough or len(_UNCASED.findall(stem)) > 1 else text


def _humps(piece: str) -> list[str]:
    """The words of "CheckboxNotChecked". A name with two capitals (YouTube, LinkedIn) is one word."""
    return _BEFORE_HUMP.split(piece) if len(_HUMP.findall(piece)) > 2 else [piece]


def _is_product(stem: str) -> bool:
    """True for iPhone_15 and F-22_Raptor: capital words and one number or more, with "-" or "_" between them."""
    pieces = re.split("[-_]", stem)
    if not 2 <= len(pieces) <= 4 or any(piece.lower() in _OF_FILES for piece in pieces):
        return False
    return all(map(_PRODUCT.fullmatch, pieces)) and any(piece[-1:].isdigit() or piece[:1].isdigit() for piece in pieces)


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
        if raw.startswith(b"[") and b"%" not in raw:  # Python would take "%" for a zone
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
