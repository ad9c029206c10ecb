"""Which encoding a page is read in: tables by the steps of the Encoding and HTML standards (WHATWG)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.charsets import PRESCANNED, codec, prescan, to_utf8

RUSSIAN = "Привет"
WINDOWS = RUSSIAN.encode("cp1251")


def read(page: bytes, charset: str | None = None) -> str:
    return to_utf8(page, charset).decode()


# (rule, first bytes of the page, codec)
PRESCAN = [
    ("a charset", b"<meta charset=windows-1251>", "cp1251"),
    ("a charset", b"<META CHARSET='windows-1251'>", "cp1251"),
    ("a charset", b'<meta name=x charset = " windows-1251\n">', "cp1251"),
    ("a charset", b"<meta/charset=windows-1251/>", None),  # the value is "windows-1251/"
    ("a charset", b"<meta/charset=windows-1251 />", "cp1251"),
    ("the first attribute of a name", b"<meta charset=gbk charset=windows-1251>", "gb18030"),
    ("a label that is unknown", b"<meta charset=no-such><meta charset=koi8-r>", "koi8-r"),
    ("http-equiv", b"<meta http-equiv=Content-Type content='text/html; charset=koi8-r'>", "koi8-r"),
    ("http-equiv", b"<meta content='text/html;charset=\"koi8-r\"' http-equiv=content-type>", "koi8-r"),
    ("http-equiv", b"<meta http-equiv=content-type content='charset = koi8-r; x'>", "koi8-r"),
    ("http-equiv", b"<meta http-equiv=content-type content='charset koi8-r charset=koi8-u'>", "koi8-u"),
    ("http-equiv", b"<meta http-equiv=content-type content='charset=\"koi8-r'>", None),
    ("content without http-equiv", b"<meta content='text/html; charset=koi8-r'>", None),
    ("content of another meta", b'<meta name="description" content="charset=gbk"><meta charset=utf-8>', "utf-8"),
    ("content of another http-equiv", b"<meta http-equiv=refresh content='charset=gbk'>", None),
    ("a charset in another tag", b"<a charset=gbk><script charset=gbk></script charset=gbk>", None),
    ("a meta in a value", b"<a title='<meta charset=gbk>'><meta charset=koi8-r>", "koi8-r"),
    ("a meta in a comment", b"<!-- <meta charset=gbk> --><meta charset=koi8-r>", "koi8-r"),
    ("a comment that ends at once", b"<!--><meta charset=gbk>-->", "gb18030"),
    ("a comment without an end", b"<!-- <meta charset=gbk>", None),
    ("another declaration", b"<!doctype x '<meta charset=gbk>'><meta charset=koi8-r>", "koi8-r"),
    ("no name of a tag", b"<metas charset=gbk><meta-x charset=gbk><1 <meta charset=koi8-r>", "koi8-r"),
    ("UTF-16 cannot be named in ASCII", b"<meta charset=utf-16>", "utf-8"),
    ("UTF-16 cannot be named in ASCII", b"<?xml version='1.0' encoding='utf-16'?>", "utf-8"),
    ("x-user-defined", b"<meta charset=x-user-defined>", "cp1252"),
    ("an XML declaration", b'<?xml version="1.0" encoding="windows-1251"?><!DOCTYPE html>', "cp1251"),
    ("an XML declaration", b"<?xml encoding='windows-1251'?>", "cp1251"),
    ("an XML declaration", b"<?xml version='1.0'?> encoding='windows-1251'", None),
    ("an XML declaration is at the start", b" <?xml encoding='windows-1251'?>", None),
    ("a meta comes before an XML declaration", b"<?xml encoding='gbk'?><meta charset=koi8-r>", "koi8-r"),
    ("an XML declaration in UTF-16", "<?xml".encode("utf-16-le"), "utf-16-le"),
    ("an XML declaration in UTF-16", "<?xml".encode("utf-16-be"), "utf-16-be"),
    ("nothing", b"<p>charset=gbk", None),
]


@pytest.mark.parametrize(("rule", "start", "name"), PRESCAN)
def test_prescan(rule: str, start: bytes, name: str | None) -> None:
    assert prescan(start) == name, rule


@pytest.mark.parametrize(
    ("rule", "page", "charset", "text"),
    [
        ("a byte order mark comes first", b"\xef\xbb\xbf<meta charset=koi8-r>" + "ü".encode(), "latin1", "ü"),
        ("a byte order mark comes first", "\ufeff漢".encode("utf-16-le"), "gbk", "漢"),
        ("a byte order mark comes first", "\ufeff漢".encode("utf-16-be"), "utf-8", "漢"),
        ("HTTP comes before a meta", b"<meta charset=koi8-r>" + WINDOWS, "Windows-1251", RUSSIAN),
        ("HTTP with an unknown label", b"<meta charset=windows-1251>" + WINDOWS, "no-such-charset", RUSSIAN),
        ("HTTP with a label of Python", b"<b>+AGE-", "utf-7", "+AGE-"),
        ("HTTP with a label of Python", b"<b>\\u0041", "unicode_escape", "\\u0041"),
        ("a meta beyond 1,024 bytes", b" " * 2000 + b"<meta charset=windows-1251>" + WINDOWS, None, RUSSIAN),
        ("a meta that comes late", b"<p>" * 9000 + b"<meta charset=windows-1251>" + WINDOWS, None, RUSSIAN),
        ("valid UTF-8 with a late meta", b"<p>" * 9000 + b"<meta charset=gbk>" + RUSSIAN.encode(), None, RUSSIAN),
        ("valid UTF-8 without a label", "ü漢".encode(), None, "ü漢"),
        ("no label: Windows-1252", b"\x93caf\xe9\x94", None, "“café”"),
        ("ISO-8859-1 is Windows-1252", b"\x93caf\xe9\x94", "ISO-8859-1", "“café”"),
        ("free bytes of Windows-1252 are controls", b"a\x81b", "latin1", "a\x81b"),
        ("free bytes of other code pages", b"\xaa\x81", "windows-1253", "\ufffd\x81"),
        ("UTF-8 with errors", b"caf\xe9", "utf8", "caf\ufffd"),
        ("GB2312 is GB18030", "漢字".encode("gb18030"), "GB2312", "漢字"),
        ("Shift_JIS is Windows-31J", "①日本".encode("cp932"), "shift_jis", "①日本"),
        ("EUC-JP has the rows of NEC", b"\xad\xa1" + "日本".encode("euc-jp"), "euc-jp", "①日本"),
        ("EUC-KR is Windows-949", "똠방".encode("cp949"), "euc-kr", "똠방"),
        ("TIS-620 is Windows-874", "ไทย".encode("cp874"), "tis-620", "ไทย"),
        ("Latin-5 is Windows-1254", b"\x93\xfe\x94", "iso-8859-9", "“ş”"),
        ("encodings that are not read", b"<img src=a alt=b>", "iso-2022-kr", ""),
    ],
)
def test_pages(rule: str, page: bytes, charset: str | None, text: str) -> None:
    found = read(page, charset)
    assert found.removeprefix(" " * 2000).rpartition(">")[2] == text, rule


def test_labels_have_blanks_and_capitals() -> None:
    assert codec(" UTF-8\n") == codec("Unicode-1-1-UTF-8") == "utf-8"
    assert codec("\xa0utf-8") is codec("utf_8") is codec("") is codec(None) is None


@pytest.mark.parametrize(
    "name", "rot13 hex zip idna punycode utf-7 utf-32 undefined mbcs charmap unicode_escape".split()
)
def test_a_codec_of_python_is_no_label(name: str) -> None:
    assert codec(name) is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"<meta ", b"charset=", b"'", b'"', b"koi8-r", b">", b"<!--", b"-->", b"<?xml encoding="])
    )
    | st.binary(max_size=40).map(lambda data: [data]),
    st.sampled_from([None, "utf-16", "latin1", "big5", "euc-jp", "iso-2022-jp", "windows-1258", "x" * 100]),
)
def test_any_bytes_become_utf8(parts: list[bytes], charset: str | None) -> None:
    to_utf8(b"".join(parts), charset).decode()


def test_the_prescan_is_bounded() -> None:
    for unit in (b"<!--", b"<a '", b"<meta charset=", b"<?xml encoding", b"<", b"<a b=\"'"):
        assert prescan((unit * PRESCANNED)[:PRESCANNED]) is None
