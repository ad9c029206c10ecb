"""tools/serve_images.py: a table of the images in folders, and a server that runs as long as a command."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.places import ROOT

TOOL = ROOT / "tools" / "serve_images.py"
FETCH = """
import sys, urllib.error, urllib.request
import pyarrow.parquet as pq
for url in pq.read_table(sys.argv[1])["url"].to_pylist():
    print(urllib.request.urlopen(url).read().decode())
for path in ("/", "/0/", "/2/a.png", "/0/../secret", "/0/%2e%2e/secret"):
    try:
        urllib.request.urlopen(url.rsplit("/", 2)[0] + path)
    except urllib.error.HTTPError as error:
        print(error.code)
sys.exit(7)
"""


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("serve_images", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_images_with_captions_are_served(tool, tmp_path, capfd):
    (tmp_path / "secret").write_text("secret")
    for name, content in {
        "one/a b.png": "A", "one/a b.txt": "a cat\n\n two cats \n", "one/without.png": "W", "one/alone.txt": "x",
        "two/é.JPG": "B", "two/é.txt": "a dog",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    table = tmp_path / "pairs.parquet"
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    code = tool.main([*folders, "--table", str(table), "--", sys.executable, "-c", FETCH, str(table)])
    said = capfd.readouterr()
    assert code == 7 and said.out.split() == ["A", "A", "B"] + ["404"] * 5
    assert pq.read_table(table)["text"].to_pylist() == ["a cat", "two cats", "a dog"]
    assert "3 pairs" in said.err


def test_what_cannot_be_served_is_said(tool, tmp_path, capfd):
    table = ["--table", str(tmp_path / "t.parquet")]
    for arguments, message in (
        ([str(tmp_path), *table], "name the command to run"),
        ([str(tmp_path / "nowhere"), *table, "--", "true"], "is not a folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            tool.main(arguments)
        assert stopped.value.code == 2 and message in capfd.readouterr().err
    assert tool.main([str(tmp_path), *table, "--", "true"]) == 2
    assert "no image in these folders has a caption" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_on_to_the_command(tmp_path, number):
    (tmp_path / "a.png").write_text("A")
    (tmp_path / "a.txt").write_text("a cat")
    given = [sys.executable, str(TOOL), str(tmp_path), "--table", str(tmp_path / "t.parquet"), "--", "sleep", "60"]
    started = subprocess.Popen(given, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert "1 pairs" in started.stderr.readline()
    started.send_signal(number)
    _, said = started.communicate(timeout=30)
    assert started.returncode in (130, 128 + number) and len(said.splitlines()) <= 1


def test_a_signal_during_the_imports(tmp_path):
    (tmp_path / "pyarrow").mkdir()
    (tmp_path / "pyarrow/__init__.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    started = subprocess.Popen(
        [sys.executable, str(TOOL)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert started.stdout.readline() == b"importing\n"
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 130 and said == b"serve_images: interrupted\n"


def test_a_command_or_a_port_that_cannot_be_had(tool, tmp_path, capfd):
    (tmp_path / "a.png").write_text("A")
    (tmp_path / "a.txt").write_text("a cat")
    given = [str(tmp_path), "--table", str(tmp_path / "t.parquet")]
    assert tool.main([*given, "--", "no-such-command"]) == 127
    assert "no-such-command" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([*given, "--port", "70000", "--", "true"])
    assert "0 to 65535" in capfd.readouterr().err
