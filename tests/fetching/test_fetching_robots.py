"""robots.txt and X-Robots-Tag: a table of cases with the rule that decides each."""

import pytest

from pipeline.fetching import robots
from pipeline.fetching.recent import Recent
from pipeline.fetching.robots import Rules, forbidding_tag
from pipeline.sources.html import directives, header_signals

FOO, BAR, ALL = "user-agent: foobot\n", "user-agent: barbot\n", "user-agent: *\n"

# (rule, robots.txt, agent, path, allowed). The sections are those of RFC 9309; "Google" marks what its parser accepts
# beyond the RFC.
ROBOTS = [
    ("2.1 no file", "", "FooBot", "/x", True),
    ("2.1 rules outside groups are ignored", f"disallow: /\n{FOO}allow: /y", "FooBot", "/x", True),
    ("2.1 unknown keys are ignored", "foo: foobot\nbar: /", "FooBot", "/x", True),
    ("Google: a line without a colon", "user-agent foobot\ndisallow /", "FooBot", "/x", False),
    ("2.1 agents in a row share the group", f"{FOO}{BAR}disallow: /", "FooBot", "/x", False),
    ("2.1 agents in a row share the group", f"{FOO}{BAR}disallow: /", "BarBot", "/x", False),
    ("2.1 blank lines end no group", f"{FOO}\n\n{BAR}\ndisallow: /", "FooBot", "/x", False),
    ("2.1 the group ends at a rule", f"{FOO}allow: /\n{BAR}disallow: /", "FooBot", "/x", True),
    ("2.1 the group ends at a rule", f"{FOO}allow: /\n{BAR}disallow: /", "BarBot", "/x", False),
    (
        "2.1 groups of an agent are combined",
        f"{FOO}disallow: /a\n{BAR}disallow: /b\n{FOO}disallow: /c",
        "FooBot",
        "/a",
        False,
    ),
    (
        "2.1 groups of an agent are combined",
        f"{FOO}disallow: /a\n{BAR}disallow: /b\n{FOO}disallow: /c",
        "FooBot",
        "/c",
        False,
    ),
    (
        "2.1 groups of an agent are combined",
        f"{FOO}disallow: /a\n{BAR}disallow: /b\n{FOO}disallow: /c",
        "FooBot",
        "/b",
        True,
    ),
    ("2.2.4 a sitemap ends no group", f"{FOO}Sitemap: http://x/s\n{ALL}disallow: /", "FooBot", "/", False),
    (
        "2.2.4 an unknown line ends no group",
        f"{FOO}Content-Signal: ai-train=no\n{ALL}disallow: /",
        "FooBot",
        "/",
        False,
    ),
    ("2.2.4 an unknown line ends no group", f"{FOO}Content-Signal: ai-train=no\n{ALL}disallow: /", "Other", "/", False),
    ("2.2.4 crawl-delay ends no group", f"{FOO}Crawl-delay: 2\n{BAR}disallow: /", "FooBot", "/", False),
    ("2.2 keys are read in any case", "USER-AGENT: FooBot\nDISALLOW: /", "FooBot", "/", False),
    ("2.2 keys are read in any case", "uSeR-aGeNt: FooBot\ndIsAlLoW: /", "FooBot", "/", False),
    ("2.2.1 agents are compared in any case", "user-agent: FOOBOT\ndisallow: /", "foobot", "/", False),
    ("2.2.1 a version is no part of the token", "user-agent: FooBot/1.0\ndisallow: /", "FooBot", "/", False),
    ("2.2.1 a version is no part of the token", "user-agent: FooBot\ndisallow: /", "FooBot/2.1", "/", False),
    ("Google: a name ends at its first blank", "user-agent: Foo Bar\ndisallow: /", "Foo", "/", False),
    ("2.2.1 tokens are equal, not contained", "user-agent: Foo\ndisallow: /", "FooBot", "/", True),
    ("2.2.1 tokens are equal, not contained", "user-agent: FooBot-Image\ndisallow: /", "FooBot", "/", True),
    ("2.2.1 a named group beats *", f"{ALL}disallow: /\n{FOO}allow: /", "FooBot", "/x", True),
    ("2.2.1 a named group beats *, wherever it is", f"{FOO}disallow: /y\n{ALL}disallow: /", "FooBot", "/x", True),
    ("2.2.1 a named group without rules allows", f"{ALL}disallow: /\n{FOO}", "FooBot", "/x", True),
    ("2.2.1 * is for the others", f"{FOO}disallow: /\n{ALL}disallow: /no", "Other", "/no", False),
    ("Google: text after *", "user-agent: * (all)\ndisallow: /", "FooBot", "/", False),
    ("2.2.1 no group for the agent", f"{BAR}disallow: /", "FooBot", "/", True),
    ("2.2.2 paths are read in their case", f"{FOO}disallow: /X/", "FooBot", "/x/y", True),
    ("2.2.2 paths are read in their case", f"{FOO}disallow: /x/", "FooBot", "/x/y", False),
    ("2.2.2 the longest match counts", f"{FOO}disallow: /x/page.html\nallow: /x/", "FooBot", "/x/page.html", False),
    ("2.2.2 the longest match counts", f"{FOO}allow: /x/page.html\ndisallow: /x/", "FooBot", "/x/page.html", True),
    ("2.2.2 the longest match counts", f"{FOO}allow: /x/page.html\ndisallow: /x/", "FooBot", "/x/", False),
    ("2.2.2 of equal matches allow counts", f"{FOO}disallow: /folder\nallow: /folder", "FooBot", "/folder/p", True),
    ("2.2.2 an empty rule matches nothing", f"{FOO}disallow:", "FooBot", "/x", True),
    ("2.2.2 an empty rule matches nothing", f"{FOO}disallow: /\nallow:", "FooBot", "/x", False),
    ("2.2.2 characters are compared as octets", f"{FOO}disallow: /\nallow: /foo/ツ", "FooBot", "/foo/%E3%83%84", True),
    ("2.2.2 escapes are compared in any case", f"{FOO}disallow: /%e3%83%84", "FooBot", "/%E3%83%84", False),
    (
        "2.2.2 the query is a part of the path",
        f"{FOO}disallow: /\nallow: /a?b=http://c?d&e",
        "FooBot",
        "/a?b=http://c?d&e",
        True,
    ),
    ("2.2.3 # begins a comment", f"{FOO}# disallow: /\nallow: /", "FooBot", "/x", True),
    ("2.2.3 # begins a comment", f"{FOO}disallow: /a#b", "FooBot", "/a", False),
    ("2.2.3 # begins a comment", "user-agent: foobot # ours\ndisallow: / # all", "FooBot", "/a", False),
    ("2.2.3 $ is the end", f"{FOO}disallow: /foo/bar$", "FooBot", "/foo/bar", False),
    ("2.2.3 $ is the end", f"{FOO}disallow: /foo/bar$", "FooBot", "/foo/bar/", True),
    ("2.2.3 * is any text", f"{FOO}disallow: /*.php", "FooBot", "/index?f=a.php/", False),
    ("2.2.3 * is any text", f"{FOO}disallow: /*.php", "FooBot", "/windows.PHP", True),
    ("2.2.3 * is any text", f"{FOO}disallow: /fish*", "FooBot", "/fishheads", False),
    ("2.2.3 * is any text", f"{FOO}disallow: /fish*.php", "FooBot", "/fishheads/cat.php?p", False),
    ("2.2.3 * and $", f"{FOO}disallow: /*.php$", "FooBot", "/a.php?x", True),
    ("2.2.3 * and $", f"{FOO}disallow: /*.php$", "FooBot", "/b/a.php", False),
    ("2.2.3 /$ is the first page alone", f"{FOO}allow: /$\ndisallow: /", "FooBot", "/", True),
    ("2.2.3 /$ is the first page alone", f"{FOO}allow: /$\ndisallow: /", "FooBot", "/page", False),
    ("2.2 line ends", "user-agent: foobot\rdisallow: /\r", "FooBot", "/", False),
    ("2.2 line ends", "user-agent: foobot\r\ndisallow: /\r\n", "FooBot", "/", False),
    ("2.2 blanks around keys and values", " \tuser-agent :\tfoobot  \n  disallow :  /  ", "FooBot", "/", False),
    ("2.3 a byte order mark", "\ufeffuser-agent: foobot\ndisallow: /", "FooBot", "/", False),
    ("Google: spellings", "useragent: foobot\ndissallow: /", "FooBot", "/", False),
    ("Google: spellings", "user agent: foobot\ndisalow: /", "FooBot", "/", False),
]


@pytest.mark.parametrize(("rule", "text", "agent", "path", "allowed"), ROBOTS)
def test_robots_txt(rule: str, text: str, agent: str, path: str, allowed: bool) -> None:
    assert Rules(text.encode(), agent).allow(f"http://foo.example{path}") == allowed, rule


@pytest.mark.parametrize("part", [" ", "a ", "\t", "a", "#", ":"])
def test_a_long_line_takes_no_time(part: str) -> None:
    import time

    start = time.process_time()
    Rules(b"a" + part.encode() * (robots.LARGEST // len(part)), "FooBot")
    assert time.process_time() - start < 2


def test_a_delay_is_that_of_the_agents_named_before_it() -> None:
    text = b"User-agent: foobot\nCrawl-delay: 7\nUser-agent: barbot\nDisallow: /"
    assert [Rules(text, agent).delay_s for agent in ("FooBot", "BarBot")] == [7, 0]


# (rule, header, word that forbids the image to OpenWIT)
TAGS = [
    ("a list", "noarchive, NoAI", "noai"),
    ("a list without blanks", "noarchive,noimageai", "noimageai"),
    ("words that are none", "index, follow, all", None),
    ("a date with a comma", "unavailable_after: Sat, 25 Jun 2050 15:00:00 GMT, noimageai", "noimageai"),
    ("a date of RFC 850", "unavailable_after: Saturday, 25-Jun-50 15:00:00 GMT, noai", "noai"),
    ("a date of ISO 8601", "unavailable_after: 2050-06-25T15:00:00+00:00, noindex", "noindex"),
    ("a time after a comma", "unavailable_after: Jun 25, 2050, 15:00:00, none", "none"),
    ("a date before a robot", "unavailable_after: 25 Jun 2050 15:00:00 PST, otherbot: noai", None),
    ("a value that is a word of ours", "max-image-preview: none, max-snippet: 20", None),
    ("a value, then a rule", "max-image-preview:large, noindex", "noindex"),
    ("a number, then a rule", "max-video-preview: 0, noai", "noai"),
    ("a number, then a rule", "max-snippet: 0, noai", "noai"),
    ("another robot", "otherbot: noai, noindex", None),
    ("another robot with a version", "otherbot/2.0: noai", None),
    ("our name", "openwit: noimageai", "noimageai"),
    ("our name with a version", "OpenWIT/1.0: noai", "noai"),
    ("two robots", "otherbot: noarchive, openwit: noimageai", "noimageai"),
    ("two robots", "openwit: noarchive, otherbot: noai", None),
    ("every robot", "*: none", "none"),
    ("a robot, then a value", "openwit: max-snippet: 5, noai", "noai"),
    ("a robot, then a value that is a word of ours", "openwit: max-image-preview: none", None),
]


@pytest.mark.parametrize(("rule", "header", "word"), TAGS)
def test_x_robots_tag(rule: str, header: str, word: str | None) -> None:
    assert forbidding_tag([header], "OpenWIT") == word, rule
    assert header_signals([("X-Robots-Tag", header)]) == ({word} if word else set()), rule


def test_a_name_holds_for_its_own_header_alone() -> None:
    assert forbidding_tag(["otherbot: noindex", "noai"], "OpenWIT") == "noai"


def test_robots_metas_leave_out_the_values_of_other_rules() -> None:
    assert directives("max-image-preview: none, index") == set()
    assert directives("max-image-preview:large noai;noindex") == {"noai", "noindex"}


def test_parsed_files_are_forgotten_and_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parsed file takes 70 times the memory of its text: twenty large ones would fill a worker."""
    few: Recent[str, robots._Parsed] = Recent(100, weigh=lambda parsed: parsed.size, max_weight=72 * 60)
    monkeypatch.setattr(robots, "_parsed", few)
    sites = [robots.Rules(b"User-agent: *\nDisallow: /%d/\n" % n, "OpenWIT") for n in range(8)]
    for _ in range(2):
        for n, rules in enumerate(sites):
            assert not rules.allow(f"http://a.example/{n}/x") and rules.allow(f"http://a.example/{n + 1}/x")
            assert len(list(few)) <= 2


def test_recent_entries_weigh_no_more_than_the_bound() -> None:
    kept: Recent[str, list[int]] = Recent(4, weigh=len, max_weight=10)
    first = kept.put("a", [])
    kept.put("b", [0] * 6)
    first += [0] * 6
    kept.put("a", first)  # weighed anew: it is too heavy beside b
    assert list(kept) == [first]
    kept.put("c", [0] * 50)  # one entry may be too heavy alone
    assert list(kept) == [[0] * 50]
    for name in "defgh":
        kept.put(name, [0])
    assert list(kept) == [[0]] * 4
