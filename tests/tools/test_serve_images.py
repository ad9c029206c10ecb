"""tools/serve_images.py: a table of the images in folders, and a server that runs as long as a command."""

from __future__ import annotations

import importlib.util
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
        ([str(tmp_path), *table, "--", "true"], "no image in these folders has a caption"),
    ):
        with pytest.raises(SystemExit) as stopped:
            tool.main(arguments)
        assert stopped.value.code == 2 and message in capfd.readouterr().err
