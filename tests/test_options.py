"""The options of `pipeline.build`: wrong values are refused before OUT is touched and before Beam is imported."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build, options
from pipeline.engine import runners, storage
from pipeline.engine.cli import MissingInput, UsageError
from pipeline.engine.options import deciding, declared, validate
from pipeline.text.language_names import nearest_code
from tests.language_models import write_model
from tests.places import ROOT
from tests.webserver import WebServer, picture

WHOLE = "must be a whole number"
NETWORK = "must be a network such as 127.0.0.0/8 or ::1/128"
CODES = "must be codes that the model lid.176 knows"
STORE = "must be a folder of this machine, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER; other stores cannot be written yet"
SHARE = "must be a file, or a share of the texts over 0% and at most 100%"
STAGES = "gather, match, dedup, balance, fetch, dedup-images, publish"

# flag, value, the value in the message, what is allowed
REFUSED = [
    ("--cap", "0", "0", f"{WHOLE} of at least 1 and at most 1e12"),
    ("--cap", "-5", "-5", f"{WHOLE} of at least 1"),
    ("--cap", "5.5", "5.5", f"{WHOLE} of at least 1"),
    ("--cap", "", "''", f"{WHOLE} of at least 1"),
    ("--placeholder-bound", "-1", "-1", f"{WHOLE} of at least 0"),
    ("--target-pairs", "0", "0", f"{WHOLE} of at least 1"),
    ("--target-pairs", "-3", "-3", f"{WHOLE} of at least 1"),
    ("--expected-yield", "0", "0", "must be a number over 0 and at most 1"),
    ("--expected-yield", "1.5", "1.5", "must be a number over 0 and at most 1"),
    ("--image-size", "0", "0", f"{WHOLE} of at least 1 and at most 65535"),
    ("--image-size", "70000", "70000", f"{WHOLE} of at least 1 and at most 65535"),
    ("--rows-per-shard", "0", "0", f"{WHOLE} of at least 1"),
    ("--date", "2026-1-5", "2026-1-5", "must be a day such as 2026-01-31"),
    ("--date", "20260105", "20260105", "must be a day such as 2026-01-31"),
    ("--creator", " ", " ", "must be a name of 1 to 200 characters"),
    ("--shards", "0", "0", f"{WHOLE} of at least 1"),
    ("--shards", "1000001", "1000001", f"{WHOLE} of at least 1 and at most 1e6"),
    ("--workers", "0", "0", f"{WHOLE} of at least 1"),
    ("--workers", "-1", "-1", f"{WHOLE} of at least 1"),
    ("--seed", "-1", "-1", f"{WHOLE} of at least 0 and below 2^64"),
    ("--seed", str(2**64), str(2**64), f"{WHOLE} of at least 0 and below 2^64"),
    ("--deadline", "0", "0", "must be a number over 0 and at most 86400"),
    ("--deadline", "nan", "nan", "must be a number over 0 and at most 86400"),
    ("--deadline", "inf", "inf", "must be a number over 0 and at most 86400"),
    ("--stop-queries", "abc%", "abc%", SHARE),
    ("--stop-queries", "500%", "500%", SHARE),
    ("--stop-queries", "0%", "0%", SHARE),
    ("--stop-queries", "nan%", "nan%", SHARE),
    ("--stop-queries", ".", ".", "must be a file"),
    ("--languages", "english", "english", f"{CODES}; did you mean en?"),
    ("--languages", "en,xx", "xx", f"{CODES}; did you mean xmf?"),
    ("--languages", "en-GB", "en-GB", f"{CODES}; did you mean en?"),
    ("--languages", "all,en", "all", "must stand alone"),
    ("--queries", "xx=pairs.parquet", "xx=pairs.parquet", "must name a language by its code; did you mean xmf=...?"),
    (
        "--output",
        "s3://b/set",
        "s3://b/set",
        "must name a bucket: s3://BUCKET/FOLDER, 3 to 63 of a-z, 0-9, dots and hyphens",
    ),
    ("--output", "az://bucket/set", "az://bucket/set", STORE),
    ("--output", "hdfs://name/set", "hdfs://name/set", STORE),
    ("--output", "file:///tmp/set", "file:///tmp/set", STORE),
    ("--output", "s3:/bucket", "s3:/bucket", "must have two slashes to be a URL: s3://bucket"),
    ("--output", "", "''", "must be a folder, not an empty name"),
    ("--allow-address", "127.0.0.256/8", "127.0.0.256/8", NETWORK),
    ("--allow-address", "10.0.0.1/8", "10.0.0.1/8", f"{NETWORK}; did you mean 10.0.0.0/8?"),
    ("--allow-address", "example.org", "example.org", NETWORK),
    ("--user-agent-contact", "me\r\nX-Evil: 1", "me  X-Evil: 1", "must be a URL or an address of at most 255"),
    ("--user-agent-contact", "m\u00e9", "m\u00e9", "must be a URL or an address of at most 255 printable ASCII"),
    ("--user-agent-contact", "", "''", "must be a URL or an address of at most 255 printable ASCII"),
    ("--url-column", "", "''", "must not be empty"),
    ("--text-column", "", "''", "must not be empty"),
    ("--text-column", "url", "url", "must be another column than --url-column"),
    (
        "--robots-agents",
        "CCBot,",
        "CCBot,",
        "must be product tokens with commas between them, such as CCBot,GPTBot, or none",
    ),
    ("--cc-host", "my.mirror", "my.mirror", "must be a URL, such as https://my.mirror/ or s3://my-bucket/"),
    ("--input-cache", "", "''", "must not be empty"),
    ("--input-cache", "s3://bucket/cache", "s3://bucket/cache", "must be a folder of this machine"),
    ("--input-cache", "out/cache", "out/cache", "must not lie in --output out"),
    ("--input-cache", "/dev/null", "/dev/null", "must be a folder; it is a file or a broken link"),
    ("--input-cache-gb", "0", "0", "must be a number over 0 and at most 1e9"),
    ("--input-cache-gb", "5", "5", "needs --input-cache DIR"),
    ("--columns", "url,,text", "url,,text", "must be different names with commas between them, such as url,text"),
    ("--input", "", "''", "must not be empty"),
    ("--exchange", "file", "file", "must be one of files, shuffle; did you mean files?"),
    ("--input-format", "wet", "wet", "must be one of auto, wat, warc, table, set, webdataset; did you mean wat?"),
    ("--keep-rejected", "some", "some", "must be one of sample, all, none"),
    ("--match", "wild", "wild", "must be one of wide, metaclip; did you mean wide?"),
    ("--case", "lower", "lower", "must be one of exact, fold"),
    ("--balance", "caps", "caps", "must be one of cap, bernoulli, none; did you mean cap?"),
    ("--redo", "fetsh", "fetsh", f"must be one of {STAGES}; did you mean fetch?"),
    ("--stages", "gater..match", "gater..match", f"must be stages of {STAGES}; did you mean gather?"),
    ("--stages", "publish..gather", "publish..gather", "must be a first and a last stage, in the order of gather, "),
    ("--runner", "FlonkRunner", "FlonkRunner", "must be local, a Beam runner (BundleBasedDirectRunner, "),
]
MISSING = [
    ("--stop-queries", "nowhere.txt", "nowhere.txt", "no such file"),
    ("--language-model", "nowhere.ftz", "nowhere.ftz", "no such file"),
    ("--queries", "nowhere.txt", "nowhere.txt", "no such file"),
    ("--config", "nowhere.yaml", "nowhere.yaml", "no such file"),
]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in a folder with one table. Returns its exit code and its message."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"url": ["http://a.example/1.jpg"], "text": ["a red dog"]}), "pairs.parquet")

    def run(*argv: str) -> tuple[int, str]:
        capsys.readouterr()
        code = build.main(["--input", "pairs.parquet", "--output", "out", *argv])
        said = capsys.readouterr()
        assert not said.out
        return code, said.err

    return run


@pytest.mark.parametrize("form", ["apart", "joined", "plan"])
@pytest.mark.parametrize(
    ("flag", "value", "shown", "allowed", "code"),
    [(*case, build.USAGE) for case in REFUSED] + [(*case, build.MISSING) for case in MISSING],
)
def test_a_value_is_refused_by_flag_value_and_what_is_allowed(
    flag: str, value: str, shown: str, allowed: str, code: int, form: str, told, tmp_path: Path
) -> None:
    argv = [f"{flag}={value}"] if form == "joined" else [flag, value]
    found, said = told(*argv, *(["--plan"] if form == "plan" else []))
    assert said.startswith(f"pipeline.build: {flag} {shown}: {allowed}") and said.count("\n") == 1, said
    assert found == code
    assert sorted(os.listdir(tmp_path)) == ["pairs.parquet"]


def fields(flag: str, value: str) -> dict[str, Any]:
    """The value of a case of REFUSED in the Python API."""
    (item,) = [item for item in declared(options.Options) if flag in item.flags]
    if item.kind in (int, float):
        return {item.name: item.kind(value)}
    return {item.name: (value,) if item.kind is tuple and item.parse is None else value}


@pytest.mark.parametrize(
    ("flag", "value", "shown", "allowed"), [case for case in REFUSED if case[1] not in ("", "5.5")]
)
def test_the_python_api_refuses_the_same(
    flag: str, value: str, shown: str, allowed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = options.Options(**({"input": ("pairs.parquet",), "output": "out"} | fields(flag, value)))
    with pytest.raises(UsageError, match=f"^{re.escape(f'{flag} {shown}: {allowed}')}"):
        build.build(made)
    assert not os.listdir(tmp_path)


PROGRAM = """import sys
from pipeline.build import main
code = main(sys.argv[1:])
print(code, *[name for name in ("apache_beam", "numba", "img2dataset", "fasttext", "torch") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("argv", "code"),
    [(["--cap", "0"], "2"), (["--cap=0", "--num_workers=3"], "2"), (["--stop-queries", "nowhere.txt"], "4")],
)
def test_beam_is_not_imported_for_a_refusal(argv: list[str], code: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "--input", "x", "--output", str(tmp_path / "out"), *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [code], done.stderr
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("module", ["pipeline.build", "queries.build"])
def test_the_help_imports_nothing_heavy(module: str) -> None:
    program = (
        f"import sys\nfrom {module} import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('apache_beam', 'numba', 'yaml', 'fasttext', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_declarations_need_no_tables_and_no_engine() -> None:
    program = (
        "import sys\nimport pipeline.engine.options, pipeline.engine.command_line, pipeline.engine.checks\n"
        "print([name for name in ('apache_beam', 'numpy', 'pyarrow', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


# ----------------------------------------------------------------------------------------------------------- languages


def test_languages_are_taken_in_any_case_and_all_is_no_filter(told) -> None:
    assert chosen("--languages", "DE, en,de").languages == ("de", "en")
    assert chosen("--languages", "all").languages == ("all",) and chosen("--languages", "").languages == ()


def chosen(*argv: str) -> options.Options:
    return options.parse(["--input", "pairs.parquet", "--output", "out", *argv])[0]


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("english", "en"),
        ("EN", "en"),
        ("eng", "en"),
        ("pt_BR", "pt"),
        ("germn", "de"),
        ("vietnam", "vi"),
        ("deu", "de"),
        ("klingon", ""),
    ],
)
def test_the_nearest_code(word: str, code: str) -> None:
    assert nearest_code(word) == code


def test_a_model_of_the_users_own_names_its_languages(told, tmp_path: Path) -> None:
    write_model(tmp_path / "model.bin", {"dog": "eng_Latn", "hund": "deu_Latn"})
    (tmp_path / "texts").write_text("dog\n")
    (tmp_path / "list.txt").write_text("dog\n")  # it names no language
    assert chosen("--language-model", "model.bin", "--languages", "eng_Latn").languages == ("eng_Latn",)
    code, said = told("--queries", "list.txt", "--language-model", "model.bin", "--languages", "eng_Lat")
    assert code == build.USAGE
    assert "--languages eng_Lat: the language model model.bin does not know it; did you mean eng_Latn?" in said
    code, said = told("--language-model", "model.bin")  # the list of the project is for en
    assert code == build.USAGE and "a query list is for en: the language model model.bin does not know it" in said
    code, said = told("--language-model", "texts", "--languages", "en")
    assert code == build.MISSING and "--language-model texts: is no fastText model" in said
    code, said = told("--language-model", "texts")  # no language is asked for
    assert code == build.MISSING and "--language-model texts: is no fastText model" in said
    code, said = told("--language-model", "none", "--languages", "en")
    assert code == build.USAGE and "--language-model none: must be a model" in said


def test_one_option_fixes_the_number_of_shards(told) -> None:
    code, said = told("--shards", "8", "--rows-per-shard", "100")
    assert code == build.USAGE
    assert "--shards 8: must not stand beside --rows-per-shard, which it replaces" in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--redo dedup --stages match..match", "--redo dedup: must be one of the stages of --stages match..match"),
        ("--redo gather --stages match..fetch", "--redo gather: must be one of the stages of --stages match..fetch"),
        ("--retry-failed --stages match..balance", "--retry-failed: needs the stage gather or fetch"),
        ("--retry-failed --stages publish", "gather or fetch, and --stages is publish..publish"),
    ],
)
def test_a_stage_is_not_removed_by_a_run_that_does_not_do_it(given: str, says: str, told) -> None:
    code, said = told(*given.split())
    assert code == build.USAGE and says in said


# -------------------------------------------------------------------------------------------------------------- OUT


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_a_folder_whose_name_is_no_utf8_is_refused(told, tmp_path: Path) -> None:
    code, said = told("--output", os.fsdecode(os.fsencode(tmp_path) + b"/out\xff"))
    assert code == build.USAGE and "must be a name in UTF-8" in said


@pytest.mark.parametrize(
    "holds",
    [["holiday.jpg"], ["stages/one.txt"], ["manifest.json"], [".git/config"], [".lock", "notes.txt"], ["inputs.json"]],
)
def test_a_folder_with_other_things_is_refused_and_left_alone(holds: list[str], told, tmp_path: Path) -> None:
    for name in holds:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text('{"name": "an app"}')
    before = sorted((tmp_path / "out").rglob("*"))
    code, said = told()
    assert code == build.USAGE
    assert "--output out: must be empty, new, or the folder of an earlier run; it holds other things (" in said
    assert sorted((tmp_path / "out").rglob("*")) == before


@pytest.mark.parametrize(
    "holds",
    [
        {},
        {"lost+found/x": "", ".DS_Store": ""},
        {".lock": ""},  # a run that was killed at its start
        {"forgotten.parquet": ""},  # of another set: a build from nothing keeps out what that one has forgotten
        {".lock": "", ".workers": "", "inputs.json": "[]"},
        {"stages/match/info.json": "{}"},
        {"manifest.json": '{"digest": "", "files": [], "ledger": []}', "shards/00000.tar": ""},  # a published copy
    ],
)
def test_an_empty_folder_and_one_of_ours_are_taken(holds: dict[str, str], told, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name, text in holds.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(text)
    assert chosen().output == "out"


def test_a_published_copy_is_not_replaced(told, tmp_path: Path) -> None:
    """Somebody downloaded a set, and gives its folder as OUT."""
    (tmp_path / "out/shards").mkdir(parents=True)
    (tmp_path / "out/manifest.json").write_text('{"digest": "", "files": [], "ledger": []}')
    (tmp_path / "out/shards/00000.tar").write_bytes(b"theirs")
    code, said = told()
    assert code == build.USAGE and "holds a published set without its stages" in said
    assert (tmp_path / "out/shards/00000.tar").read_bytes() == b"theirs"


def test_a_place_where_no_folder_can_be_made_is_refused(told, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    for where in ("pairs.parquet", "pairs.parquet/below", "link", "link/below"):
        code, said = told("--output", where)
        assert code == build.USAGE
        assert f"--output {where}: must be a folder; it is a file or a broken link, or lies below one" in said
    (tmp_path / "s3:").mkdir()
    assert told("--output", "s3://bucket")[0] == build.USAGE


def test_a_place_that_is_read_only_is_refused(told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # because root may write everywhere
    code, said = told("--output", "new/set")
    assert code == build.USAGE
    assert f"--output new/set: cannot be made, because {tmp_path} is not writable" in said
    (tmp_path / "out").mkdir()
    code, said = told()
    assert code == build.USAGE and "--output out: is not writable" in said


# ------------------------------------------------------------------------------------------------------------- runners


def test_the_runners_are_those_of_beam() -> None:
    from apache_beam.options.pipeline_options import StandardOptions

    assert set(StandardOptions.KNOWN_RUNNER_NAMES) | {"PythonRPCDirectRunner"} == set(runners.BEAM_RUNNERS)


@pytest.mark.parametrize(
    "name", ["local", "LOCAL", "DirectRunner", "flink", "FlinkRunner", "prismrunner", "my.own.Runner"]
)
def test_known_runners_are_taken(name: str) -> None:
    runners.check_name(name)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("--cap 0: must be 1"), build.USAGE, "--cap 0: must be 1"),
        (MissingInput("--input a: no such file"), build.MISSING, "--input a: no such file"),
        (
            storage.DamagedError.of("out/stages/match/00000.arrow"),
            build.CRASHED,
            "damaged (its checksum does not fit): run",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "out"), build.CRASHED, "No space left on device"),
        (runners.JobFailed("the job failed"), build.CRASHED, "the job failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_is_a_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, said: str
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(build, "build", fails)
    argv = ["--input", "pairs.parquet", "--output", "out"]
    assert build.main(argv) == code
    line = capsys.readouterr().err
    assert line.startswith("pipeline.build: ") and said in line and len(line.splitlines()) == 1
    unknown = OSError(errno.EBADF, "Bad file descriptor")
    error = unknown
    with pytest.raises(OSError, match="Bad file descriptor"):  # nobody has expected it: the stack says where it was
        build.main(argv)


# -------------------------------------------------------------------------------------------------------------- recipes


def test_the_recipe_holds_what_decides_and_nothing_of_the_run(told, capsys: pytest.CaptureFixture[str]) -> None:
    steering = ["--workers", "3", "--runner", "local", "--stages", "gather..match", "--exchange", "shuffle"]
    argv = ["--input", "pairs.parquet", "https://me:word@a.example/x.warc.gz?sig=1", "--output", "out"]
    assert build.main([*argv, "--cap", "7", "--print-config", *steering]) == build.DONE
    said = capsys.readouterr().out
    assert "cap: 7\n" in said and "word" not in said and "sig" not in said
    assert "- https://a.example/x.warc.gz\n" in said
    names = {line.split(":")[0] for line in said.splitlines() if re.match(r"[a-z]", line)}
    steers = {"output", "extend", "stages", "workers", "runner", "exchange", "redo", "beam"}
    steers |= {"retry_failed", "fetch_rounds", "min_success", "fetch_memory", "skip_bad_inputs"}
    steers |= {"input_patience", "input_rate", "cc_mirrors", "cc_host", "input_cache", "input_cache_gb"}
    assert names == {item.name for item in declared(options.Options)} - steers
    assert not os.path.exists("out")


def test_what_the_card_shows_are_options_that_decide() -> None:
    from pipeline.stages.run import published_options

    made = options.Options(input=("x",), output="out")
    hidden = {"input", "drop_input", "queries", "robots_archive", "scores", "embeddings", "blocklist", "decontaminate"}
    hidden |= {"decontaminate_embeddings"}
    assert set(published_options(made)) == set(deciding(made)) - hidden


def test_the_manifest_shows_files_of_the_user_by_name_and_content(tmp_path: Path) -> None:
    from pipeline.stages.run import HIDDEN, published_options

    shown = []
    for folder in ("one", "two"):  # the same files elsewhere
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "7.jpg").write_bytes(b"x")
        path = tmp_path / folder / "list.txt"
        path.write_text("red")
        lists = dict.fromkeys(("blocklist", "scores", "embeddings"), (str(path),))
        lists |= {"decontaminate_embeddings": (f"a={path}",), "decontaminate": (f"a={tmp_path / folder}",)}
        one = {"stop_queries": str(path), "language_model": str(path), "robots_archive": (f"{path}", "cc:X")}
        made = options.Options(input=("x",), output="out", **lists, **one)
        shown.append(published_options(made))
        assert {name for name in deciding(made) if name not in shown[-1]} == set(HIDDEN)
    assert shown[0] == shown[1] and str(tmp_path) not in str(shown)
    assert shown[0]["stop_queries"] == shown[0]["scores"][0] and shown[0]["scores"][0]["name"] == "list.txt"
    (tmp_path / "two" / "list.txt").write_text("blue")
    assert {name for name, value in published_options(made).items() if value != shown[0][name]} == {
        *("blocklist", "scores", "embeddings", "decontaminate_embeddings", "stop_queries", "language_model")
    }


def test_a_recipe_may_steer_and_beams_flags_are_checked(told, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("input: [pairs.parquet]\nworkers: 2\nbeam: [--flink_mastr=x]\n")
    code, said = told("--config", "r.yaml")
    assert code == build.USAGE and "unknown flag --flink_mastr: did you mean --flink_master?" in said
    (tmp_path / "r.yaml").write_text("output: elsewhere\nlanguages: [no, DE]\n")
    code, said = told("--config", "r.yaml")
    assert code == build.USAGE and "--languages no: no query list is for it; the lists are for en" in said


def test_the_recipe_of_a_run_gives_the_same_set_again(tmp_path: Path) -> None:
    with WebServer({f"{number}.jpg": picture(number) for number in range(12)}) as server:
        urls = [f"{server.base}/img/{number}.jpg" for number in range(12)]
        texts = [f"a common red dog number {number}" for number in range(12)]
        pq.write_table(pa.table({"link": urls, "alt": texts}), tmp_path / "pairs.parquet")
        (tmp_path / "queries.txt").write_text("red\ndog\nnumber\n")
        argv = ["--input", str(tmp_path / "pairs.parquet"), "--queries", str(tmp_path / "queries.txt")]
        argv += ["--url-column", "link", "--text-column", "alt", "--cap", "5", "--seed", str(2**64 - 1)]
        argv += ["--allow-address", "127.0.0.0/8", "--rows-per-shard", "4"]
        assert build.main([*argv, "--output", str(tmp_path / "one"), "--workers", "1"]) == build.DONE
        again = ["--config", str(tmp_path / "one" / "recipe.yaml"), "--workers", "1"]
        assert build.main([*again, "--output", str(tmp_path / "two")]) == build.DONE
        assert build.main([*again, "--output", str(tmp_path / "other"), "--cap", "3"]) == build.DONE
    one, two, other = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two", "other"))
    assert one["digest"] == two["digest"] != other["digest"]
    assert (one["files"], one["options"]) == (two["files"], two["options"]) and one["files"]
    assert not any("recipe" in entry["path"] for entry in one["files"])
    recipes = [(tmp_path / name / "recipe.yaml").read_bytes() for name in ("one", "two", "other")]
    assert recipes[0] == recipes[1] and recipes[2] == recipes[0].replace(b"cap: 5\n", b"cap: 3\n")


def test_options_of_python_are_used_as_they_were_checked(tmp_path: Path) -> None:
    made = validate(options.Options(input=["x"], output="out", languages="DE", stages="match"))  # type: ignore[arg-type]
    assert (made.input, made.languages, made.stages) == (("x",), ("de",), ("match",))
    for wrong in ({"input": "x"}, {"input": ()}, {"stages": ("match", "balance", "gather")}, {"stages": ()}):
        with pytest.raises(UsageError):
            validate(options.Options(**({"input": ("x",), "output": "out"} | wrong)))
    with pytest.raises(MissingInput, match="^--queries nowhere: no such file"):
        validate(options.Options(input=("x",), output="out", queries="nowhere"))


def test_a_cap_beside_the_number_of_pairs_is_refused(told) -> None:
    code, message = told("--cap", "5", "--target-pairs", "7")
    assert code == build.USAGE and message.endswith(
        "--target-pairs 7: must stand without --cap 5, since it finds the cap\n"
    )
    assert not Path("out").exists()
