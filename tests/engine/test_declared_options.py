"""Declared options: one declaration gives ranges, help, command line, recipe file and the checks of the Python API."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.engine import checks, recipe
from pipeline.engine.cli import MissingInput, UsageError
from pipeline.engine.command_line import CommandLine
from pipeline.engine.options import REQUIRED, deciding, declared, option, validate, within, words


def split(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(given.split(",")) if isinstance(given, str) else given


@dataclasses.dataclass(frozen=True, kw_only=True)
class First:
    title: ClassVar[str] = ""

    name: str = option(REQUIRED, help="of the thing", check=checks.not_empty)
    things: tuple[str, ...] = option((), help="files", check=checks.readable_file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Second:
    title: ClassVar[str] = "second"

    cap: int = option(5, help="most rows", unit="rows", within="[1, inf)")
    share: float | None = option(None, help="of 100%", default_text="all", within="(0, 1]")
    weight: float = option(1.5, help="any number")
    mode: str = option("files", help="how", choices=("files", "shuffle"))
    codes: tuple[str, ...] = option((), help="codes", parse=split)
    keep: bool = option(True, flag="--no-keep", help="keep nothing")
    loud: bool = option(False, help="say more", steers=True)
    beam: tuple[str, ...] = option((), flag=(), help="others' flags", steers=True)

    @staticmethod
    def check_together(options: Any) -> None:
        if options.cap == 7 and not options.keep:
            raise UsageError("--cap 7: must not stand beside --no-keep")


@dataclasses.dataclass(frozen=True)
class Both(Second, First):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    title: ClassVar[str] = "this command"

    config: str | None = option(None, help="recipe", steers=True)


LINE = CommandLine(
    program="toy",
    script="toy",
    description="A toy.",
    version="1",
    options=Both,
    groups=(First, Second),
    how=Show,
    others=lambda: ["--engine_port"],
)


def parse(*argv: str) -> Both:
    return LINE.parse(["--name", "x", *argv])[0]


# ----------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "said"),
    [
        ("[1, inf)", [1, 10**30], [0, -1, math.nan, math.inf], "of at least 1"),
        ("(0, 1]", [1e-9, 1], [0, 1.1, math.nan], "over 0 and at most 1"),
        ("[0, 1)", [0, 0.99], [1, -0.1], "of at least 0 and below 1"),
        ("[0, 2^64)", [0, 2**64 - 1], [2**64, -1], "of at least 0 and below 2^64"),
    ],
)
def test_intervals(interval: str, inside: list[float], outside: list[float], said: str) -> None:
    assert all(within(value, interval) for value in inside)
    assert not any(within(value, interval) for value in outside)
    assert words(interval) == said


# ------------------------------------------------------------------------------------------------------- three ways in

REFUSED: list[tuple[str, Any, str, str]] = [
    ("cap", 0, "0", "must be a whole number of at least 1"),
    ("cap", 5.5, "5.5", "must be a whole number of at least 1"),
    ("cap", "five", "five", "must be a whole number of at least 1"),
    ("share", 1.5, "1.5", "must be a number over 0 and at most 1"),
    ("share", math.nan, "nan", "must be a number over 0 and at most 1"),
    ("weight", math.inf, "inf", "must be a number"),
    ("mode", "shufle", "shufle", "must be one of files, shuffle; did you mean shuffle?"),
    ("name", " ", " ", "must not be empty"),
]


@pytest.mark.parametrize(("field", "value", "shown", "rule"), REFUSED)
def test_a_value_is_refused_in_the_same_words_from_everywhere(
    field: str, value: Any, shown: str, rule: str, tmp_path: Path
) -> None:
    said = f"--{field} {shown}: {rule}"
    with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
        validate(Both(**{"name": "x", field: value}))
    for argv in ([f"--{field}", str(value)], [f"--{field}={value}"]):
        with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
            parse(*argv)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({field: value}))
    argv = ["--config", str(file)] + (["--name", "x"] if field != "name" else [])
    with pytest.raises(UsageError, match=f"^{re.escape(f'{said} ({field} in {file})')}$"):
        LINE.parse(argv)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("cap", "5", "--cap 5: must be a whole number"),
        ("cap", True, "--cap True: must be a whole number"),
        ("cap", None, "--cap None: must be a whole number"),
        ("weight", "1", "--weight 1: must be a number"),
        ("keep", 1, "--no-keep 1: must be true or false"),
        ("things", "a", "--things a: must be a list of texts"),
        ("things", ("a", 5), "--things a 5: must be a list of texts"),
        ("codes", 5, "--codes 5: must be a list of texts"),
        ("name", Path("x"), "--name x: must be a text"),
        ("name", "a\0b", "--name a\ufffdb: must not contain a zero byte"),
        ("mode", ["files"], "--mode files: must be one of files, shuffle"),
    ],
)
def test_a_value_of_another_type_is_refused(field: str, value: Any, rule: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(rule)}"):
        validate(Both(**{"name": "x", field: value}))


def test_values_are_parsed_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('name = "x"\ncodes = "a,b"\ncap = 9\nkeep = false\nshare = 1\n')
    from_file = LINE.parse(["--config", str(file)])[0]
    assert from_file == parse("--codes", "a,b", "--cap", "9", "--no-keep", "--share=1")
    assert from_file == validate(Both(name="x", codes=["a", "b"], cap=9, keep=False, share=1))  # type: ignore[arg-type]


def test_what_concerns_several_fields_is_checked() -> None:
    with pytest.raises(UsageError, match="^--cap 7: must not stand beside --no-keep"):
        validate(Both(name="x", cap=7, keep=False))


def test_the_element_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("")
    with pytest.raises(MissingInput, match=rf"^--things {tmp_path}/gone: no such file$"):
        parse("--things", str(tmp_path / "here"), str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=rf"^--things {tmp_path}: must be a file$"):
        parse("--things", str(tmp_path))


def test_what_is_shown_of_a_value_is_one_short_line() -> None:
    with pytest.raises(UsageError, match="^--mode a b\ufffd\\[31m: must"):
        parse("--mode", "a\nb\x1b[31m")
    with pytest.raises(UsageError, match=r"^--mode x{100}\.\.\.: must"):
        parse("--mode", "x" * 5000)


# ---------------------------------------------------------------------------------------------------- the command line


def test_a_list_grows_where_its_flag_is_repeated(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).write_text("")
    assert parse("--things", paths[0], paths[1], "--things", paths[2]).things == tuple(paths)


def test_flags_of_others_go_through_and_no_abbreviation_does() -> None:
    assert parse("--engine_port=1", "--loud").beam == ("--engine_port=1",)
    with pytest.raises(UsageError, match="^unknown flag --mod: did you mean --mode"):
        parse("--mod", "files")


def test_our_values_are_refused_before_an_engine_is_asked_for_its_flags() -> None:
    def never() -> list[str]:
        raise AssertionError("asked")

    with pytest.raises(UsageError, match="^--cap 0"):
        dataclasses.replace(LINE, others=never).parse(["--name", "x", "--cap", "0", "--engine_port=1"])


def test_what_is_missing_is_named_with_its_flag() -> None:
    with pytest.raises(UsageError, match=r"^--name is missing: of the thing \(see toy --help\)$"):
        LINE.parse([])
    with pytest.raises(UsageError, match="^unknown flag --nam: did you mean --name"):
        LINE.parse(["--nam", "x"])


def test_the_help_says_unit_range_and_default() -> None:
    said = " ".join(LINE.parser().format_help().split())
    assert "--cap N most rows (rows; at least 1; default: 5)" in said
    assert "--share X of 100% (over 0 and at most 1; default: all)" in said
    assert "--name NAME of the thing (required)" in said
    assert "--mode {files,shuffle} how (default: files)" in said
    assert "--beam" not in said
    headings = [line for line in LINE.parser().format_help().splitlines() if line.endswith(":")]
    assert headings[-2:] == ["second:", "this command:"]


# -------------------------------------------------------------------------------------------------------- recipe files


def recipe_values(tmp_path: Path, text: str, suffix: str = "yaml") -> dict[str, Any]:
    path = tmp_path / f"recipe.{suffix}"
    path.write_text(text)
    return recipe.read(str(path), Both)


def test_yaml_is_read_as_yaml_1_2(tmp_path: Path) -> None:
    text = (
        "cap: 20\nshare: .5\nweight: 1e3\nkeep: false\ncodes: [no, 'yes', on, 12:30, 2026-01-01, 0x1f]\nname: 1_000\n"
    )
    assert recipe_values(tmp_path, text) == {
        "cap": 20,
        "share": 0.5,
        "weight": 1000.0,
        "keep": False,
        "codes": ("no", "yes", "on", "12:30", "2026-01-01", "0x1f"),
        "name": "1_000",
    }
    assert recipe_values(tmp_path, "share: null") == {"share": None} == recipe_values(tmp_path, "share:")


def test_the_command_line_wins_and_what_it_replaces_is_not_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text("name: y\ncap: 6\nthings: [gone]\n")
    (tmp_path / "here").write_text("")
    options = parse("--config", str(file), "--things", str(tmp_path / "here"))
    assert (options.name, options.cap, options.things) == ("x", 6, (str(tmp_path / "here"),))
    with pytest.raises(MissingInput, match="^--things gone: no such file"):
        parse("--config", str(file))


@pytest.mark.parametrize(
    ("suffix", "text", "said"),
    [
        ("yaml", "capp: 5", "unknown key capp; did you mean cap?"),
        ("yaml", "config: x", "unknown key config"),
        ("yaml", "cap: '5'", "--cap 5: must be a whole number of at least 1 (cap in "),
        ("yaml", "cap: [5]", "--cap 5: must be a whole number"),
        ("yaml", "cap: yes", "--cap yes: must be a whole number"),
        ("yaml", "codes: [1]", "--codes 1: must be a list of texts"),
        ("yaml", "a: &a [x]\nb: *a", "it must not use aliases"),
        ("yaml", "a: &a [x]\n<<: *a", "it must not use aliases"),
        ("yaml", "codes: " + "[" * 50_000, "cannot be read as yaml"),
        ("yaml", "codes: [[[x]]]", "it is nested too deeply"),
        ("yaml", "cap: 5\ncap: 6", "a key is given twice"),
        ("yaml", "cap: !!python/object/apply:os.system [ls]", "cannot be read as yaml"),
        ("yaml", "cap: 5\n---\ncap: 6", "cannot be read as yaml"),
        ("yaml", "cap: {", "cannot be read as yaml"),
        ("yaml", "- cap", "must hold options by name"),
        ("yaml", "", "must hold options by name"),
        ("json", '{"cap": 5, "cap": 6}', "a key is given twice"),
        ("json", "[" * 50_000, "it is nested too deeply"),
        ("json", '{"cap": ' + "9" * 5000 + "}", "cannot be read as json"),
        ("toml", "cap = ", "cannot be read as toml"),
        ("toml", "[second]\ncap = 5", "unknown key second"),
        ("ini", "cap = 5", "must be named *.yaml, *.yml, *.toml or *.json"),
    ],
)
def test_what_is_no_recipe_is_refused(suffix: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        recipe_values(tmp_path, text, suffix)
    assert "recipe." + suffix in str(error.value) and "\n" not in str(error.value)


def test_one_field_under_two_spellings_is_refused(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Long:
        two_words: int = option(1, help="x")

    (tmp_path / "a.yaml").write_text("two-words: 1\ntwo_words: 2\n")
    with pytest.raises(UsageError, match="two_words is given twice"):
        recipe.read(str(tmp_path / "a.yaml"), Long)
    (tmp_path / "a.yaml").write_text("two-words: 1\n")
    assert recipe.read(str(tmp_path / "a.yaml"), Long) == {"two_words": 1}


def test_a_file_that_is_missing_too_large_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"^--config .*gone.yaml: no such file"):
        recipe.read(str(tmp_path / "gone.yaml"), Both)
    with pytest.raises(UsageError, match="must be a file of at most 1048576 bytes"):
        recipe_values(tmp_path, "# " + "x" * recipe.LARGEST)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UsageError, match="must be a file"):
        recipe.read(str(tmp_path / "folder.yaml"), Both)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(UsageError, match="must be UTF-8"):
        recipe.read(str(tmp_path / "latin.yaml"), Both)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    hard = ("no", "1e5", "12:30", "null", "", "~", "1_000", "0x1f", "a: b", "# x", "\u202e\x85", "\udc80", "*a", "true")
    options = Both(name="5", codes=hard, share=1e-20, weight=-0.0, cap=10**18, loud=True, beam=("--secret",))
    text = recipe.write(options, comment="one\ntwo")
    assert text.startswith("# one\n# two\n") and "secret" not in text and "loud" not in text
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode())
    assert recipe.read(str(path), Both) == deciding(options)


def test_what_is_secret_is_not_written() -> None:
    text = recipe.write(Both(name="x", codes=("a:b",)), comment="", public={"codes": lambda code: code[:1]})
    assert "a:b" not in text and "- a\n" in text


def test_a_field_that_is_no_option_is_named() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Third:
        title: ClassVar[str] = "third"

        cap: int = option(5, help="most rows")
        forgotten: int = 3

    @dataclasses.dataclass(frozen=True)
    class All(Third, First):
        pass

    for kind in (Third, All):
        with pytest.raises(TypeError, match=r"^Third\.forgotten is not declared as an option: write = option\("):
            declared(kind)
