"""Statements on AI training: conformance cases of each draft, with the rule that decides each."""

import time

import pytest

from pipeline.text import rights
from pipeline.text.url_patterns import matches, path_of, spelling

YES, NO, UNSAID = True, False, None

# (section of draft-ietf-aipref-vocab-08, value, statement on train-ai)
CONTENT_USAGE = [
    ("6 the example", "train-ai=y, search=n", YES),
    ("6.2 n disallows", "train-ai=n", NO),
    ("6.2 y allows", "train-ai=y", YES),
    ("5 no explicit preference", "search=n", UNSAID),
    ("5 no explicit preference", "", UNSAID),
    ("6.1 labels are case sensitive", "Train-AI=n", UNSAID),
    ("6.2 tokens are case sensitive", "train-ai=N", UNSAID),
    ("6.5 the key without a value", "train-ai", UNSAID),
    ("6.5 a string is no token", 'train-ai="n"', UNSAID),
    ("6.5 a number is no token", "train-ai=0", UNSAID),
    ("6.5 a boolean is no token", "train-ai=?0", UNSAID),
    ("6.5 an inner list is no token", "train-ai=(n)", UNSAID),
    ("6.5 another token", "train-ai=no", UNSAID),
    ("6.5 another token", "train-ai=never", UNSAID),
    ("6.5.1 of equal keys the last one", "train-ai=y, train-ai=n", NO),
    ("6.5.1 of equal keys the last one", "train-ai=n, train-ai=y", YES),
    ("6.5.1 the example", 'train-ai=y, train-ai, search=n, search="n"', UNSAID),
    ("6.5.2 parameters are disregarded", "train-ai=n;x", NO),
    ("6.5.2 parameters are disregarded", 'train-ai=n; x=1; y="a"', NO),
    ("6.5.2 the example", "train-ai;allow=n, train-ai=y", YES),
    ("6.5.2 the example", 'train-ai;has;parameters="?"', UNSAID),
    ("6.4 unknown labels are ignored", "bots=n, train-ai=n", NO),
    ("6.4 unknown labels are ignored", "ai-use=y, x-y_z.*=1, train-ai=y", YES),
    ("6.4 unknown labels are ignored", "train-genai=n", UNSAID),
    ("6.4 keys are whole", "no-train-ai=n", UNSAID),
    ("6.4 keys are whole", "train-ai2=n", UNSAID),
    ("RFC 9651 4.2 blanks around", "  train-ai=n  ", NO),
    ("RFC 9651 4.2.2 blanks around commas", "search=y ,\ttrain-ai=n", NO),
    ("RFC 9651 4.2.2 no blank around =", "train-ai = n", UNSAID),
    ("RFC 9651 4.2.2 no blank around =", "train-ai= n", UNSAID),
    ("RFC 9651 4.2.2 a comma at the end", "train-ai=n,", UNSAID),
    ("RFC 9651 4.2.2 a comma at the beginning", ",train-ai=n", UNSAID),
    ("RFC 9651 4.2.2 no comma", "train-ai=n search=y", UNSAID),
    ("RFC 9651 4.2.2 semicolons separate no members", "search=y; train-ai=n", UNSAID),
    ("6.5 a failure makes all unknown", "train-ai=n, Search=y", UNSAID),
    ("6.5 a failure makes all unknown", "train-ai=n, =y", UNSAID),
    ("6.3 no character beyond ASCII", "train-ai=n, x=\u00e9", UNSAID),
    ("RFC 9651 3.3 all types", 'a=1, b=-1.5, c="x\\"y", d=:aGk=:, e=?1, f=@1659578233, g=%"f%c3%bc", train-ai=n', NO),
    ("RFC 9651 3.1.1 inner lists", 'a=(1 "b" c;q=1);z, train-ai=n', NO),
    ("RFC 9651 3.1.1 an open inner list", "a=(1 2, train-ai=n", UNSAID),
    ("RFC 9651 3.3.3 an open string", 'a="b, train-ai=n', UNSAID),
    ("RFC 9651 3.3.1 too many digits", "a=1234567890123456, train-ai=n", UNSAID),
    ("RFC 9651 3.3.4 a token with / and :", "a=b/c:d, train-ai=n", NO),
]


@pytest.mark.parametrize(("rule", "value", "said"), CONTENT_USAGE)
def test_content_usage(rule: str, value: str, said: bool | None) -> None:
    assert rights.content_usage(value) is said, rule


# (rule of draft-romm-aipref-contentsignals-00 or contentsignals.org, value, statement on ai-train)
CONTENT_SIGNAL = [
    ("no refuses", "ai-train=no", NO),
    ("yes allows", "ai-train=yes", YES),
    ("Cloudflare's managed robots.txt", "search=yes,ai-train=no", NO),
    ("Cloudflare's managed robots.txt", "search=yes, ai-train=no", NO),
    ("all three signals", "search=yes, ai-input=yes, ai-train=yes", YES),
    ("all three signals", "search=yes, ai-input=no, ai-train=no", NO),
    ("absence expresses nothing", "search=no", UNSAID),
    ("absence expresses nothing", "ai-input=no", UNSAID),
    ("absence expresses nothing", "", UNSAID),
    ("blanks around the answer", " ai-train = no ", NO),
    ("any case", "AI-Train=No", NO),
    ("another answer says nothing", "ai-train=maybe", UNSAID),
    ("another answer says nothing", "ai-train", UNSAID),
    ("keys are whole", "no-ai-train=no", UNSAID),
    ("keys are whole", "ai-training=no", UNSAID),
    ("twice: the stricter", "ai-train=yes, ai-train=no", NO),
    ("twice: the stricter", "ai-train=no, ai-train=yes", NO),
    ("empty members", ",,ai-train=no,", NO),
]


@pytest.mark.parametrize(("rule", "value", "said"), CONTENT_SIGNAL)
def test_content_signal(rule: str, value: str, said: bool | None) -> None:
    assert rights.content_signal(value) is said, rule


# (rule of the W3C TDM Reservation Protocol, section "The tdm-reservation Property", value, statement)
RESERVATION = [
    ("1 reserves", "1", NO),
    ("0 does not reserve", "0", YES),
    ("blanks around", " 1 ", NO),
    ("another value counts as absent", "true", UNSAID),
    ("another value counts as absent", "2", UNSAID),
    ("another value counts as absent", "01", UNSAID),
    ("another value counts as absent", "1.0", UNSAID),
    ("another value counts as absent", "-1", UNSAID),
    ("absent", "", UNSAID),
]


@pytest.mark.parametrize(("rule", "value", "said"), RESERVATION)
def test_tdm_reservation(rule: str, value: str, said: bool | None) -> None:
    assert rights.tdm_reservation(value) is said, rule


# (rule, name of the header, its fields, statement)
HEADERS = [
    ("no header", rights.USAGE, [], UNSAID),
    ("attach 2: a dictionary", rights.USAGE, ["train-ai=n"], NO),
    ("attach 2: a dictionary", rights.USAGE, ["train-ai=y"], YES),
    ("RFC 9651 4.2: fields are joined", rights.USAGE, ["search=y", "train-ai=n"], NO),
    ("RFC 9651 4.2: fields are joined", rights.USAGE, ['a="x', 'y", train-ai=n'], NO),
    ("vocab 5.1: the most restrictive", rights.USAGE, ["train-ai=n", "train-ai=y"], NO),
    ("vocab 5.1: the most restrictive", rights.USAGE, ["train-ai=y", "train-ai=n"], NO),
    ("one damaged field", rights.USAGE, ["train-ai=n", "=="], NO),
    ("one field", rights.SIGNAL, ["search=yes, ai-train=no"], NO),
    ("several fields: the stricter", rights.SIGNAL, ["ai-train=yes", "ai-train=no"], NO),
    ("TDMRep, HTTP responses", rights.TDM, ["1"], NO),
    ("TDMRep, HTTP responses", rights.TDM, ["0"], YES),
    ("several fields: the stricter", rights.TDM, ["0", "1"], NO),
]


@pytest.mark.parametrize(("rule", "name", "values", "said"), HEADERS)
def test_headers(rule: str, name: str, values: list[str], said: bool | None) -> None:
    assert rights.statement(name, values) is said, rule


R = 'rel="license"'
T = 'type="application/rsl+xml"'
# (rule, value of a Link header, the RSL licences in it)
LINKS: list[tuple[str, str, list[str]]] = [
    ("RSL 1.0, HTTP Link header", f"<https://a.example/l.xml>; {R}; {T}", ["https://a.example/l.xml"]),
    ("RFC 8288 3: order of parameters", f"</l.xml>; {T}; {R}", ["/l.xml"]),
    ("RFC 8288 3: a token in place of a quoted text", "</l>;rel=license;type=application/rsl+xml", ["/l"]),
    ("RFC 8288 3: blanks", f"  < /l > ;  {R} ;{T}  ", ["/l"]),
    ("RFC 8288 3: names in any case", '</l>; REL="license"; Type="application/rsl+xml"', ["/l"]),
    ("RFC 8288 3.3: several relations", f'</l>; rel="nofollow License"; {T}', ["/l"]),
    ("RFC 8288 3.3: the first rel counts", f'</l>; rel="next"; {R}; {T}', []),
    ("RFC 8288 3.2: another context", f'</l>; {R}; {T}; anchor="/other"', []),
    ("RFC 8288 3: several links", f"</a>; rel=next, </b>; {R}; {T}, </c>; {T}; {R}", ["/b", "/c"]),
    ("RFC 8288 3: a comma in a quoted text", f'</a>; title="x, <y>"; {R}; {T}', ["/a"]),
    ("RFC 8288 3: an escape in a quoted text", f'</a>; title="x\\", </b>; "; {R}; {T}', ["/a"]),
    ("RFC 8288 3: a comma in a target", f"</a,b>; {R}; {T}", ["/a,b"]),
    ("RFC 8288 3.4.2: an empty target", f"<>; {R}; {T}", [""]),
    ("media types in any case, with parameters", f'</l>; {R}; type="Application/RSL+XML; charset=utf-8"', ["/l"]),
    ("another type", f'</l>; {R}; type="text/html"', []),
    ("no type: a licence of another kind", f"<https://creativecommons.org/licenses/by/4.0/>; {R}", []),
    ("another relation", f'</l>; rel="alternate"; {T}', []),
    ("no relation", f"</l>; {T}", []),
    ("no target", f"{R}; {T}", []),
    ("an open target", f"</l; {R}; {T}", []),
    ("an open quoted text", f'</l>; {R}; type="application/rsl+xml', ["/l"]),
    ("empty", "", []),
]


@pytest.mark.parametrize(("rule", "value", "found"), LINKS)
def test_licences_in_link_headers(rule: str, value: str, found: list[str]) -> None:
    assert rights.licences(value) == found, rule


@pytest.mark.parametrize("part", ["<", "<>", '<>;a="', ";a=", '<>;a="\\"', "<>; ", "<a>;b;", "<>;rel"])
def test_a_long_link_header_takes_no_time(part: str) -> None:
    start = time.process_time()
    assert rights.licences(part * 100_000) == []
    assert time.process_time() - start < 0.5


def test_a_long_hostile_value_takes_no_time() -> None:
    for part in ("a=1,", "a;b", '"', "a=(", "train-ai=n,", "=", 'a="\\"'):
        assert rights.content_usage(part * 100_000) is None
    assert rights.content_signal("ai-train=no," * 100_000) is False


# (section of RFC 9309, pattern, URL, whether it matches)
PATTERNS = [
    ("2.2.2 a prefix", "/a", "http://x.example/abc", True),
    ("2.2.2 a prefix", "/a/", "http://x.example/abc", False),
    ("2.2.2 paths are read in their case", "/A", "http://x.example/abc", False),
    ("2.2.2 an empty path", "/", "http://x.example", True),
    ("2.2.2 a query without a path", "/?q", "http://x.example?q=1", True),
    ("2.2.2 octets", "/\u30c4", "http://x.example/%E3%83%84", True),
    ("2.2.2 octets", "/%e3%83%84", "http://x.example/\u30c4", True),
    ("2.2.2 escapes of unreserved characters", "/%61b", "http://x.example/ab", True),
    ("2.2.2 escapes of reserved characters", "/a%2Fb", "http://x.example/a/b", False),
    ("2.2.3 * is any text", "/*.jpg", "http://x.example/a/b.jpg?x", True),
    ("2.2.3 * is any text", "*.jpg", "http://x.example/a/b.jpg", True),
    ("2.2.3 $ is the end", "/*.jpg$", "http://x.example/a/b.jpg?x", False),
    ("2.2.3 $ is the end", "/*.jpg$", "http://x.example/a.jpg.jpg", True),
    ("2.2.3 $ is the end", "/a$", "http://x.example/a", True),
    ("2.2.3 * before the end", "/a*$", "http://x.example/abc", True),
    ("2.2.3 parts do not overlap", "/ab*ba$", "http://x.example/aba", False),
    ("2.2.3 parts in order", "/*b*a", "http://x.example/ab", False),
    ("all paths", "", "http://x.example/a", True),
    ("half a character is one that nobody knows", "/\ud800", "http://x.example/\ud800b", True),
]


@pytest.mark.parametrize(("rule", "pattern", "url", "found"), PATTERNS)
def test_patterns(rule: str, pattern: str, url: str, found: bool) -> None:
    assert matches(spelling(pattern), path_of(url)) is found, rule
