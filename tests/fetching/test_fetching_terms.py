"""tdmrep.json and RSL licences: conformance cases, with the rule that decides each; and what the client does."""

import json

import pytest

from pipeline.fetching.client import Client
from pipeline.fetching.errors import Failure
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.terms import LARGEST, MOST_RULES, NoLicence, read_rsl, read_tdmrep
from pipeline.fetching.verdict import Verdict
from pipeline.text.rights import PROTOCOLS
from tests.webserver import WebServer

YES, NO, UNSAID = True, False, None


def entry(location: object, reserved: object, **more: object) -> dict[str, object]:
    return {"location": location, "tdm-reservation": reserved, **more}


# (rule of the TDM Reservation Protocol, "TDM File on the Origin Server", entries, path, statement)
TDMREP = [
    ("1 reserves", [entry("/", 1)], "/a", NO),
    ("0 does not reserve", [entry("/", 0)], "/a", YES),
    ("no entry", [], "/a", UNSAID),
    ("no entry for the path", [entry("/b/", 1)], "/a", UNSAID),
    ("a folder", [entry("/directory-a/", 1)], "/directory-a/x.jpg", NO),
    ("a folder", [entry("/directory-a/", 1)], "/directory-ab/x.jpg", UNSAID),
    ("two folders", [entry("/a/", 1), entry("/b/html/", 0)], "/b/html/x", YES),
    ("two folders", [entry("/a/", 1), entry("/b/html/", 0)], "/a/x", NO),
    ("* is any text", [entry("/images/*.jpg", 1)], "/images/a/b.jpg", NO),
    ("* is any text", [entry("*.jpg", 1)], "/images/a/b.jpg", NO),
    ("$ is the end", [entry("/*.jpg$", 1)], "/a.jpg", NO),
    ("$ is the end", [entry("/*.jpg$", 1)], "/a.jpg?x", UNSAID),
    ("a policy beside a reservation", [entry("/", 1, **{"tdm-policy": "https://x.example/p.json"})], "/a", NO),
    ("the longest match", [entry("/a/", 0), entry("/a/b/", 1)], "/a/b/c", NO),
    ("ours: the first or the longest, the stricter", [entry("/", 1), entry("/a/", 0)], "/a/b", NO),
    ("ours: the first or the longest, the stricter", [entry("/a/", 0), entry("/", 1)], "/a/b", YES),
    ("ours: the first or the longest, the stricter", [entry("/a/", 0), entry("/", 1)], "/c", NO),
    ("equal locations: the stricter", [entry("/a", 0), entry("/a", 1)], "/a", NO),
    ("ours: a number as a text", [entry("/", "1")], "/a", NO),
    ("another value says nothing", [entry("/", 2)], "/a", UNSAID),
    ("another value says nothing", [entry("/", True)], "/a", UNSAID),
    ("another value says nothing", [entry("/", None)], "/a", UNSAID),
    ("another value says nothing", [entry("/", 1.0)], "/a", UNSAID),
    ("no location", [{"tdm-reservation": 1}], "/a", UNSAID),
    ("a location that is no text", [entry(5, 1)], "/a", UNSAID),
    ("an empty location", [entry("", 1)], "/a", UNSAID),
    ("a damaged entry beside a sound one", [5, None, [], entry("/", 1)], "/a", NO),
    ("ours: a location without a slash", [entry("images/", 1)], "/images/a", NO),
    ("ours: one object in place of a list", entry("/", 1), "/a", NO),
    ("escapes", [entry("/\u00fc/", 1)], "/%C3%BC/a", NO),
    ("a query", [entry("/a?b", 1)], "/a?b=c", NO),
    ("paths in their case", [entry("/A/", 1)], "/a/b", UNSAID),
]


@pytest.mark.parametrize(("rule", "entries", "path", "said"), TDMREP)
def test_tdmrep(rule: str, entries: object, path: str, said: bool | None) -> None:
    found = read_tdmrep(json.dumps(entries).encode()).rule(f"https://x.example{path}")
    assert (found and found.said) is said, rule


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"5", b'"a"', b"null", b"<html>"])
def test_a_damaged_tdmrep_says_nothing(body: bytes) -> None:
    assert read_tdmrep(body).rule("https://x.example/") is None


def test_a_tdmrep_with_too_many_rules_refuses_all() -> None:
    many = json.dumps([entry("/a", 0)] * (MOST_RULES + 1), separators=(",", ":")).encode()
    assert len(many) < LARGEST
    found = read_tdmrep(many).rule("https://x.example/b")
    assert found is not None and found.said is False


def licence(*parts: str, url: str = "/", more: str = "") -> str:
    return f'<content url="{url}"{more}><license>{"".join(parts)}</license></content>'


def permits(words: str, type_: str = "usage") -> str:
    return f'<permits type="{type_}">{words}</permits>'


def prohibits(words: str, type_: str = "usage") -> str:
    return f'<prohibits type="{type_}">{words}</prohibits>'


# (rule of RSL 1.0, contents, path, statement)
RSL = [
    ("prohibits: ai-train", licence(prohibits("ai-train")), "/a", NO),
    ("prohibits: ai-all", licence(prohibits("ai-all")), "/a", NO),
    ("prohibits: all", licence(prohibits("all")), "/a", NO),
    ("prohibits: AIPREF's label", licence(prohibits("train-ai")), "/a", NO),
    ("prohibits: several", licence(prohibits("ai-input ai-train")), "/a", NO),
    ("prohibits: commas", licence(prohibits("ai-input,ai-train")), "/a", NO),
    ("prohibits: any case", licence(prohibits(" AI-Train ")), "/a", NO),
    ("prohibits: other uses", licence(prohibits("ai-input")), "/a", UNSAID),
    ("prohibits: other uses", licence(prohibits("search")), "/a", UNSAID),
    ("prohibits: usage is the type that is meant", licence("<prohibits>ai-train</prohibits>"), "/a", NO),
    ("permits: ai-train", licence(permits("ai-train")), "/a", YES),
    ("permits: ai-all", licence(permits("ai-all")), "/a", YES),
    ("permits: all", licence(permits("all")), "/a", YES),
    ("permits: others are not permitted", licence(permits("search")), "/a", NO),
    ("permits: others are not permitted", licence(permits("ai-input ai-index")), "/a", NO),
    ("permits: several elements", licence(permits("search"), permits("ai-train")), "/a", YES),
    ("prohibits before permits", licence(permits("all"), prohibits("ai-train")), "/a", NO),
    ("prohibits before permits", licence(permits("ai-train"), prohibits("ai-all")), "/a", NO),
    ("prohibits other uses of a permitted all", licence(permits("all"), prohibits("search")), "/a", YES),
    ("payment: free", licence(permits("ai-train"), '<payment type="free"/>'), "/a", YES),
    ("payment: attribution", licence(permits("all"), '<payment type="attribution"/>'), "/a", YES),
    ("payment: none named", licence(permits("all"), "<payment/>"), "/a", YES),
    ("payment: training", licence(permits("ai-train"), '<payment type="training"/>'), "/a", NO),
    ("payment: subscription", licence('<payment type="subscription"/>'), "/a", NO),
    ("payment: crawl", licence('<payment type="crawl"><amount currency="USD">1</amount></payment>'), "/a", NO),
    ("payment: purchase", licence(permits("all"), '<payment type="purchase"/>'), "/a", NO),
    ("permits: users", licence(permits("all"), permits("education", "user")), "/a", NO),
    ("permits: all users", licence(permits("all"), permits("all", "user")), "/a", YES),
    ("prohibits: users", licence(permits("all"), prohibits("commercial", "user")), "/a", NO),
    ("permits: places", licence(permits("all"), permits("US", "geo")), "/a", NO),
    ("an empty licence says nothing", licence(), "/a", UNSAID),
    ("a content without a licence says nothing", '<content url="/"/>', "/a", UNSAID),
    ("a licence server", licence(permits("all"), more=' server="https://s.example"'), "/a", NO),
    ("content: a path", licence(prohibits("all"), url="/b/"), "/a", UNSAID),
    ("content: a path", licence(prohibits("all"), url="/b/"), "/b/c", NO),
    ("content: wildcards", licence(prohibits("all"), url="/*.jpg$"), "/b/c.jpg", NO),
    ("content: a URL", licence(prohibits("all"), url="https://x.example/"), "/a", NO),
    ("content: a URL of a path", licence(prohibits("all"), url="https://x.example/b/*"), "/b/c", NO),
    ("content: a URL of another host", licence(prohibits("all"), url="https://y.example/"), "/a", UNSAID),
    ("content: no URL means all", "<content><license>" + prohibits("all") + "</license></content>", "/a", NO),
    ("content: the longest match", licence(prohibits("all")) + licence(permits("all"), url="/a/"), "/a/b", YES),
    ("content: the longest match", licence(prohibits("all")) + licence(permits("all"), url="/a/"), "/b", NO),
    ("content: equal, the stricter", licence(permits("all")) + licence(prohibits("all")), "/b", NO),
    (
        "licences: any may be chosen",
        '<content url="/"><license><payment type="purchase"/></license><license>'
        + permits("ai-train")
        + '<payment type="free"/></license></content>',
        "/a",
        YES,
    ),
    (
        "ours: a prohibition in one of them refuses",
        f'<content url="/"><license>{prohibits("ai-train")}</license><license>{permits("all")}</license></content>',
        "/a",
        NO,
    ),
]


@pytest.mark.parametrize(("rule", "contents", "path", "said"), RSL)
@pytest.mark.parametrize("namespace", [' xmlns="https://rslstandard.org/rsl"', ""], ids=["namespace", "none"])
def test_rsl(rule: str, contents: str, path: str, said: bool | None, namespace: str) -> None:
    terms = read_rsl(f"<rsl{namespace}>{contents}</rsl>".encode(), "https://x.example/rsl.xml")
    found = terms.rule(f"https://x.example{path}")
    assert (found and found.said) is said, rule


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<rsl>",
        b"<html/>",
        b"All rights reserved",
        b'<!DOCTYPE rsl [<!ENTITY a "b">]><rsl>&a;</rsl>',
        b'<?xml version="1.0" encoding="no-such"?><rsl/>',
        b"<rsl>" + b" " * LARGEST + b"</rsl>",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_rsl(body: bytes) -> None:
    with pytest.raises(NoLicence):
        read_rsl(body, "https://x.example/rsl.xml")


def test_rsl_inside_a_feed() -> None:
    feed = f'<rss><channel xmlns:rsl="https://rslstandard.org/rsl">{licence(prohibits("all"))}</channel></rss>'
    found = read_rsl(feed.encode(), "f").rule("https://x.example/")
    assert found is not None and found.said is False


# ---- the client


def asked(server: WebServer, *paths: str, **options: object) -> list[str]:
    """The status and protocol of each URL."""
    settings = {"allow_addresses": ("127.0.0.0/8",), "deadline_s": 15.0, "backoff_s": 0.01, "retries": 0} | options
    client = Client(FetchOptions(**settings))  # type: ignore[arg-type]
    found = []
    for path in paths:
        try:
            client.fetch(server.base + path)
            found.append("ok")
        except Failure as failure:
            found.append(f"{failure.status} {failure.protocol}: {failure}")
    return found


def test_tdmrep_is_asked_for_once_and_spares_requests() -> None:
    with WebServer() as server:
        server.files["/.well-known/tdmrep.json"] = json.dumps([entry("/img/1", 1)]).encode()
        found = asked(server, "/img/0.jpg", "/img/1.jpg", "/img/2.jpg")
        assert found == [
            "ok",
            'opt_out tdmrep: /.well-known/tdmrep.json: {"location": "/img/1", "tdm-reservation": 1}',
            "ok",
        ]
        assert server.hits["/.well-known/tdmrep.json"] == server.hits["/robots.txt"] == 1
        assert server.hits["/img/1.jpg"] == 0
        assert asked(server, "/img/1.jpg", ignore_rights=("tdmrep",)) == ["ok"]


@pytest.mark.parametrize("group", ["CCBot\nDisallow: /", "*\nDisallow: /", "*\nContent-Usage: train-ai=n"])
def test_tdmrep_is_not_asked_for_where_robots_txt_refuses_it(group: str) -> None:
    with WebServer(robots=f"User-agent: {group}") as server:
        assert asked(server, "/img/0.jpg")[0].split()[0] in ("robots", "opt_out")
        assert list(server.hits) == ["/robots.txt"]


def test_a_licence_in_robots_txt() -> None:
    with WebServer() as server:
        server.robots = f"License: {server.base}/rsl.xml\nUser-agent: *\nDisallow: /no"
        server.files["/rsl.xml"] = f"<rsl>{licence(prohibits('ai-train'), url='/img/1')}</rsl>".encode()
        found = asked(server, "/img/0.jpg", "/img/1.jpg", "/img/1.jpg")
        words = f'RSL {server.base}/rsl.xml: <content url="/img/1">: <prohibits type="usage">ai-train</prohibits>'
        assert found == ["ok", *[f"opt_out rsl: robots.txt line 1: {words}"] * 2]
        assert server.hits["/rsl.xml"] == 1
        assert asked(server, "/img/1.jpg", ignore_rights=("rsl",)) == ["ok"] and server.hits["/rsl.xml"] == 1


@pytest.mark.parametrize("path", ["/none.xml", "/html"])
def test_a_licence_that_cannot_be_read_grants_nothing(path: str) -> None:
    with WebServer() as server:
        server.robots = f"License: {server.base}{path}"
        assert asked(server, "/img/0.jpg") == [
            "opt_out rsl: robots.txt line 1: the licence that is named cannot be read"
        ]


def test_a_licence_behind_a_failure_may_come_later() -> None:
    with WebServer() as server:
        server.robots = f"License: {server.base}/status/503"
        assert asked(server, "/img/0.jpg")[0].startswith("robots None: robots.txt: the server answered 503")


@pytest.mark.parametrize(
    ("named", "terms", "said"),
    [
        ("/rsl.xml", prohibits("ai-train"), "opt_out rsl: Link header: RSL "),
        ("/rsl.xml", prohibits("ai-input"), "ok"),
        ("/none.xml", "", "opt_out rsl: Link header: the licence that is named cannot be read"),
        ("mailto:a@b", "", "opt_out rsl: Link header: mailto:a@b is no URL of a licence"),
        ("/status/503", "", "robots None: the server answered 503"),
    ],
)
def test_a_licence_in_the_link_header_of_an_image(named: str, terms: str, said: str) -> None:
    with WebServer() as server:
        server.files["/rsl.xml"] = f"<rsl>{licence(terms)}</rsl>".encode()
        server.link = f'<{named}>; rel="license"; type="application/rsl+xml"'
        found = asked(server, "/img/0.jpg", "/img/1.jpg")
        assert [one[: len(said)] for one in found] == [said, said] and server.hits["/rsl.xml"] <= 1
        assert asked(server, "/img/0.jpg", ignore_rights=("rsl",)) == ["ok"]


def test_ignored_protocols_are_not_asked() -> None:
    with WebServer(robots="User-agent: *\nDisallow: /\nContent-Usage: train-ai=n") as server:
        server.files["/.well-known/tdmrep.json"] = json.dumps([entry("/", 1)]).encode()
        found = [asked(server, "/img/0.jpg", ignore_rights=PROTOCOLS[:count])[0] for count in range(len(PROTOCOLS))]
        refusing = ["robots", *["content-usage"] * 2, *["tdmrep"] * 3]  # while the protocols before are ignored
        assert [one.split(":")[0].split()[-1] for one in found] == [*refusing, "ok", "ok", "ok"]
        server.hits.clear()
        assert asked(server, "/img/0.jpg", ignore_rights=PROTOCOLS) == ["ok"] and list(server.hits) == ["/img/0.jpg"]


def test_the_licence_of_a_page() -> None:
    with WebServer() as server:
        server.files["/rsl.xml"] = f"<rsl>{licence(prohibits('all'))}</rsl>".encode()
        client = Client(FetchOptions(allow_addresses=("127.0.0.0/8",), retries=0))
        for _ in range(2):
            with pytest.raises(Failure, match="RSL"):
                client.check_page("https://x.example/page", f"{server.base}/rsl.xml", Verdict())
        assert server.hits["/rsl.xml"] == 1


@pytest.mark.parametrize(
    ("header", "value", "protocol"),
    [
        ("Content-Usage", "train-ai=n", "content-usage"),
        ("content_signal", "search=yes, ai-train=no", "content-signal"),
        ("TDM-Reservation", "1", "tdmrep"),
        ("X-Robots-Tag", "noai", "robots-tag"),
        ("Content-Usage", "train-ai=y", None),
    ],
)
def test_statements_in_the_answer(header: str, value: str, protocol: str | None) -> None:
    with WebServer() as server:
        found = asked(server, f"/says/{header}/{value}/0.jpg")[0]
        assert found.startswith(f"opt_out {protocol}: ") if protocol else found == "ok"
