"""Child processes find the packages of their parent: no other `pipeline`, no package before the standard library."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine import child, runners

SHOW = "import json, sys, pipeline; print(json.dumps([sys.path, pipeline.__file__, sys.argv[1:]]))"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with another `pipeline`, another `dataclasses`, and the module `shown`, which children run."""
    (tmp_path / "pipeline").mkdir()
    for name in ("pipeline/__init__.py", "dataclasses.py"):
        (tmp_path / name).write_text("raise RuntimeError('the wrong one')")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "shown.py").write_text(SHOW)
    return tmp_path


def shown(command: list[str], cwd: Path, **variables: str) -> tuple[list[str], str, list[str]]:
    """The output of the module `shown`: search path, folder of `pipeline`, arguments."""
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    path, file, arguments = json.loads(done.stdout)
    return path, file, arguments


@pytest.mark.parametrize("variables", [{}, {"PYTHONSAFEPATH": "1"}, {"PYTHONPATH": "/other"}])
def test_a_child_takes_over_the_search_path(
    variables: dict[str, str], foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(foreign / "own"), str(foreign)])
    path, file, arguments = shown(child.command("shown", "--flag", "a b"), foreign, **variables)
    assert path[: len(sys.path)] == [os.path.abspath(entry) for entry in sys.path]
    assert set(path) - set(child.search_path()) == set(variables.get("PYTHONPATH", "").split()) - {""}
    assert file == str(Path(child.ROOT, "pipeline", "__init__.py"))
    assert arguments == ["--flag", "a b"]


def test_entries_are_absolute_and_the_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the parent found it by a finder of an editable install, or in an old working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "lib", "/usr/lib/x"])
    assert child.search_path() == [str(tmp_path), str(tmp_path / "lib"), "/usr/lib/x", child.ROOT]


def test_isolation_is_handed_on(foreign: Path) -> None:
    """If a parent ignores PYTHONPATH, its children ignore it too."""
    program = "import sys; sys.path.append(sys.argv[1]); from pipeline.engine import child; import json\n"
    program += "print(json.dumps(child.command('shown')))"
    done = subprocess.run([sys.executable, "-I", "-c", program, child.ROOT], capture_output=True, text=True, check=True)
    command = json.loads(done.stdout)
    assert {"-E", "-s"} <= set(command)


def test_engines_are_told_of_a_checkout_and_never_of_site_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/users/own")
    monkeypatch.setattr(child, "ROOT", "/checkout")
    assert child.variables() == {"PYTHONSAFEPATH": "1", "PYTHONPATH": "/checkout:/users/own"}
    monkeypatch.setattr(child, "ROOT", os.path.realpath(site.getsitepackages()[0]))
    assert child.variables() == {"PYTHONSAFEPATH": "1", "PYTHONPATH": "/users/own"}
    monkeypatch.delenv("PYTHONPATH")
    assert child.variables() == {"PYTHONSAFEPATH": "1"}


def test_an_engines_python_does_not_look_into_the_working_directory(foreign: Path) -> None:
    """Starts `python -c`, as Beam starts the worker processes of LOOPBACK."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | child.variables()
    command = [sys.executable, "-c", SHOW]
    done = subprocess.run(command, cwd=foreign, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1] == str(Path(child.ROOT, "pipeline", "__init__.py"))


def test_the_variables_are_put_back_after_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/users/own")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with pytest.raises(ZeroDivisionError), runners.variables_for_engines():
        assert os.environ["PYTHONSAFEPATH"] == "1"
        raise ZeroDivisionError
    assert os.environ["PYTHONPATH"] == "/users/own" and "PYTHONSAFEPATH" not in os.environ
