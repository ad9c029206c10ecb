"""The default list: the rules for its sources on small literals, and the lists that come out of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow.compute as pc
import pytest

from pipeline.text.normalize import normalize_text
from queries import load
from queries.load import FLAGS
from tests.places import ROOT
from tools.default_list import flags, packages, sources, titles, words
from tools.default_list.packages import PACKAGES, PackageError
from tools.default_list.wordnet_files import Synset, read

DATA = ROOT / "queries" / "data"


def synset(*lemmas: str, part: str = "noun", file: int = 6, usage: tuple[str, ...] = (), gloss: str = "") -> Synset:
    return Synset(part, file, lemmas, usage, gloss)


def test_synsets_with_usage_and_gloss(tmp_path: Path) -> None:
    lines = [
        "  1 the licence",
        '00001740 06 n 02 golden_retriever 0 dog(p) 0 001 ;u 00002000 n 0000 | a dog; "a good dog"',
        "00002000 10 n 01 ethnic_slur 0 000 | a slur",
    ]
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("\n".join(lines) if part == "noun" else "")
    assert read(tmp_path) == [
        Synset("noun", 6, ("golden retriever", "dog"), ("ethnic slur",), 'a dog; "a good dog"'),
        Synset("noun", 10, ("ethnic slur",), (), "a slur"),
    ]


@pytest.mark.parametrize(
    ("packed", "found"),
    [
        ("dog,cat", ["cat", "dog"]),
        ("ca0do1;t,r,;g,", ["car", "cat", "dog"]),  # a reference counts from the node it stands in
        ("d0;!og0;!s", ["d", "dog", "dogs"]),  # "!": the letters so far are a title, too
        ("0:2;do0ca1;x,;g,t,", ["cax", "dog", "dot"]),  # a symbol stands for the number of a node
    ],
)
def test_packed_titles(packed: str, found: list[str]) -> None:
    assert titles.unpack(packed) == found


@pytest.mark.parametrize(
    ("word", "plural"),
    [("cat", "cats"), ("box", "boxes"), ("knife", "knives"), ("wolf", "wolves"), ("berry", "berries"), ("toy", "toys")]
    + [("man", "men"), ("fireman", "firemen"), ("goose", "geese"), ("tomato", "tomatoes"), ("photo", "photos")]
    + [("catfish", ""), ("sheep", ""), ("glass", "glasses"), ("rice", "")],
)
def test_plurals(word: str, plural: str) -> None:
    known = "cats boxes knives wolves berries toys men firemen geese tomatoes photos glasses catfishes".split()
    assert sources.plural_of(word, set(known)) == ([plural] if plural else [])


def test_plurals_are_for_things_that_can_be_seen() -> None:
    nouns = [
        synset("golden retriever", "retriever", "big red dog", file=5),
        synset("Lake Superior", file=17),
        synset("rose family", file=20),
        synset("state machine", file=9),
    ]
    assert sources.plurals(nouns, {"retrievers", "families", "machines", "dogs"}) == ["golden retrievers"]


def test_bigrams_of_glosses_have_neither_function_words_nor_rare_uses() -> None:
    gloss = "such as a wooden box of her don't box; the wooden box burns oil"
    parts = sources.Counter
    uses = {
        "wooden": parts(adj=9),
        "box": parts(noun=9),
        "burns": parts(verb=9),
        "oil": parts(noun=9),
        "don": parts(noun=1),
    }
    found = sources.gloss_bigrams([synset("x", gloss=gloss)] * 3, uses, min_count=3, min_npmi=0.1)
    assert found == {"wooden box": 6}


def test_words_are_those_of_a_dictionary_or_names() -> None:
    counts = {
        "dog": 900,
        "receving": 900,
        "obama": 900,
        "nbsp": 900,
        "ofthe": 900,
        "und": 900,
        "rare": 4,
        "bono's": 900,
    }
    counts |= {"mp3": 900, "tiny": 9}
    kept, names, dropped = words.choose(
        counts, {"und": 90_000}, dictionary={"dog", "rare"}, names={"obama", "und", "nbsp", "ofthe", "bono's", "tiny"}
    )
    assert (kept, names) == ({"dog": 900, "rare": 4}, {"obama": 900})
    assert dropped == {"no_word": 1, "markup": 1, "run_together": 1, "unknown": 2, "rare_name": 1, "foreign": 1}


def test_names_of_people_are_found_among_titles() -> None:
    found = words.people(["timothy chalamet", "body dysmorphic disorder", "madonna"], {"timothy"})
    assert found == ["timothy chalamet"] and words.parts(found) == {"timothy", "chalamet"}


def test_names_with_accents_are_there_without_them_too() -> None:
    assert sources.without_accents(["Bhāgalpur", "Oslo"]) == ["Bhāgalpur", "Bhagalpur", "Oslo"]


def test_flags_by_marked_senses_ratings_and_decisions(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/index.js").write_text(
        "export const cuss = {\n  zzfuck: 2,\n  'zz slur': 2,\n  kumquat: 2,\n  mild: 1,\n}\n"
    )
    (tmp_path / "package/en.json").write_text('["zzporn", "known"]')
    synsets = [synset("wog", usage=("ethnic slur",)), synset("spade", usage=("ethnic slur",)), synset("spade")]
    terms = flags.lexicon(synsets, tmp_path, tmp_path, {"kumquat", "known"})
    wanted = {"wog": "slur", "zzfuck": "explicit", "zz slur": "slur", "zzporn": "explicit", "porn": "explicit"}
    assert wanted.items() <= terms.items()
    assert not {"spade", "kumquat", "mild", "known", "nude", "penis"} & set(terms)
    assert flags.flag_of("a wog's tale", terms, whole=False) == ""
    assert flags.flag_of("golden age of porn", terms, whole=False) == "explicit"
    assert (
        flags.flag_of("wild ass", terms, whole=False) == "" and flags.flag_of("ass", terms, whole=False) == "explicit"
    )


def test_a_file_other_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / PACKAGES[0].file).write_bytes(b"other")
    with pytest.raises(PackageError, match="has the SHA-256"):
        packages.unpack_all(tmp_path)


def test_versions_are_pinned_and_named_in_the_readme() -> None:
    readme = (DATA / "README.md").read_text()
    for package in PACKAGES:
        assert len(package.sha256) == 64 and f"{package.name} {package.version}" in readme, package.name


def test_the_shipped_lists() -> None:
    report = json.loads((DATA / "default.json").read_text())
    tables = {
        name: load.load_queries(str(DATA / f"{name}.parquet")).table for name in ("default", "flagged", "benchmarks")
    }
    listed = tables["default"]
    assert len(listed) == report["queries"] and (DATA / "default.parquet").stat().st_size < 4 << 20
    assert set(listed["language"].to_pylist()) == {"en"} and set(listed["flags"].to_pylist()) == {"", "name"}
    by_source = dict(zip(*(pc.value_counts(listed["source"]).field(at).to_pylist() for at in (0, 1)), strict=True))
    assert by_source == {name: row["kept"] for name, row in report["sources"].items() if row["kept"]}
    forms = {
        name: {normalize_text(query, "fold") for query in table["query"].to_pylist()} for name, table in tables.items()
    }
    assert len(forms["default"]) == len(listed)  # none is there twice under folding
    assert not forms["default"] & forms["flagged"] and not forms["default"] & forms["benchmarks"]
    assert set(tables["flagged"]["flags"].to_pylist()) == {"slur", "explicit"} <= set(FLAGS)
    assert set(tables["benchmarks"]["flags"].to_pylist()) == {"benchmark"}
    assert {"golden retriever", "golden retrievers", "new york", "northern cardinal", "leonberger", "7"} <= forms[
        "default"
    ]
    assert not {"nbsp", "href", "jpg", "www", "receving", "hahahahahaha", "ofthe", "porn"} & forms["default"]


def test_the_readme_names_the_shipped_lists() -> None:
    readme = (DATA / "README.md").read_text()
    listed = load.load_queries(load.default_list())
    assert listed.digest in readme and f"{len(listed):,}" in readme
    sha256 = hashlib.sha256((DATA / "default.parquet").read_bytes()).hexdigest()
    assert sha256 in readme  # the command gives it again, byte for byte
