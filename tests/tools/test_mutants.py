"""The tool that puts faults into the code: what it changes, what it leaves, and which tests it runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.places import ROOT
from tools import mutants

SOURCE = '''"""A module."""

from __future__ import annotations


def clamp(value: int, *, low: int = 0) -> int:
    """Returns value, at least low."""
    if value < low and not value == 7:
        raise ValueError(f"{value} is below {low}")
    print("a message of words", end="")
    return max(low, value + 1)
'''


def changes(source: str) -> set[tuple[str, str]]:
    return {(fault.before, fault.after) for fault in mutants.faults_of("a", source)}


def test_the_faults_of_a_small_module() -> None:
    assert changes(SOURCE) == {
        ("value < low", "(value <= low)"),
        ("value < low and not value == 7", "(value < low or not value == 7)"),
        ("not value == 7", "(value == 7)"),
        ("value == 7", "(value != 7)"),
        ("7", "8"),
        ("0", "1"),
        ("1", "2"),
        ('print("a message of words", end="")', "pass"),
        ("max(low, value + 1)", "(max(value + 1, low))"),
        ("value + 1", "(value - 1)"),
        ("return max(low, value + 1)", "return None"),
    }


def test_each_fault_is_one_change_that_parses() -> None:
    source = SOURCE.replace("below", "bélow")  # offsets are in bytes
    for fault in mutants.faults_of("a", source):
        changed = fault.apply(source.encode()).decode()
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
        assert changed.splitlines()[: fault.line - 1] == source.splitlines()[: fault.line - 1]


def test_every_module_of_the_project_can_get_faults() -> None:
    for name, path in mutants.module_files().items():
        source = path.read_text()
        for fault in mutants.faults_of(name, source)[:3]:
            ast.parse(fault.apply(source.encode()))


def test_the_sample_depends_on_the_seed_alone_and_covers_the_modules() -> None:
    names = ["queries.rules", "pipeline.stages.caps", "pipeline.text.folding"]
    drawn = mutants.sample(names, faults=9, seed=3)
    assert drawn == mutants.sample(names[::-1], faults=9, seed=3) != mutants.sample(names, faults=9, seed=4)
    assert {name: sum(fault.module == name for fault in drawn) for name in names} == dict.fromkeys(names, 3)


def test_the_tests_of_a_module() -> None:
    assert mutants.tests_of("pipeline.text.folding")[0] == "tests/text/test_folding.py"
    assert "tests/text/test_matcher.py" in mutants.tests_of("pipeline.text.matcher_kernel")
    assert all(mutants.tests_of(name) for name in mutants.module_files())


def project(folder: Path) -> Path:
    """A checkout with one module. A test notices its sum, nothing notices its name, and one test always fails."""
    root = folder / "root"
    for name in (*mutants.PACKAGES, "tests"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").touch()
    (root / "pipeline" / "adding.py").write_text("NAME = 'adding'\n\n\ndef add(a, b):\n    return a + b\n")
    (root / "tests" / "test_adding.py").write_text(
        "from pipeline import adding\n\n\ndef test_add():\n    assert adding.add(2, 3) == 5\n"
    )
    (root / "tests" / "test_broken_adding.py").write_text("from pipeline import adding\n\nassert not adding\n")
    return root


def test_faults_are_noticed_or_not_and_the_sources_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = project(tmp_path)
    faults = mutants.sample(["pipeline.adding"], faults=9, seed=0, root=root)
    outcomes = mutants.run(faults, jobs=1, to=tmp_path / "out.json", root=root)
    states = {outcome.fault.after: outcome.state for outcome in outcomes}
    assert states == {"(a - b)": "seen", "return None": "seen", "'addin'": "not_seen"}
    assert "2 of   3" in mutants.summary(outcomes) and "'addin'" in mutants.summary(outcomes)
    assert "addin'" in (tmp_path / "out.json").read_text() and "a + b" in (root / "pipeline" / "adding.py").read_text()
    assert "3/3" in capsys.readouterr().out


def test_an_unknown_module_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        mutants.main(["--modules", "pipeline.nothing"])
    assert refused.value.code == 2 and "--modules pipeline.nothing" in capsys.readouterr().err


def test_root_is_the_checkout() -> None:
    assert mutants.ROOT == ROOT
