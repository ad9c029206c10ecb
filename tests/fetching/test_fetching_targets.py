"""Where a redirect leads: resolved as browsers do, with the host as `canonical_url` gives it."""

import pytest

from pipeline.fetching.errors import Failure
from pipeline.fetching.targets import follow, parse

START = parse("http://h.example/a/b?c")


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("d.jpg", "http://h.example/a/d.jpg"),
        ("?d", "http://h.example/a/b?d"),
        ("../../d", "http://h.example/d"),
        (r"\d\e.jpg", "http://h.example/d/e.jpg"),
        (r"http:\\i.example\d", "http://i.example/d"),
        ("///i.example/d", "http://i.example/d"),
        ("HTTPS://I.Example:443/d", "https://i.example/d"),
        ("http:d", "http://h.example/a/d"),
        ("/d e\t.jpg ", "http://h.example/d%20e.jpg"),
        ("/ü".encode().decode("latin-1"), "http://h.example/%C3%BC"),
        ("//faß.example/".encode().decode("latin-1"), "http://xn--fa-hia.example/"),
        ("//b\xfccher.example/", "http://xn--bcher-kva.example/"),
        ("//Ｇｏ.example/".encode().decode("latin-1"), "http://go.example/"),
    ],
)
def test_redirects(location: str, url: str) -> None:
    assert follow(START, location).url == url


@pytest.mark.parametrize("location", ["http://[", "ftp://h.example/", "http://a b/", "javascript:0", "http://n:w@h/"])
def test_redirects_to_nowhere(location: str) -> None:
    with pytest.raises(Failure) as failure:
        follow(START, location)
    assert failure.value.status == "bad_redirect"


def test_a_host_is_not_transitional() -> None:
    assert parse("http://faß.example/").host == "xn--fa-hia.example"
