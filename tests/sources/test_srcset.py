"""Which candidate of a srcset is taken: a table by the steps of the HTML standard's "parse a srcset attribute"."""

import pytest

from pipeline.sources.html import largest_candidate

ODD_BLANKS = "\x01\x0b\xa0\u1680\u2000\u2009\u200d\u202f\u3000\ufeff"

SPLITTING = {
    "": "",
    ",": "",
    ",,,": "",
    "  a  1x  ": "a",
    "\t\ta\t\t1x\t\t": "a",
    "\n\na\n\n1x\n\n": "a",
    "\f\fa\f\f1x\f\f": "a",
    "\r\ra\r\r1x\r\r": "a",
    "\x0b\x0ba\x0b\x0b1x": "\x0b\x0ba\x0b\x0b1x",  # no white space of HTML, but a part of the URL
    "\x0ea\x0e1x\x0e": "\x0ea\x0e1x\x0e",
    "\xa0a": "\xa0a",
    "a\xa0": "a\xa0",
    "a": "a",
    "a ": "a",
    "a ,": "a",
    "a,": "a",
    "a, ": "a",
    "a,,,": "a",
    "a,, , ": "a",
    " a": "a",
    ",,,a": "a",
    " , ,,a": "a",
    "a,b 2x, c": "a,b",
    "data:image/gif;base64,R0= 1w, b.jpg 2w": "b.jpg",
    "https://x/w_100,h_100/a 100w, https://x/w_200,h_200/a 200w": "https://x/w_200,h_200/a",
}
TOKENS = {
    "a 1x": "a",
    "a 1x ": "a",
    "a 1x,": "a",
    "a ( , b 1x, ), c": "c",
    "a ((( , b 1x, ), c": "c",
    "a [ , b 1x, ], c": "b",
    "a { , b 1x, }, c": "b",
    'a " , b 1x, ", c': "b",
    "a \\,b;\\,c, d": "b;\\,c",
    "a, b (": "a",
    "a, b (  ": "a",
    "a, b (,": "a",
    "a, b (x": "a",
    "a, b ()": "a",
    "a (, b": "",
    "a /*, b, c */": "b",
    "a //, b": "b",
    "a 1x 1x ( , b 1x, ), c": "c",
    "a (max-width: 300px, x) 9000w, b 800w": "b",
}
VALID = "1x 1e0x 1E0x 1e-1x 1.5e1x 0x -0x 1.0x .5x .5e1x 1w 007w".split() + ["1w 1h", "1h 1w"]
INVALID = """foo
-1x 1.x .x -.x -x +1x 1X Infinityx NaNx 0x1x 1e1.5x -1w 1.0w 1e0w 1www +1w 1W 0w Infinityw NaNw 0x1w w x h
1h""".split()
INVALID += """foo foo|foo 1x|foo 1x foo|foo 1w|1x 1x|1w 1w|1w 1x|1x 1w|1h 1h|1h 1x|1h 1w 1x|1x 1w 1h|1h foo|foo 1h
1x -0x|1w -1w|1w 1.0w|1w 1e0w|1w 1www|1w +1w|1w 1W|1x 1.5e1x|1x 1.0x|1w 0h|1w -1h|1w 1.0h|1w 1e0h|1w 1hhh|1w +1h|1w 1H
1w NaNh|1w Infinityh""".replace("\n", "|").split("|")
INVALID += [f"1{blank}{kind}" for blank in ODD_BLANKS for kind in "wx"]
INVALID += [f"{blank}1{kind}" for blank in ODD_BLANKS for kind in "wx"]

CASES = SPLITTING | TOKENS | {f"a {good}": "a" for good in VALID} | {f"a {bad}": "" for bad in INVALID}


@pytest.mark.parametrize("srcset", CASES)
def test_candidates(srcset: str) -> None:
    assert largest_candidate(srcset) == CASES[srcset]


@pytest.mark.parametrize(
    ("srcset", "best"),
    [
        (" a 100w , b 200w ,c 50w", "b"),
        ("a 1x,b 1.5x", "b"),
        ("a .5x, b .25x", "a"),
        ("a, b .9x", "a"),
        ("a 1.5e1x, b 2x", "a"),
        ("a 2x, b 2x", "a"),
        ("a junk, b 0.5x", "b"),
        ("a 1" + "0" * 50 + "w, b 2w", "a"),
        ("a 1e999x, b 2x", "a"),
        ("a 100w 50h, b 99w", "a"),
    ],
)
def test_the_largest_one_is_taken(srcset: str, best: str) -> None:
    assert largest_candidate(srcset) == best
