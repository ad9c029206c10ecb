"""The options of `queries.build`: refusals before anything is written, and the recipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from queries import build, options
from tests.places import ROOT

WHOLE = "must be a whole number of at least"
STORE = "must be a folder of this machine; object stores are not supported as output yet"
CODE = "must be Wikipedia's code, such as en, simple or zh-yue"
COUNTED = ("min-count", "min-articles", "bigrams", "min-bigram-count", "titles", "min-views")

CASES = [
    *((f"--{name}", "-1", "-1", f"{WHOLE} 0", 2) for name in COUNTED),
    *((f"--{name}", "many", "many", f"{WHOLE} 0", 2) for name in COUNTED),
    ("--size", "0", "0", f"{WHOLE} 1", 2),
    ("--size", "1.5", "1.5", f"{WHOLE} 1", 2),
    ("--workers", "0", "0", f"{WHOLE} 1", 2),
    ("--workers", "-1", "-1", f"{WHOLE} 1", 2),
    ("--min-count", "1" + "0" * 19, "1" + "0" * 19, f"{WHOLE} 0 and at most 1e15", 2),
    ("--profile", "clip", "clip", "must be one of wit, metaclip1", 2),
    ("--lemmas", "frist", "frist", "must be one of all, first; did you mean first?", 2),
    ("--language", "english", "english", f"{CODE}; did you mean en?", 2),
    ("--language", "EN", "EN", f"{CODE}; did you mean en?", 2),
    ("--language", "", "''", CODE, 2),
    ("--output", "s3://bucket/list", "s3://bucket/list", STORE, 2),
    ("--output", "full", "full", "must be empty, new, or the folder of an earlier run; it holds other things (x)", 2),
    ("--output", "a.txt", "a.txt", "must be a folder; it is a file", 2),
    ("--runner", "FlonkRunner", "FlonkRunner", "must be local, a Beam runner (", 2),
    *(
        (f"--{name}", "no*where", "no*where", "no such file", 4)
        for name in ("wikipedia", "text", "counts", "pageviews")
    ),
    ("--text", "empty", "empty", "no such file", 4),
    ("--wordnet", "nowhere", "nowhere", "must be the folder that holds data.noun, data.verb, data.adj, data.adv", 4),
    ("--wordnet", "full", "full", "must be the folder that holds data.noun, data.verb, data.adj, data.adv", 4),
    ("--config", "nowhere.toml", "nowhere.toml", "no such file", 4),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a dog\n")
    Path("full").mkdir()
    Path("full/x").write_text("")
    Path("empty").mkdir()
    return tmp_path


@pytest.mark.parametrize("form", ["apart", "joined"])
@pytest.mark.parametrize(("flag", "value", "shown", "allowed", "code"), CASES)
def test_a_value_is_refused_by_flag_value_and_what_is_allowed(
    flag: str, value: str, shown: str, allowed: str, code: int, form: str, folder: Path, capsys
) -> None:
    argv = [f"{flag}={value}"] if form == "joined" else [flag, value]
    assert build.main(["--output", "out", *argv]) == code
    said = capsys.readouterr().err
    assert said.startswith(f"queries.build: {flag} {shown}: {allowed}") and said.count("\n") == 1, said
    assert sorted(os.listdir()) == ["a.txt", "empty", "full"] and os.listdir("full") == ["x"]


@pytest.mark.parametrize("code", ["en", "simple", "zh-yue", "zh-min-nan", "be-tarask", "ceb", "nb", "tokipona"])
def test_wikipedias_codes_are_taken(code: str, folder: Path) -> None:
    assert build.parse(["--output", "out", "--language", code])[0].language == code


def test_beam_is_not_imported_for_a_refusal(tmp_path: Path) -> None:
    program = "import sys\nfrom queries.build import main\nprint(main(sys.argv[1:]), 'apache_beam' in sys.modules)"
    argv = ["--output", str(tmp_path / "out"), "--size", "0", "--num_workers=3"]
    done = subprocess.run([sys.executable, "-c", program, *argv], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"], done.stderr
    assert not os.listdir(tmp_path)


def test_a_list_is_made_anew_in_its_own_folder_and_from_its_recipe(folder: Path, capsys) -> None:
    Path("counts.tsv").write_text("dog\t500\ncat\t400\n")
    argv = ["--counts", "counts.tsv", "--min-count", "450"]
    assert build.main([*argv, "--output", "out"]) == build.DONE
    first = Path("out/queries.parquet").read_bytes()
    assert build.main([*argv, "--print-config", "--output", "out"]) == build.DONE
    shown = capsys.readouterr().out
    Path("r.yaml").write_text(shown[shown.index("# openwit") :])
    assert "min_count: 450" in shown and "output: " not in shown and "workers" not in shown
    assert build.main(["--config", "r.yaml", "--output", "out"]) == build.DONE  # the folder is ours
    assert Path("out/queries.parquet").read_bytes() == first
    assert build.main(["--config", "r.yaml", "--output", "out", "--min-count", "1"]) == build.DONE
    assert Path("out/queries.parquet").read_bytes() != first


def test_the_python_api_refuses_the_same(folder: Path) -> None:
    with pytest.raises(build.UsageError, match="^--size 0: must be a whole number of at least 1"):
        build.build(options.Options(output="out", size=0))
    assert not Path("out").exists()
