"""Words of texts without blanks: literals of each script, and lists of real sentences."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.text.normalize import normalize_text
from queries import bigrams, build, ngrams, rules, segment
from queries.bigrams import Vocabulary
from queries.options import Options
from tests.places import DATA

SENTENCES = DATA / "lid/lingua_testdata.parquet"


def words(text: str, segmenter: str, language: str) -> list[str]:
    """The tokens of one text; "-" for one that is no word."""
    found = ngrams.tokenize(pa.array([text], pa.large_string()), segmenter=segmenter, language=language)
    return [found.words[number].as_py() if number >= 0 else "-" for number in found.ids.tolist()]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("zh", "我喜欢北京的大学，iPhone 15手机。", "我 喜欢 北京 的 大学 iPhone - 手机"),
        ("zh", "𠮷野家", "𠮷 野家"),  # beyond the Basic Multilingual Plane
        ("ja", "今日は東京で「ラーメン」を食べる", "今日 は 東京 で ラーメン を 食べる"),
        ("th", "วันนี้อากาศดีมาก", "วัน นี้ อากาศ ดี มาก"),
        ("th", "โรง\u200bเรียน", "โรง เรียน"),  # the writer has set the border
        ("km", "ប្រទេសកម្ពុជា", "ប្រទេស កម្ពុជា"),
        ("lo", "ພາສາລາວ", "ພາສາ ລາວ"),
        ("my", "စကားသည်", "စကား သည်"),
        ("bo", "བོད་སྐད", "བོད སྐད"),  # syllables
    ],
)
def test_icu_finds_the_words(language: str, text: str, expected: str) -> None:
    pytest.importorskip("icu4py")
    assert words(text, "icu", language) == expected.split()


def test_blanks_of_another_program_are_the_borders() -> None:
    assert words("北京大学 的 自行车 停在 New York, C++ 3月", "blanks", "zh") == [
        *("北京大学", "的", "自行车", "停在", "New", "York", "C", "-", "-", "-", "月")
    ]


LATIN = st.text(st.sampled_from("aB é-'.,+3№\t\u00ad\u200d"), max_size=20)


@settings(deadline=None)
@given(st.lists(LATIN, min_size=1, max_size=4))
def test_texts_with_blanks_give_the_same_counts(texts: list[str]) -> None:
    array = pa.array(texts, pa.large_string())
    plain, apart = ngrams.tokenize(array), ngrams.tokenize(array, segmenter="blanks")
    order = [("word", "ascending"), ("count", "ascending")]
    assert ngrams.count_words(plain).sort_by(order).equals(ngrams.count_words(apart).sort_by(order))
    vocabulary = pc.unique(plain.words)
    for one, other in zip(ngrams.count_pairs(plain, vocabulary), ngrams.count_pairs(apart, vocabulary), strict=True):
        assert one.tolist() == other.tolist()


@settings(deadline=None)
@given(st.text(st.sampled_from("北京大学ラーメンกาดีんx 3。"), max_size=20))
def test_no_letter_is_lost(text: str) -> None:
    for segmenter in ("blanks", *(["icu"] if segment.is_installed() else [])):
        found, _ = segment.tokens(pa.array([text], pa.large_string()), segmenter, "zh")
        assert "".join(found.to_pylist()) == normalize_text(text).replace(" ", "")


def test_pairs_are_pairs_of_words() -> None:
    tokens = ngrams.tokenize(pa.array(["コーヒー カップ と New York"], pa.large_string()), segmenter="blanks")
    counted = ngrams.count_words(tokens).select(["word", "count"]).rename_columns(["query", "count"])
    vocabulary = Vocabulary.of(counted, min_count=1)
    pairs, _ = ngrams.count_pairs(tokens, vocabulary.forms)
    assert set(vocabulary.texts(pairs).to_pylist()) == {"コーヒーカップ", "カップと", "と New", "New York"}


def test_a_letter_alone_is_no_word_unless_it_is_han() -> None:
    table = pa.table([["の", "ー", "ก", "ดี", "猫", "a"], [5] * 6], schema=bigrams.COUNTED)
    kept, dropped = rules.usable_words(table)
    assert kept["query"].to_pylist() == ["ดี", "猫", "a"] and dropped == {"single_letter": 3}


def test_a_word_that_is_mostly_a_part_of_other_words_is_dropped(tmp_path: Path) -> None:
    counts = {"กา": 10, "การ": 500, "国": 10, "中国": 60, "国家": 30, "猫": 50, "猫咪": 20, "dog": 5, "dogs": 900}
    table = pa.table([list(counts), list(counts.values())], schema=bigrams.COUNTED)
    kept, dropped = rules.without_parts(table)
    assert kept["query"].to_pylist() == ["การ", "中国", "国家", "猫", "猫咪", "dog", "dogs"] and dropped == 2
    assert rules.without_parts(table.slice(7))[1] == 0
    (tmp_path / "counts.tsv").write_text("".join(f"{word}\t{count}\n" for word, count in counts.items()))
    options = Options(output=str(tmp_path / "out"), counts=(str(tmp_path / "counts.tsv"),), language="zh", min_count=1)
    made = build.build(options, quiet=True)
    assert "国" not in made.open().queries.to_pylist() and made.info["ledger"]["words"]["part_of_words"] == 2


@pytest.mark.parametrize("language", ["ja", "zh-yue", "zh-hans", "th", "km"])
def test_without_icu_such_a_language_is_refused(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(segment, "is_installed", lambda: False)
    (tmp_path / "a.txt").write_text("猫\n")
    arguments = ["--output", str(tmp_path / "out"), "--language", language, "--text", str(tmp_path / "a.txt")]
    assert build.main(arguments) == 2
    line = capsys.readouterr().err.strip()
    assert f"--language {language} " in line and "pip install icu4py" in line and "\n" not in line
    assert not (tmp_path / "out").exists()
    for more in (["--segmenter", "blanks"], ["--profile", "metaclip1"], ["--language", "en"]):
        build.parse([*arguments, *more])
    build.parse(arguments[:-2])  # ready counts and titles need no segmentation


def test_texts_of_another_language_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("自行车停在街上\n" * 20)
    made = build.build(Options(output=str(tmp_path / "out"), text=(str(tmp_path / "a.txt"),), min_count=3), quiet=True)
    assert [line for line in made.info["warnings"] if "100% of the words are single letters" in line]


def test_a_list_of_real_thai_sentences(tmp_path: Path) -> None:
    pytest.importorskip("icu4py")
    if not SENTENCES.exists():
        pytest.skip(f"no {SENTENCES}: set OPENWIT_DATA to the data folder")
    table = pq.read_table(SENTENCES, filters=[("lang", "=", "th"), ("kind", "=", "sentences")])
    (tmp_path / "th.txt").write_text("\n".join(table["text"].to_pylist()[:400]))
    options = Options(
        output=str(tmp_path / "out"), text=(str(tmp_path / "th.txt"),), language="th", min_count=5, min_articles=2
    )
    made = build.build(options, quiet=True)
    found = made.open().table
    listed = found.filter(pc.equal(found["source"], "word"))["query"].to_pylist()
    assert len(listed) > 300 and {"โครงการ", "ประเทศ", "นักเรียน"} <= set(listed)  # project, country, pupil
    assert not [word for word in listed if len(word) == 1]
    assert made.info["versions"]["icu"] == segment.version()
