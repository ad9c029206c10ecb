"""Completion of the console scripts in real shells: flags, choices, commands, files."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_train.__main__ import main as train
from clip_train.errors import DONE
from pipeline import build, doctor, explore, inspect_shards
from pipeline.engine import completion
from queries import build as queries

MAINS: dict[str, Callable[..., Any]] = {
    "openwit-build": build.main,
    "openwit-doctor": doctor.main,
    "openwit-explore": explore.main,
    "openwit-inspect": inspect_shards.main,
    "openwit-queries": queries.main,
    "openwit-train": train,
}
# The words so far, and what the shell offers.
CASES = [
    ("openwit-build", ["--ma"], {"--match", "--max-aspect"}),
    ("openwit-build", ["--match", ""], {"wide", "metaclip"}),
    ("openwit-build", ["--config", "rec"], {"recipe.yaml"}),
    ("openwit-doctor", ["--off"], {"--offline"}),
    ("openwit-inspect", ["su"], {"summary"}),
    ("openwit-inspect", ["export", "--format", "w"], {"webdataset"}),
    ("openwit-inspect", ["info", "rec"], {"recipe.yaml"}),
    ("openwit-queries", ["--log-l"], {"--log-level"}),
    ("openwit-train", ["zero"], {"zero-shot"}),
    ("openwit-train", ["train", "--ba"], {"--batch-size", "--batch-concepts"}),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of all commands for all shells, as NAME.SHELL."""
    folder = tmp_path_factory.mktemp("completion")
    for name, main in MAINS.items():
        for shell in completion.SHELLS:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                try:
                    code = main([completion.FLAG, shell])
                except SystemExit as done:
                    code = done.code
            assert (code or DONE) == DONE
            (folder / f"{name}.{shell}").write_text(printed.getvalue())
    (folder / "recipe.yaml").touch()
    return folder


def answer(command: list[str], folder: Path) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_bash_offers_what_there_is(scripts: Path) -> None:
    program = ""
    for name, words, _ in CASES:
        function = f"_shtab_{name.replace('-', '_')}"
        quoted = " ".join(f"'{word}'" for word in [name, *words])
        program += f"source {name}.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; COMPREPLY=(); {function}\n"
        program += 'echo "${COMPREPLY[*]}"\n'
    found = [set(line.split()) for line in answer(["bash", "-c", program], scripts).splitlines()]
    assert found == [wanted for _, _, wanted in CASES]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_offers_what_there_is(scripts: Path) -> None:
    program = "".join(
        f"source {name}.fish; complete -C '{' '.join([name, *words])}' | string split -f1 \\t; echo END\n"
        for name, words, _ in CASES
    )
    found = [set(part.split()) for part in answer(["fish", "-c", program], scripts).split("END\n")[:-1]]
    assert found == [wanted for _, _, wanted in CASES]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_can_read_the_scripts(scripts: Path) -> None:
    for name in MAINS:
        answer(["zsh", "-n", f"{name}.zsh"], scripts)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main([completion.FLAG, "powershell"]) == build.USAGE
    assert "choose from" in capsys.readouterr().err
