"""Articles from dumps, real and broken."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from queries import streams, wikipedia
from queries.wikipedia import Page
from tests.places import DATA


def read(path: Path) -> tuple[list[Page], Counter[str]]:
    tally: Counter[str] = Counter()
    kind = wikipedia.kind_of(str(path))
    return [page for piece in streams.pieces(str(path)) for page in wikipedia.pages(piece, kind, tally)], tally


def xml_page(title: str, text: str, more: str = "<ns>0</ns>") -> str:
    return f'<page><title>{title}</title>{more}<revision><text xml:space="preserve">{text}</text></revision></page>\n'


def test_xml(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    path.write_text(
        '<mediawiki xml:lang="nb"><siteinfo><dbname>nowiki</dbname></siteinfo>\n'
        + xml_page("AT&amp;T", "'''AT&amp;T''' is a [[telephone|phone]] company.{{Infobox|a=b}}")
        + xml_page("Kitty", "#REDIRECT [[Cat]]", '<ns>0</ns><redirect title="Cat" />')
        + xml_page("Talk:Cat", "mine", "<ns>1</ns>")
        + "<page><ns>0</ns><text>no title</text></page>"
        + "<page><title>Cut</title><ns>0</ns><revision><text>it ends"
    )
    assert wikipedia.kind_of(str(path)) == "xml"
    assert wikipedia.languages_of(str(path)) == ["no", "nb"]
    pages, tally = read(path)
    assert [(page.title, page.text.strip(), page.target) for page in pages] == [
        ("AT&T", "AT&T  is a phone company.", ""),
        ("Kitty", "", "Cat"),
    ]
    assert tally == {
        "articles": 1,
        "redirects": 1,
        "page_of_other_namespace": 1,
        "page_without_title": 1,
        "page_cut": 1,
    }


def test_cirrus(tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    page = {
        "title": "Cat",
        "text": "The cat is small.",
        "namespace": 0,
        "language": "en",
        "wiki": "enwiki",
        "incoming_links": 7,
        "redirect": [{"namespace": 0, "title": "Kitty"}, {"namespace": 1, "title": "Talk"}],
        "source_text": "'''Cat'''",
    }
    lines = ['{"index":{"_id":"1"}}', json.dumps(page), '{"index":{"_id":"2"}}', '{"title": "Dog", "te', "[]"]
    lines += [json.dumps({"title": "Talk:Cat", "namespace": 1}), json.dumps({"text": "no title"}), ""]
    path.write_text("\n".join(lines))
    assert wikipedia.kind_of(str(path)) == "cirrus"
    assert wikipedia.languages_of(str(path)) == ["en", "en"]
    pages, tally = read(path)
    assert pages == [Page("Cat", "The cat is small.", links=7), Page("Kitty", target="Cat")]
    assert tally == {"articles": 1, "line_malformed": 2, "page_of_other_namespace": 1, "page_without_title": 1}


def test_a_page_that_the_parser_chokes_on_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dump.xml"
    path.write_text(
        "<mediawiki>" + xml_page("Deep", "{{" * 20_000) + xml_page("Long", "x" * 2_000) + xml_page("A", "a")
    )
    monkeypatch.setattr(wikipedia, "LONGEST", 1_500)
    pages, tally = read(path)
    assert "A" in [page.title for page in pages]
    assert tally["wikitext_unparsed"] + tally["articles"] == 3 and tally["wikitext_unparsed"] >= 2


@pytest.mark.parametrize(
    ("source", "plain"),
    [
        ("a [[File:x.jpg|thumb|not [[seen]]]] b", "a b"),
        ("[[Category:Cats]] [[fr:Chat]] [[Alien: Covenant]]", "Alien: Covenant"),
        ("one<ref>two</ref> three<ref name=x /> <math>x^2</math>four", "one three four"),
        ("{| class=wikitable\n|-\n| cell\n|}\nafter", "after"),
        ("== Head ==\n* item one\n# item ''two''", "Head item one item two"),
        ("see [http://example.org the site] or http://example.org/x &amp; go&nbsp;on", "see the site or & go\xa0on"),
        ("<div>in <b>bold</b></div><!-- no -->{{t|{{u}}}}__TOC__", "in bold"),
        ("unclosed {{ and [[ and ''' here", "unclosed and and here"),
    ],
)
def test_wikitext_becomes_what_a_reader_sees(source: str, plain: str) -> None:
    assert " ".join(wikipedia.plain_text(source).split(" ")).split() == plain.replace("\xa0", " ").split()


def test_real_dumps() -> None:
    folder = DATA / "wikitext"
    if not folder.is_dir():
        pytest.skip(f"no dumps in {folder}: set OPENWIT_DATA to the data folder")
    pages, tally = read(folder / "enwiki-table-markup.xml.bz2")
    assert tally == {"articles": 5}
    text = " ".join(page.text for page in pages)
    assert "Academy Award for Best Production Design" in text
    assert "{|" not in text and "[[" not in text and "'''" not in text and "style=" not in text
    pages, tally = read(folder / "bgwiki-latest-pages-articles-shortened.xml.bz2")  # in UTF-16
    assert tally == {"articles": 1, "page_of_other_namespace": 2}
    assert "Григорианският календар" in pages[0].text
