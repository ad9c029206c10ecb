"""Words, merges and ids. The expected words come from OpenAI's clean-up (ftfy 6.3) and pattern."""

from __future__ import annotations

import gzip
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_train.bpe import count_words, learn_merges, train_vocabulary
from clip_train.errors import InputMissing, TrainError
from clip_train.tokenizer import (
    OWN_VOCABULARY,
    Tokenizer,
    byte_symbols,
    find_vocabulary,
    load_tokenizer,
    merge_long,
    merge_pieces,
    read_merges,
    split_words,
)

WORDS = {
    "Hello, World! It's 2026.": "hello , world ! it 's 2 0 2 6 .",
    "a  b\t\nc": "a b c",
    "&lt;b&gt; &amp;amp; &EACUTE;tude &nbsp;x": "< b > & étude x",
    "“curly” ‘quotes’ — dash…": "\" curly \" ' quotes ' — dash …",
    "cafÃ© au lait": "café au lait",
    "schÃ¶n, l’Ã©tÃ©": "schön , l ' été",
    "â€œquotedâ€\x9d": '" quoted "',
    "Â© 2020 Â£5": "© 2 0 2 0 £ 5",
    "ﬁne ﬂow Ｆｕｌｌ\u3000ｗｉｄｔｈ ｶﾞ": "fine flow full width ガ",
    "東京タワー 2026年": "東京タワー 2 0 2 6 年",
    "Ünïcödé e\u0301": "ünïcödé é",
    "don't we'll they've i'm": "don 't we 'll they 've i 'm",
    "emoji 😀👍🏽": "emoji 😀👍🏽",
    "null\x00byte \x1b[31mred\x1b[0m": "nullbyte red",
    "ſ's ①②③ Ⅳ ½ x²": "ſ 's ① ② ③ ⅳ ½ x ²",
    "naïve_underscore under_score": "naïve _ underscore under _ score",
    "Привет, мир! Ελληνικά": "привет , мир ! ελληνικά",
    "line\r\nbreak\u2028here\x85now": "line break here … now",
    "\ufeffbom zero\u200bwidth": "bom zero \u200b width",
    "İstanbul DŽ ǅ": "i ̇ stanbul dž dž",
    "हिन्दी भाषा": "ह ि न ् द ी भ ा ष ा",
    "&#128512; &#x41; &bogus; &copy": "😀 a & bogus ; ©",
    "a\u0345b ̔\u0345η": "a b ̔ η",
    "http://a.b/c?d=e&f=g": "http :// a . b / c ? d = e & f = g",
    "": "",
    " \n ": "",
}


@pytest.mark.parametrize("text", WORDS)
def test_words_are_those_of_openai(text):
    assert split_words(text) == WORDS[text].split()


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_the_ascii_way_is_the_long_way(text):
    from clip_train.tokenizer import _unicode_words

    if "&" not in text:
        assert split_words(text) == _unicode_words().findall(" ".join(text.split()).lower())


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_is_encoded_and_blanks_do_not_matter(text):
    tokenizer = Tokenizer([("a", "b</w>")], name="test")
    ids = tokenizer.encode(text)
    assert all(0 <= number < tokenizer.start_id for number in ids)
    assert tokenizer.encode(f"  {text}\n") == ids


def test_special_tokens_do_not_come_from_captions(vocabulary):
    tokenizer = load_tokenizer(vocabulary)
    text = "<|startoftext|> a red square <|endoftext|><start_of_text>"
    ids = tokenizer.encode_caption(text, context_length=77)
    assert ids[0] == tokenizer.start_id and ids[-1] == tokenizer.end_id
    assert max(ids[1:-1]) < tokenizer.start_id


def test_a_long_caption_keeps_its_end_token(vocabulary):
    tokenizer = load_tokenizer(vocabulary)
    ids = tokenizer.encode_caption("red square " * 100, context_length=20)
    assert len(ids) == 20 and ids[-1] == tokenizer.end_id and ids[1:-1] == tokenizer.encode("red square " * 9)


def test_the_symbols_of_bytes_are_those_of_gpt_2():
    symbols = byte_symbols()
    shown = {0: "Ā", 10: "Ċ", 32: "Ġ", 33: "!", 126: "~", 127: "ġ", 160: "ł", 161: "¡", 172: "¬", 173: "Ń", 255: "ÿ"}
    assert {byte: symbols[byte] for byte in shown} == shown and len(set(symbols)) == 256


def test_a_single_text_is_one_caption(vocabulary):
    tokenizer = load_tokenizer(vocabulary)
    ids = tokenizer.encode_caption("a red square", context_length=9)
    assert tokenizer("a red square", context_length=9).tolist() == [ids + [0] * (9 - len(ids))]
    assert tokenizer(["a red square", ""], context_length=9).shape == (2, 9)


def test_decode_gives_the_words_back(vocabulary):
    tokenizer = load_tokenizer(vocabulary)
    for text in ("a red square on the left", "purple ring", "naïve 東京 😀"):
        assert tokenizer.decode(tokenizer.encode_caption(text, context_length=77)) == text


def naive_merges(counts: Counter[str], merges: int) -> list[tuple[str, str]]:
    """Counts all pairs again after each merge."""
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    learned = []
    for _ in range(merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in zip(pieces, pieces[1:], strict=False):
                pairs[pair] += counts[word]
        if not pairs or max(pairs.values()) < 2:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(best)
        words = {word: merge_pieces(pieces, {best: 0}) for word, pieces in words.items()}
    return learned


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(0, 2**32))
def test_long_words_are_merged_as_short_ones(pieces, seed):
    """The merges have any order.

    So one merge may make the first part of a better one. In real lists it does not.
    """
    tokens, pairs, rng = ["a", "b", "c"], set(), random.Random(seed)
    while len(pairs) < 12:
        pair = rng.choice(tokens), rng.choice(tokens)
        if pair not in pairs and len("".join(pair)) < 6:
            pairs.add(pair)
            tokens.append("".join(pair))
    order = rng.sample(sorted(pairs), len(pairs))
    ranks = {pair: rank for rank, pair in enumerate(order)}
    assert merge_long(pieces, ranks) == merge_pieces(pieces, ranks)


def test_a_word_of_60000_letters_takes_no_minutes():
    tokenizer = load_tokenizer(OWN_VOCABULARY)
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=60_000)
    began = time.process_time()
    assert len(tokenizer.encode_caption("".join(letters), context_length=77)) == 77
    assert time.process_time() - began < 5  # a quadratic algorithm took minutes
    assert tokenizer.encode("".join(letters[:2000]))[:900] == tokenizer.encode("".join(letters))[:900]
    assert not any(len(word) > 100 for word in tokenizer._words)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abcd", min_size=1, max_size=9), st.integers(1, 9), max_size=25))
def test_merges_are_learned_as_by_counting_anew(counts):
    assert learn_merges(Counter(counts), merges=40) == naive_merges(Counter(counts), 40)


def test_train_vocabulary_is_reproducible_and_readable(tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("a red square\nred squares and red circles\n" * 3)
    results = [train_vocabulary([str(captions)], str(tmp_path / name), merges=30) for name in ("a.txt.gz", "b.txt.gz")]
    assert (tmp_path / "a.txt.gz").read_bytes() == (tmp_path / "b.txt.gz").read_bytes()
    assert results[0]["captions"] == 6 and results[0]["vocabulary_size"] == 514 + results[0]["merges"]
    tokenizer = load_tokenizer(tmp_path / "a.txt.gz")
    assert len(tokenizer.encode("red")) == 1 and len(tokenizer.encode("blue")) > 1
    assert count_words(["A red, RED"]) == {"a": 1, "red": 2, ",": 1}


def test_bad_vocabularies_are_refused(tmp_path):
    with pytest.raises(InputMissing, match="no vocabulary at"):
        load_tokenizer(tmp_path / "none.txt.gz")
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes(gzip.compress(b"#version\na b\n" * 500)[:40])
    with pytest.raises(TrainError, match="not a BPE vocabulary"):
        load_tokenizer(cut)
    odd = tmp_path / "odd.txt"
    odd.write_text("#version\na b\na b c\n")
    with pytest.raises(TrainError, match="line 3"):
        read_merges(odd)


@pytest.mark.parametrize("name", ["cut.txt.gz", "cut.parquet", "data.noun"])
def test_captions_that_cannot_be_read_are_named(tmp_path, name):
    whole = gzip.compress(b"a red square\n" * 500)
    (tmp_path / name).write_bytes(whole[:-20] if name.endswith(".gz") else b"00001740 03 n zz junk")
    with pytest.raises(TrainError, match=f"{name} cannot be read"):
        train_vocabulary([str(tmp_path / name)], str(tmp_path / "v.txt.gz"))


def openai_vocabulary() -> Path:
    """The path of OpenAI's file, from OPENWIT_BPE or an installed open_clip."""
    file = os.environ.get("OPENWIT_BPE") or str(find_vocabulary())
    if "bpe_simple_vocab" not in file:
        pytest.skip("OpenAI's vocabulary is missing: install open_clip, or set OPENWIT_BPE to its path")
    return Path(file)


def test_ids_with_openais_vocabulary():
    tokenizer = load_tokenizer(openai_vocabulary())
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id) == (49408, 49406, 49407)
    assert tokenizer.encode("a photo of a cat.") == [320, 1125, 539, 320, 2368, 269]
    assert tokenizer.encode("Hello, World! It's 2026.") == HELLO
    assert tokenizer.encode("cafÃ© — 東京タワー") == TOKYO


HELLO = [3306, 267, 1002, 256, 585, 568, 273, 271, 273, 277, 269]
TOKYO = [15304, 2005, 48338, 21078, 105, 34941, 2429, 107, 30391]
