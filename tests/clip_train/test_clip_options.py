"""A wrong command line gives one line and exit code 2 or 4, before torch is imported and the output is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_train.__main__ import main
from clip_train.config import TrainOptions, check_run
from clip_train.errors import InputMissing, UsageError
from clip_train.places import MAX_SHARDS, expand_braces, is_run_config

TRAIN = ("train", "--data", "shards", "--output", "run")
USE = ("--checkpoint", "weights.pt", "--data", "labelled")
ZERO_SHOT, RETRIEVAL, PROBE = ("zero-shot", *USE), ("retrieval", *USE[:2], "--data", "shards"), ("probe", *USE)
EMBED = ("embed", "--checkpoint", "weights.pt", "--data", "shards", "--output", "run")
OVERLAP = ("overlap", *USE, "--train-embeddings", "a.txt")
EXPORT = ("export", "--checkpoint", "weights.pt", "--output", "run")
LEARN = ("tokenizer", "train", "--input", "a.txt", "--output", "run")
ENCODE = ("tokenizer", "encode", "a text")
BENCH = ("bench",)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with things to name; none of them is read further than its name."""
    for folder in ("shards", "empty", "labelled/cat", "labelled/dog", "strange", "weightless"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("shards/0.tar", "weights.pt", "a.txt", "strange/thesis.tex", "plain", "weightless/notes"):
        (tmp_path / file).write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def cases() -> Iterator[tuple[tuple[str, ...], int, str]]:
    """Command-line arguments, exit code, and the text in the message: flag, value, what is allowed."""
    # a number out of its range, for each number of each command
    for flag, value, allowed in (
        ("seed", "-1", "[0, 9223372036854775808)"), ("seed", "9223372036854775808", "[0, 9223372036854775808)"),
        ("batch-size", "0", "[1, inf)"), ("epochs", "0", "(0, inf)"), ("steps", "0", "[1, inf)"),
        ("lr", "0", "(0, inf)"), ("lr", "-1e-05", "(0, inf)"), ("lr", "nan", "(0, inf)"), ("lr", "inf", "(0, inf)"),
        ("lr", "-inf", "(0, inf)"), ("warmup", "-1", "[0, inf)"), ("weight-decay", "-0.1", "[0, inf)"),
        ("beta1", "1", "[0, 1)"), ("beta2", "1.5", "[0, 1)"), ("eps", "0", "(0, inf)"), ("clip-norm", "0", "(0, inf)"),
        ("ema", "1", "[0, 1)"), ("loss-chunk", "0", "[1, inf)"), ("accumulate", "0", "[1, inf)"),
        ("patch-dropout", "1", "[0, 1)"), ("threads", "-1", "[0, 1024]"), ("prefetch", "1025", "[0, 1024]"),
        ("crop-scale", "0", "(0, 1]"), ("max-bad", "1.1", "[0, 1]"), ("window", "-1", "[0, inf)"),
        ("cache-gb", "0", "(0, inf)"), ("save-every", "-1", "[0, inf)"), ("save-minutes", "-1", "[0, inf)"),
        ("save-minutes", "nan", "[0, inf)"), ("save-minutes", "inf", "[0, inf)"), ("keep", "0", "[1, inf)"),
        ("processes", "0", "[1, 4096]"), ("nnodes", "0", "[1, 65536]"), ("node-rank", "-1", "[0, 65536)"),
    ):  # fmt: skip
        yield (*TRAIN, f"--{flag}", value), 2, f"--{flag} {value} must be in {allowed}"
    for command in (ZERO_SHOT, RETRIEVAL, PROBE, EMBED, OVERLAP, BENCH):
        yield (*command, "--batch-size", "0"), 2, "--batch-size 0 must be in [1, inf)"
    yield (*ZERO_SHOT, "--min-top1", "1.5"), 2, "--min-top1 1.5 must be in [0, 1]"
    yield (*PROBE, "--l2", "-1"), 2, "--l2 -1 must be in [0, inf)"
    yield (*OVERLAP, "--threshold", "nan"), 2, "--threshold nan must be in [-1, 1]"
    yield (*LEARN, "--merges", "48895"), 2, "--merges 48895 must be in [1, 48894]"
    yield (*LEARN, "--min-count", "0"), 2, "--min-count 0 must be in [1, inf)"
    yield (*BENCH, "--seconds", "inf"), 2, "--seconds inf must be in (0, inf)"
    # not a number
    yield (*TRAIN, "--lr", "fast"), 2, "--lr 'fast': a number in (0, inf) is expected"
    yield (*TRAIN, "--steps", "1.5"), 2, "--steps '1.5': a whole number in [1, inf) is expected"
    yield (*TRAIN, "--steps", "inf"), 2, "--steps 'inf': a whole number in [1, inf) is expected"
    yield (*TRAIN, "--steps"), 2, "--steps: expected one argument"
    # values that are not among the choices
    yield (*TRAIN, "--precision", "fp8"), 2, "--precision 'fp8' is unknown; did you mean fp32? (allowed: auto, fp32,"
    yield (*TRAIN, "--loss", "infonse"), 2, "--loss 'infonse' is unknown; did you mean infonce?"
    yield (*TRAIN, "--parallel", "dp"), 2, "--parallel 'dp' is unknown; did you mean ddp? (allowed: ddp, fsdp)"
    yield (*TRAIN, "--text", "pack"), 2, "--text 'pack' is unknown; did you mean packed?"
    yield (*TRAIN, "--model", "ViT-B/33"), 2, "--model 'ViT-B/33' is an unknown model; did you mean ViT-B-32?"
    yield (*ZERO_SHOT, "--activation", "relu"), 2, "--activation 'relu' is unknown"
    yield (*EXPORT, "--format", "hugingface"), 2, "--format 'hugingface' is unknown; did you mean huggingface?"
    yield (*BENCH, "--only", "loader", "speed"), 2, "--only 'speed' is unknown"
    yield (*BENCH, "--model", "vit-b-32x"), 2, "--model 'vit-b-32x' is an unknown model; did you mean ViT-B-32?"
    yield (*BENCH, "--precision", "int8"), 2, "--precision 'int8' is unknown"
    # unknown commands and flags
    yield ("trian",), 2, "unknown command 'trian'; did you mean train?"
    yield (), 2, "the following arguments are required: COMMAND"
    yield ("tokenizer", "lern"), 2, "unknown command 'lern'"
    yield (*TRAIN, "--lrr=1"), 2, "unknown argument --lrr; did you mean --lr?"
    yield ("train", "--data", "shards", "--outptu", "y"), 2, "unknown argument --outptu; did you mean --output?"
    yield (*TRAIN, "more"), 2, "unrecognized arguments: more"
    # missing arguments
    yield ("train", "--output", "run"), 2, "--data is missing: folder that"
    yield ("train", "--data", "shards"), 2, "--output is missing: folder of the run"
    yield ("train", "--data", "", "--output", "run"), 2, "--data is missing"
    yield ("zero-shot", "--data", "labelled"), 2, "--checkpoint is missing"
    yield ("embed", *USE[:2], "--data", "shards"), 2, "--output is missing"
    yield ("overlap", *USE), 2, "give --train-embeddings FILE or --contamination OUT"
    yield ("tokenizer", "train", "--output", "run"), 2, "--input is missing"
    yield ("tokenizer", "encode"), 2, "required: TEXT"
    # missing inputs: exit code 4
    yield ("train", "--data", "nowhere", "--output", "run"), 4, "--data nowhere: no such file"
    yield ("train", "--data", "shards/{0..2}.tar", "--output", "run"), 4, "shards/1.tar: no such file (2 of 3 shards"
    yield ("train", "--data", "empty", "--output", "run"), 4, "--data empty: the folder holds neither manifest.json nor"
    yield (*TRAIN, "--bpe", "nowhere"), 4, "--bpe nowhere: no such file"
    yield (*TRAIN, "--init", "nowhere"), 4, "--init nowhere: no such file"
    yield (*TRAIN, "--init", "weightless"), 4, "--init weightless: the folder holds neither checkpoints nor"
    yield (*TRAIN, "--zero-shot", "nowhere"), 4, "--zero-shot nowhere: no such file"
    yield (*TRAIN, "--zero-shot", "empty"), 4, "--zero-shot empty: the folder holds neither class folders nor .tar"
    yield (*TRAIN, "--config", "nowhere.yaml"), 4, "--config nowhere.yaml: no such file"
    for command in (ZERO_SHOT, RETRIEVAL, PROBE, EMBED, OVERLAP):
        yield (*command, "--bpe", "nowhere"), 4, "--bpe nowhere: no such file"
        yield (*command, "--checkpoint", "nowhere"), 4, "--checkpoint nowhere: no such file"
        yield (*command, "--checkpoint", "weightless"), 4, "--checkpoint weightless: the folder holds neither"
        yield (*command, "--data", "nowhere"), 4, "--data nowhere: no such file"
    yield ("zero-shot", *USE[:2], "--data", "empty"), 4, "--data empty: the folder holds neither class folders"
    yield (*ZERO_SHOT, "--classes", "nowhere"), 4, "--classes nowhere: no such file"
    yield (*ZERO_SHOT, "--templates", "nowhere"), 4, "--templates nowhere: no such file"
    yield (*PROBE, "--test-data", "nowhere"), 4, "--test-data nowhere: no such file"
    yield ("overlap", *USE, "--train-embeddings", "nowhere"), 4, "--train-embeddings nowhere: no such file"
    yield ("export", "--checkpoint", "nowhere", "--output", "run"), 4, "--checkpoint nowhere: no such file"
    yield (*LEARN[:3], "nowhere.txt", *LEARN[4:]), 4, "--input nowhere.txt: no such file"
    yield (*ENCODE, "--bpe", "nowhere"), 4, "--bpe nowhere: no such file"
    yield (*BENCH, "--data", "nowhere"), 4, "--data nowhere: no such file"
    # inputs of the wrong kind
    yield (*TRAIN, "--bpe", "empty"), 2, "--bpe empty: this is a folder, a file is expected"
    yield (*TRAIN, "--init", "s3://bucket/w.pt"), 2, "--init s3://bucket/w.pt: this is a URL, a path on this machine"
    yield (*TRAIN, "--config", "a.txt"), 2, "--config a.txt: the name must end in one of .yaml, .yml, .toml, .json"
    yield ("train", "--data", "s/{1..0}.tar", "--output", "run"), 2, "--data s/{1..0}.tar: the pattern names no shards"
    yield ("train", "--data", "{0..99999999999}.tar", "--output", "run"), 2, "names more than a million shards"
    # outputs
    yield (*TRAIN[:4], "s3://user:secret@bucket/run"), 2, "--output s3://bucket/run: this is a URL, a path on this"
    yield (*TRAIN[:4], "plain"), 2, "--output plain cannot be written: a file of this name exists"
    yield (*TRAIN[:4], "plain/run"), 2, "--output plain/run cannot be written: "
    yield (
        (*TRAIN[:4], "strange"),
        2,
        "--output strange: the folder holds other things ('thesis.tex'): name a new",
    )
    yield (*TRAIN[:4], "shards"), 2, "--output shards: the folder holds other things ('0.tar')"
    yield (*TRAIN, "--cache", "plain"), 2, "--cache plain cannot be written: a file of this name exists"
    for command in (EMBED, EXPORT, LEARN):
        yield (*command[:-1], "gs://bucket/x"), 2, "--output gs://bucket/x: this is a URL"
        yield (*command[:-1], "s3:/bucket/x"), 2, "--output s3:/bucket/x: this is a URL"
        yield (*command[:-1], "empty"), 2, "--output empty: this is a folder, the name of a file is expected"
        yield (*command[:-1], "plain/x"), 2, "--output plain cannot be written: "
    yield (*EXPORT[:-1], "empty", "--format", "huggingface"), 2, "--output empty exists already"
    # options that exclude each other
    yield (*TRAIN, "--epochs", "2", "--steps", "3"), 2, "--epochs 2 and --steps 3 exclude each other"
    url = ("--data", "http://host.invalid/shards", "--window", "2", "--decode-in", "processes")
    yield (*TRAIN, *url), 2, "--decode-in processes reads shards on this machine, --data is a URL: must be threads"
    yield (*TRAIN, "--lock-image", "--lock-text"), 2, "--lock-image and --lock-text exclude each other"
    yield (*TRAIN, "--lock-text"), 2, "--lock-text needs --init"
    yield (*TRAIN, "--model", "RN50", "--patch-dropout", "0.5"), 2, "--patch-dropout 0.5 needs a ViT, --model RN50 is"
    yield (*TRAIN, "--batch-size", "10", "--accumulate", "3"), 2, "--batch-size 10 does not divide by 1 ranks x"
    yield (*TRAIN, "--batch-size", "9", "--processes", "2"), 2, "--batch-size 9 does not divide by 2 ranks"
    hosts = ("--nnodes", "2", "--rdzv-endpoint", "host:1")
    yield (*TRAIN, "--batch-size", "12", *hosts, "--processes", "4"), 2, "divide by 8 ranks x --accumulate 1: take a"
    yield (*TRAIN, "--nnodes", "2"), 2, "--nnodes 2 needs --rdzv-endpoint HOST:PORT"
    yield (*TRAIN, *hosts, "--node-rank", "2"), 2, "--node-rank 2 must be below --nnodes 2"
    yield (*TRAIN, *hosts[:3], "host"), 2, "--rdzv-endpoint 'host': HOST:PORT with a port up to 65535 is expected"
    yield (*TRAIN, *hosts[:3], "host:65536"), 2, "--rdzv-endpoint 'host:65536': HOST:PORT"
    yield (*ZERO_SHOT, "--dataset", "cifar10"), 2, "--dataset cifar10 names an entry of a JSON file: give --classes or"


CASES = [pytest.param(words, code, message, id=" ".join(words)[-70:]) for words, code, message in cases()]


@pytest.mark.parametrize(("words", "code", "message"), CASES)
def test_what_is_wrong_is_refused_in_one_line(words, code, message, here, capsys):
    before = sorted(here.rglob("*"))
    assert main(words) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("clip_train: ")
    assert message in said.err
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "code"),
    [((*TRAIN, "--save-minutes", "-1"), 2), ((*ZERO_SHOT, "--bpe", "nowhere"), 4), ((*BENCH, "--only", "x"), 2)],
)  # fmt: skip
def test_it_is_refused_before_torch_is_imported(words, code, here):
    program = (
        "import sys; from clip_train.__main__ import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'numpy', 'pyarrow', 'pipeline', 'queries'} & set(sys.modules); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == code and done.stderr.count("\n") == 1, done.stderr
    assert not (here / "run").exists()


# --- where a run may write --------------------------------------------------------------------------------------------


def check_output(here: Path, **changes: bool) -> None:
    check_run(TrainOptions(data=str(here / "shards"), output=str(here / "out"), **changes))


def test_an_empty_folder_and_a_runs_folder_are_taken(here):
    out = here / "out"
    out.mkdir()
    check_output(here)
    (out / ".lock").write_text("")  # a run that was killed at its start
    (out / "config.json.12.partial").write_text("{")
    check_output(here)
    (out / "config.json").write_text(json.dumps({"options": {"data": "x"}}))
    (out / "notes.txt").write_text("mine")  # other files in our folder do not matter
    check_output(here)
    (out / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds a run: --resume continues it, or name another folder"):
        check_output(here)
    check_output(here, resume=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "notes.txt", ".git"])
def test_a_folder_of_others_is_refused_also_with_resume(here, name):
    (here / "out").mkdir()
    (here / "out" / name).write_text("{}")  # config.json is also in the folder of a Hugging Face model
    for resume in (False, True):
        with pytest.raises(UsageError, match="holds other things"):
            check_output(here, resume=resume)


@pytest.mark.parametrize(
    ("denied", "changes", "message"),
    [
        ("plain", {"bpe": "plain"}, "--bpe plain: this user may not read it"),
        ("empty", {"output": "empty/run"}, "--output empty/run cannot be written: this user may not write into"),
        ("empty", {"cache": "empty"}, "--cache empty cannot be written: this user may not write into .*empty"),
    ],
)
def test_what_this_user_may_not_read_or_write_is_refused(denied, changes, message, here, monkeypatch):
    # instead of chmod, which has no effect on root
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != denied)
    with pytest.raises(UsageError, match=message):
        check_run(TrainOptions(**{"data": "shards", "output": "run", **changes}))


def test_python_callers_get_the_same_checks(here):
    common = {"data": str(here / "shards"), "output": str(here / "out")}
    for changes, message in (
        ({"lr": "fast"}, "--lr 'fast': a number"), ({"steps": 1.5}, "--steps 1.5: a whole number"),
        ({"steps": True}, "--steps True: a whole number"), ({"resume": "yes"}, "--resume 'yes': true or false"),
        ({"model": 7}, "--model 7: a text"), ({"data": "a\0b"}, "a zero byte is not allowed"),
        ({"seed": 2**63}, "must be in"), ({"precision": "fp8"}, "did you mean fp32"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            check_run(TrainOptions(**{**common, **changes}))
    with pytest.raises(InputMissing, match="--data nowhere"):
        check_run(TrainOptions(**{**common, "data": "nowhere"}))
    check_run(TrainOptions(**common, lr=1))  # an integer is a number too


def test_the_world_size_of_a_launcher_counts(here, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main([*TRAIN, "--batch-size", "6"]) == 2
    assert "does not divide by 4 ranks" in capsys.readouterr().err


def test_brace_patterns_are_bounded():
    assert expand_braces("a-{08..10}-{x,y}.tar")[2:4] == ["a-09-x.tar", "a-09-y.tar"]
    with pytest.raises(UsageError, match="more than a million"):
        expand_braces("{0..999}" * 9)
    assert len(expand_braces("{000000..999999}")) == MAX_SHARDS


def test_a_config_of_another_program_is_no_runs(here):
    path = here / "config.json"
    for text, expected in (
        ('{"options": {}}', True), ('{"model_type": "clip"}', False), ("[1]", False), ("[" * 5000, False), ("", False),
    ):  # fmt: skip
        path.write_text(text)
        assert is_run_config(path) is expected
    assert not is_run_config(here / "nowhere")


# --- recipes ----------------------------------------------------------------------------------------------------------

FORMS = {
    "r.yaml": "model: ViT-Tiny\nlr: 5e-4\nsave-minutes: 10\nresume: true\nclip_norm: null\nnnodes: 1\n",
    "r.toml": 'model = "ViT-Tiny"\nlr = 5e-4\nsave-minutes = 10\nresume = true\nnnodes = 1\n',
    "r.json": '{"model": "ViT-Tiny", "lr": 5e-4, "save-minutes": 10, "resume": true, "clip_norm": null, "nnodes": 1}',
}


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["train", *words, "--print-config", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", FORMS)
def test_a_recipe_holds_the_options_and_the_command_line_wins(name, here, capsys):
    (here / name).write_text(FORMS[name])
    found = printed(["--config", name], capsys)
    assert (found["model"], found["lr"], found["save_minutes"], found["resume"]) == ("ViT-Tiny", 5e-4, 10.0, True)
    assert (found["weight_decay"], found["epochs"], found["clip_norm"]) == (0.2, 10, None)  # preset and default
    found = printed(["--config", name, "--lr", "1", "--no-resume", "--steps", "7"], capsys)
    assert (found["lr"], found["resume"], found["steps"], found["epochs"]) == (1.0, False, 7, None)


def test_what_is_printed_is_a_recipe(here, capsys):
    (here / "r.yaml").write_text(FORMS["r.yaml"])
    words = ["--config", "r.yaml", "--eps", "1e-7", "--data", 's/\N{SNOWMAN} "x" # {0..1}.tar']
    wanted = printed(words, capsys)
    assert main(["train", *words, "--print-config"]) == 0
    (here / "again.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert printed(["--config", "again.yaml"], capsys) == wanted
    import yaml

    assert yaml.safe_load((here / "again.yaml").read_text())["eps"] == 1e-7  # other YAML readers get a number too
    assert sorted(path.name for path in here.glob("r*")) == ["r.yaml"]


def test_steps_of_the_command_line_put_the_recipes_epochs_aside(here, capsys):
    (here / "r.yaml").write_text("epochs: 5\n")
    assert printed(["--config", "r.yaml", "--steps", "3"], capsys)["epochs"] is None
    (here / "r.yaml").write_text("steps: 5\n")
    found = printed(["--config", "r.yaml", "--epochs", "3"], capsys)
    assert (found["steps"], found["epochs"]) == (None, 3.0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.yaml", "learning_rate: 1", "the key 'learning_rate' is unknown"),
        ("r.yaml", "sav_minutes: 1", "the key 'sav_minutes' is unknown; did you mean save_minutes?"),
        ("r.yaml", "json: true", "the key 'json' is unknown"),
        ("r.yaml", "config: other.yaml", "the key 'config' is unknown"),
        ("r.yaml", "lr: fast", "--config r.yaml: lr 'fast': a number in (0, inf) is expected"),
        ("r.yaml", "lr: -1", "--config r.yaml: lr -1 must be in (0, inf)"),
        ("r.yaml", "lr: .nan", "--config r.yaml: lr nan must be in (0, inf)"),
        ("r.yaml", "lr: [1]", "--config r.yaml: lr [1]: a number"),
        ("r.yaml", "steps: 2.0", "steps 2.0: a whole number"),
        ("r.yaml", "steps: true", "steps True: a whole number"),
        ("r.yaml", "resume: 1", "resume 1: true or false is expected"),
        ("r.yaml", "model: 7", "model 7: a text is expected"),
        ("r.yaml", "precision: fp8", "--config r.yaml: precision 'fp8' is unknown; did you mean fp32?"),
        ("r.yaml", "output: s3://bucket/run", "--config r.yaml: output s3://bucket/run: this is a URL"),
        ("r.yaml", "lr: 1\nlr: 2", "the key 'lr' is given twice"),
        ("r.yaml", "save-minutes: 1\nsave_minutes: 2", "the key 'save_minutes' is given twice"),
        ("r.json", '{"lr": 1, "lr": 2}', "the key 'lr' is given twice"),
        ("r.toml", "lr = 1\nlr = 2", "cannot be parsed: "),
        ("r.yaml", "- lr", "a table of options is expected"),
        ("r.yaml", "lr: [", "cannot be parsed: "),
        ("r.yaml", "lr: !!python/object/apply:os.system ['touch owned']", "cannot be parsed: "),
        ("r.json", "{", "cannot be parsed: "),
        ("r.json", "[" * 100_000, "cannot be parsed: "),
        ("r.yaml", "# " + "x" * (1 << 20), "larger than 1,048,576 bytes"),
        ("r.yaml", "epochs: 1\nsteps: 2", "--epochs 1 and --steps 2 exclude each other"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_in_one_line(name, text, message, here, capsys):
    (here / name).write_text(text)
    words = ["train", "--config", name, "--data", "shards"] + ([] if "output" in text else ["--output", "run"])
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (here / "run").exists() and not (here / "owned").exists()


def test_printing_a_recipe_checks_the_values_and_touches_nothing(here, capsys):
    before = sorted(here.rglob("*"))
    assert main(["train", "--data", "nowhere", "--output", "strange/new", "--print-config"]) == 0
    assert 'output: "strange/new"' in capsys.readouterr().out
    assert main(["train", "--lr", "0", "--print-config"]) == 2
    assert sorted(here.rglob("*")) == before
