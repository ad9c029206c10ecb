"""The command line: help without torch, suggestions, exit codes, and every command once on a small run."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clip_train.__main__
from clip_train.__main__ import main
from clip_train.commandline import make_parser
from clip_train.commands import COMMANDS
from clip_train.fields import kinds

WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "numpy", "pyarrow", "safetensors", "cv2", "PIL"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from clip_train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process that cannot import the packages of the extra."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip


def test_without_torch_there_is_help_and_one_sentence(tars, tmp_path):
    assert "exit codes" in alone("--help").stdout and "--patch-dropout" in alone("train", "--help").stdout
    data, weights = str(tars()), tmp_path / "w.pt"
    weights.write_bytes(b"")
    for command in (
        ["train", "--data", data, "--output", str(tmp_path / "run")],
        ["zero-shot", "--data", data, "--checkpoint", str(weights)],
    ):
        done = alone(*command)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1 and "pip install openwit[train]" in done.stderr


def test_import_is_light():
    code = "import time; t = time.process_time(); import clip_train; print(time.process_time() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1


def test_every_option_has_a_help_text_and_every_number_a_range():
    for command in COMMANDS.values():
        for part in command.parts:
            for field in dataclasses.fields(part):
                kind = kinds(part)[field.name]
                assert field.metadata["help"], field.name
                assert ("within" in field.metadata) == (kind in (int, float)), field.name


def test_the_parser_has_what_the_commands_declare_and_nothing_else():
    commands = make_parser()._subparsers._group_actions[0].choices
    for name, command in COMMANDS.items():
        parser = commands[name.split()[0]]
        if " " in name:
            parser = parser._subparsers._group_actions[0].choices[name.split()[1]]
        declared = {field.name for part in command.parts for field in dataclasses.fields(part)}
        assert {action.dest for action in parser._actions} - {"help"} == declared
    source = Path(clip_train.__main__.__file__).read_text()
    assert "add_argument" not in source


def test_main_takes_the_words_of_the_process_and_returns_the_exit_code(monkeypatch, capsys):
    for words, code in ((["--help"], 0), (["train", "--help"], 0), ([], 2), (["train", "--lr", "-1"], 2)):
        monkeypatch.setattr(sys, "argv", ["openwit-train", *words])
        assert main() == code
    assert "must be in (0, inf)" in capsys.readouterr().err


def test_the_whole_way(tars, vocabulary, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")
    data, run = str(tars(labelled=True, samples=32)), str(tmp_path / "run")
    (tmp_path / "tars" / "classnames.txt").write_text("red\ngreen\nblue\n")

    def call(*arguments: str, code: int = 0) -> dict:
        assert main([*arguments, "--json"]) == code
        captured = capsys.readouterr()
        return json.loads(captured.out) if code == 0 else {"error": captured.err}

    common = ("--data", data, "--output", run, "--bpe", str(vocabulary), "--model", "ViT-Tiny", "--log-to", "none")
    found = call("train", *common, "--batch-size", "8", "--steps", "3", "--zero-shot", data)
    assert found["steps"] == 3 and (tmp_path / "run" / "zero_shot.jsonl").exists()
    assert "holds a run" in call("train", *common, code=2)["error"]
    logs = ("--log-file", str(tmp_path / "log.jsonl"), "--quiet")
    assert call("train", *common, "--batch-size", "8", "--change", "steps=4", "--resume", *logs)["steps"] == 4
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["message"] == "train begins" and [line["message"] for line in lines[-3:]] == [
        "step 4/4", "the run is done", "train ends"
    ]  # fmt: skip
    assert lines[-3]["fields"]["loss"] > 0 and set(lines[0]) == {
        "time", "level", "logger", "stage", "message", "fields"
    }  # fmt: skip
    assert "--log-file" in call("train", *common, "--log-file", str(tmp_path), code=2)["error"]
    use = ("--checkpoint", run, "--data", data)
    assert call("zero-shot", *use)["images"] == 32
    assert "below --min-top1" in call("zero-shot", *use, "--min-top1", "1", code=3)["error"]
    assert call("retrieval", *use)["texts"] == 32
    assert call("probe", *use, "--l2", "1")["classes"] == 3
    table = str(tmp_path / "table.parquet")
    assert call("embed", *use, "--output", table)["rows"] == 32
    assert call("overlap", *use, "--train-embeddings", table)["overlap_share"] == 1.0
    assert "give --train-embeddings FILE or --contamination OUT" in call("overlap", *use, code=2)["error"]
    assert "--contamination" in call("overlap", *use, "--contamination", str(tmp_path / "no.parquet"), code=4)["error"]
    assert call("score", *use, "--to", str(tmp_path / "scores.parquet"))["rows"] == 32
    weights = str(tmp_path / "weights.safetensors")
    assert call("export", "--checkpoint", run, "--output", weights)["format"] == "safetensors"
    said = call("zero-shot", "--checkpoint", weights, "--data", data, code=2)["error"]
    assert "name the one it was trained with by --bpe" in said
    assert call("zero-shot", "--checkpoint", weights, "--data", data, "--bpe", str(vocabulary))["images"] == 32
    assert "no such file" in call("zero-shot", "--checkpoint", "nowhere", "--data", data, code=4)["error"]
    assert "no moving average" in call("zero-shot", *use, "--ema", code=2)["error"]
    from clip_train.tokenizer import load_tokenizer

    encoded = call("tokenizer", "encode", "a red square", "--bpe", str(vocabulary))
    assert encoded["pieces"] == ["a", "red", "square"] and encoded["vocabulary"] == load_tokenizer(vocabulary).name
    assert encoded["ids"] == load_tokenizer(vocabulary).encode("a red square")
    assert call("tokenizer", "train", "--input", data, "--output", str(tmp_path / "v.txt.gz"))["captions"] == 32
    assert main(["zero-shot", *use]) == 0 and "top1  " in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, capsys):
    pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")
    (tmp_path / "captions.txt").write_text("a red square\n" * 3)
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "v.txt.gz")  # a file is its parent
    assert main(["tokenizer", "train", "--input", str(tmp_path / "captions.txt"), "--output", output]) == 2
    said = capsys.readouterr().err
    assert said.startswith("clip_train: ") and str(tmp_path / "file") in said and said.count("\n") == 1


def test_bench_prints_numbers(capsys):
    pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")
    only = ("--only", "tokenizer", "loader", "model", "step")
    assert main(["bench", "--model", "ViT-Tiny", "--batch-size", "8", "--seconds", "0.05", *only, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step_pairs_per_s"] > 0 and found["loader_cpu_ms_per_sample"] > 0


LEAVES = """
import atexit, os, sys
from clip_train.leaving import leave
class Thing:
    def __del__(self):
        os.write(2, b"the interpreter ended")
thing = Thing()
atexit.register(print, "registered")
print("buffered")
leave(int(sys.argv[1]))
"""


def test_a_command_leaves_without_the_end_of_the_interpreter():
    done = subprocess.run([sys.executable, "-c", LEAVES, "3"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "buffered\nregistered\n", "")
    with open("/dev/full", "w") as full:
        for code, expected in ((0, 120), (3, 3)):
            words = [sys.executable, "-c", LEAVES.replace("atexit.register", "# "), str(code)]
            buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
            left = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, timeout=60, env=buffered)
            assert (left.returncode, left.stderr) == (expected, b"")
