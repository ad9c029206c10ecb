"""robots.txt with statements on AI training, and groups of other crawlers: cases with the rule that decides each."""

import pytest

from pipeline.fetching.robots import Refusal, Rules

ALL, OURS, CC, OTHER = "user-agent: *\n", "user-agent: openwit\n", "user-agent: CCBot\n", "user-agent: otherbot\n"
NO_SIGNAL, NO_USAGE = "content-signal: search=yes, ai-train=no\n", "content-usage: train-ai=n\n"
YES_SIGNAL, YES_USAGE = "content-signal: ai-train=yes\n", "content-usage: train-ai=y\n"
DRAFT = (  # draft-ietf-aipref-attach-05, section "Example"
    "User-Agent: *\nAllow: /\nDisallow: /never/\nContent-Usage: train-ai=n\nContent-Usage: /ai-ok/ train-ai=y\n\n"
    "User-Agent: ExampleBot\nAllow: /\nContent-Usage: train-ai=y\n"
)

# (rule, robots.txt, path, the protocol that refuses, or None). The sections are those of draft-ietf-aipref-attach-05.
CASES = [
    ("the draft's example", DRAFT, "/test", "content-usage"),
    ("the draft's example", DRAFT, "/never/test", "robots"),
    ("the draft's example", DRAFT, "/ai-ok/test", None),
    ("3 a rule without a path", ALL + NO_USAGE, "/x", "content-usage"),
    ("3 a rule with a path", f"{ALL}content-usage: /x train-ai=n", "/x/y", "content-usage"),
    ("3 a rule with a path", f"{ALL}content-usage: /x train-ai=n", "/y", None),
    ("3 a tab after the path", f"{ALL}content-usage: /x\ttrain-ai=n", "/x", "content-usage"),
    ("3 several blanks after the path", f"{ALL}content-usage: /x   train-ai=n", "/x", "content-usage"),
    ("3 a path alone", f"{ALL}content-usage: /x", "/x", None),
    ("3 several categories", f"{ALL}content-usage: search=y, train-ai=n", "/x", "content-usage"),
    ("3.2 blanks around label and colon", f"{ALL} \tContent-Usage :\t train-ai=n", "/x", "content-usage"),
    ("3.2 # begins a comment", f"{ALL}content-usage: train-ai=n # please", "/x", "content-usage"),
    ("3.2 # begins a comment", f"{ALL}# content-usage: train-ai=n", "/x", None),
    ("3.2 any other first character: no path", f"{ALL}content-usage: * train-ai=n", "/x", None),
    ("3.1 the longest match counts", f"{ALL}{NO_USAGE}content-usage: /a train-ai=y", "/a", None),
    ("3.1 the longest match counts", f"{ALL}{YES_USAGE}content-usage: /a train-ai=n", "/a", "content-usage"),
    ("3.1 the longest match counts", f"{ALL}{YES_USAGE}content-usage: /a train-ai=n", "/b", None),
    ("3.1 the order is without meaning", f"{ALL}content-usage: /a train-ai=n\n{YES_USAGE}", "/a", "content-usage"),
    ("3.1 equal paths: the stricter", f"{ALL}{YES_USAGE}{NO_USAGE}", "/a", "content-usage"),
    ("3.1 equal paths: the stricter", f"{ALL}{NO_USAGE}{YES_USAGE}", "/a", "content-usage"),
    ("3.1 wildcards", f"{ALL}content-usage: /*.jpg$ train-ai=n", "/a/b.jpg", "content-usage"),
    ("3.1 wildcards", f"{ALL}content-usage: /*.jpg$ train-ai=n", "/a/b.jpg?x", None),
    ("3.1 escapes", f"{ALL}content-usage: /a%20b train-ai=n", "/a%20b", "content-usage"),
    ("3.1 paths in their case", f"{ALL}content-usage: /A train-ai=n", "/a", None),
    ("3.1 interleaved with other rules", f"{ALL}allow: /\n{NO_USAGE}disallow: /b", "/a", "content-usage"),
    ("3.1 disallowed paths are not crawled", f"{ALL}disallow: /\n{YES_USAGE}", "/a", "robots"),
    ("3.1 a named group beats *", f"{ALL}{NO_USAGE}{OURS}allow: /", "/a", None),
    ("3.1 a named group beats *", f"{OURS}{NO_USAGE}{ALL}{YES_USAGE}", "/a", "content-usage"),
    ("3.1 another robot's group", f"{OTHER}{NO_USAGE}{ALL}allow: /", "/a", None),
    ("3 a rule ends the list of agents", f"{OTHER}{NO_USAGE}{OURS}disallow:", "/a", None),
    ("3 a rule ends the list of agents", f"{OTHER}{OURS}{NO_USAGE}", "/a", "content-usage"),
    ("vocab 6.5 no dictionary", f"{ALL}content-usage: train-ai = n", "/a", None),
    ("vocab 6.5 another label", f"{ALL}content-usage: search=n", "/a", None),
    ("ours: a rule on other uses hides none", f"{ALL}{NO_USAGE}content-usage: /a search=n", "/a", "content-usage"),
    ("ours: a statement before all groups", f"{NO_USAGE}{ALL}allow: /", "/a", "content-usage"),
    ("ours: a statement before all groups", f"{NO_USAGE}{OURS}allow: /", "/a", "content-usage"),
    ("ours: a statement in a file without groups", NO_USAGE, "/a", "content-usage"),
    ("RFC 9309 2.2 any case of the label", f"{ALL}CONTENT-USAGE: train-ai=n", "/a", "content-usage"),
    ("Content Signals: a group", ALL + NO_SIGNAL, "/a", "content-signal"),
    ("Content Signals: a group", ALL + YES_SIGNAL, "/a", None),
    ("Content Signals: among rules", f"{ALL}{NO_SIGNAL}allow: /", "/a", "content-signal"),
    ("Content Signals: after rules", f"{ALL}allow: /\n{NO_SIGNAL}", "/a", "content-signal"),
    ("Content Signals: another robot", f"{OTHER}{NO_SIGNAL}allow: /\n{ALL}allow: /", "/a", None),
    ("Content Signals: ours", f"{ALL}{YES_SIGNAL}{OURS}{NO_SIGNAL}", "/a", "content-signal"),
    ("Content Signals: search alone", f"{ALL}content-signal: search=no", "/a", None),
    ("Content Signals: the managed comment", f"# {NO_SIGNAL}{ALL}allow: /", "/a", None),
    ("Content Signals: twice, the stricter", ALL + YES_SIGNAL + NO_SIGNAL, "/a", "content-signal"),
    ("Content Signals: a path", f"{ALL}content-signal: /a ai-train=no", "/a/b", "content-signal"),
    ("Content Signals: a path", f"{ALL}content-signal: /a ai-train=no", "/b", None),
    ("Content Signals: before all groups", f"{NO_SIGNAL}{ALL}allow: /", "/a", "content-signal"),
    ("two protocols: the stricter", ALL + YES_USAGE + NO_SIGNAL, "/a", "content-signal"),
    ("two protocols: the stricter", ALL + NO_USAGE + YES_SIGNAL, "/a", "content-usage"),
    ("agents: a group of a data set's crawler", f"{CC}disallow: /", "/a", "robots-agents"),
    ("agents: a path of its group", f"{CC}disallow: /b", "/a", None),
    ("agents: a path of its group", f"{CC}disallow: /b", "/b", "robots-agents"),
    ("agents: its group beside *", f"{ALL}allow: /\n{CC}disallow: /", "/a", "robots-agents"),
    ("agents: ours is forbidden first", f"{ALL}disallow: /\n{CC}disallow: /", "/a", "robots"),
    ("agents: ours allowed by name, the stricter", f"{OURS}allow: /\n{CC}disallow: /", "/a", "robots-agents"),
    ("agents: * counts for ours alone", f"{OURS}allow: /\n{ALL}disallow: /", "/a", None),
    ("agents: its statement", f"{CC}{NO_USAGE}", "/a", "content-usage"),
    ("agents: its signal", f"{CC}{NO_SIGNAL}", "/a", "content-signal"),
    ("agents: a version", "user-agent: CCBot/2.0\ndisallow: /", "/a", "robots-agents"),
    ("agents: any case", "user-agent: ccbot\ndisallow: /", "/a", "robots-agents"),
    ("agents: in a list", f"{OTHER}{CC}disallow: /", "/a", "robots-agents"),
    ("agents: an empty rule", f"{CC}disallow:", "/a", None),
    ("agents: one that is not asked for", "user-agent: GPTBot\ndisallow: /", "/a", None),
    ("agents: a name within a name", "user-agent: CCBotX\ndisallow: /", "/a", None),
    ("agents: Cloudflare's managed robots.txt", f"{ALL}{NO_SIGNAL}allow: /\n\n{CC}disallow: /", "/a", "robots-agents"),
]


@pytest.mark.parametrize(("rule", "text", "path", "protocol"), CASES)
def test_refusals(rule: str, text: str, path: str, protocol: str | None) -> None:
    found = Rules(text.encode(), "OpenWIT", ("CCBot",)).refusal(f"https://x.example{path}")
    assert (found and found.protocol) == protocol, rule
    assert found is None or found.status == ("robots" if protocol in ("robots", "robots-agents") else "opt_out")


def test_the_evidence_names_the_line() -> None:
    text = (
        b"User-agent: *\nDisallow: /a\nDisallow: /a/b\nContent-Usage: /c train-ai=n\n\nUser-agent: CCBot\nDisallow: /d"
    )
    rules = Rules(text, "OpenWIT", ("CCBot",))
    url = "https://x.example"
    assert rules.refusal(f"{url}/a/b") == Refusal("robots", "robots", "robots.txt line 3: Disallow: /a/b")
    assert rules.refusal(f"{url}/c") == Refusal(
        "opt_out", "content-usage", "robots.txt line 4: Content-Usage: /c train-ai=n"
    )
    assert rules.refusal(f"{url}/d") == Refusal(
        "robots", "robots-agents", "robots.txt line 7: Disallow: /d (group of ccbot)"
    )
    assert rules.refusal(f"{url}/e") is None


@pytest.mark.parametrize("agent", ["GPTBot", "img2dataset", "Google-Extended", "anthropic-ai"])
def test_every_crawler_that_is_asked_for_counts(agent: str) -> None:
    text = f"User-agent: {agent}\nDisallow: /".encode()
    assert Rules(text, "OpenWIT", ("CCBot", agent)).refusal("https://x.example/a") is not None
    assert Rules(text, "OpenWIT").refusal("https://x.example/a") is None


def test_licences_belong_to_no_group() -> None:
    text = b"License: https://x.example/rsl.xml\nUser-agent: other\nDisallow: /\nlicense: https://y.example/l.xml"
    assert [line.value for line in Rules(text, "OpenWIT").licenses] == [
        "https://x.example/rsl.xml",
        "https://y.example/l.xml",
    ]


def test_many_statements_take_no_time() -> None:
    import time

    text = b"User-agent: *\n" + b"".join(b"Content-Usage: /%d/*a*b train-ai=n\n" % n for n in range(16_000))
    start = time.process_time()
    rules = Rules(text, "OpenWIT")
    for _ in range(10):
        assert rules.refusal("https://x.example/" + "a" * 2000) is None
    assert time.process_time() - start < 3
    assert rules.size < 8 << 20
