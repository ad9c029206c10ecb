"""The tool that puts faults into the code: what it changes, what it leaves, and which tests it runs."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

from tests import processes
from tests.places import ROOT
from tools import mutant_runs, mutant_tests, mutants
from tools.mutant_faults import faults_of, sample
from tools.mutant_tests import PACKAGES, Known, choose, function_of, module_files

SOURCE = '''"""A module."""

from __future__ import annotations


def clamp(value: int, *, low: int = 0) -> int:
    """Returns value, at least low."""
    if value < low and not value == 7:
        raise ValueError(f"{value} is below {low}")
    print("a message of words", end="")
    return max(low, value + 1)
'''


WAITS = """import subprocess
from pathlib import Path


def test_waits():
    other = subprocess.Popen(["sleep", "77"], start_new_session=True)
    Path("pid").write_text(f"{other.pid}")
    other.wait()
"""


def changes(source: str) -> set[tuple[str, str]]:
    return {(fault.before, fault.after) for fault in faults_of("a", source)}


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
        ("value + 1", "(value - 1)"),
        ("return max(low, value + 1)", "return None"),
    }


def test_each_fault_is_one_change_that_parses() -> None:
    source = SOURCE.replace("below", "bélow")  # offsets are in bytes
    for fault in faults_of("a", source):
        changed = fault.apply(source.encode()).decode()
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
        assert changed.splitlines()[: fault.line - 1] == source.splitlines()[: fault.line - 1]


def test_every_module_of_the_project_can_get_faults() -> None:
    for path in list(module_files(ROOT).values())[::9]:
        source = path.read_text()
        for fault in faults_of("a", source)[:3]:
            ast.parse(fault.apply(source.encode()))


def test_what_nobody_can_notice_gets_no_fault() -> None:
    source = """
__all__ = ["clamp"]
CHUNK_BYTES = 65_536
parser.add_argument("--low", help="low", metavar="L")
logging.warning("low")
warnings.warn("low", stacklevel=2)
low = min(high, low)
"""
    assert changes(source) == {
        ('"--low"', "'--lo'"),
        ('parser.add_argument("--low", help="low", metavar="L")', "pass"),
    }


def test_the_sample_depends_on_the_seed_alone_and_covers_the_modules() -> None:
    names = ["queries.rules", "pipeline.stages.caps", "pipeline.text.folding"]
    sources = {name: module_files(ROOT)[name].read_text() for name in names}
    drawn = sample(sources, faults=9, seed=3)
    turned = dict(reversed(sources.items()))
    assert drawn == sample(turned, faults=9, seed=3) != sample(sources, faults=9, seed=4)
    assert {name: sum(fault.module == name for fault in drawn) for name in names} == dict.fromkeys(names, 3)
    some = {fault.module for seed in range(20) for fault in sample(sources, faults=2, seed=seed, spread=1)}
    assert some == set(names) and len({fault.module for fault in sample(sources, faults=9, seed=3, spread=2)}) == 2


def test_the_tests_of_a_module() -> None:
    assert mutant_tests.tests_of("pipeline.text.folding", ROOT)[0] == "tests/text/test_folding.py"
    assert "tests/text/test_matcher.py" in mutant_tests.tests_of("pipeline.text.matcher_kernel", ROOT)
    assert all(mutant_tests.tests_of(name, ROOT) for name in list(module_files(ROOT))[::25])


def test_the_function_of_a_fault() -> None:
    fault = next(fault for fault in faults_of("a", SOURCE) if fault.before == "value + 1")
    assert function_of(fault, SOURCE) == {"6"} and function_of(fault, "one = 1\n" * 20) == set()
    nested = "@cache\ndef outer():\n    def inner():\n        return 1 + 2\n    return inner() + 3\n"
    lines = {fault.before: function_of(fault, nested) for fault in faults_of("a", nested)}
    assert lines["1"] == {"3"} and lines["3"] == {"1", "2"}


def test_the_tests_that_enter_the_function_come_first() -> None:
    near = Known({"a::slow": 9.0, "a::other": 1.0, "a::fast": 2.0}, {"a::slow": ["m.py:6"], "a::fast": ["m.py:6"]}, [])
    far = Known({"b::all": 1.0}, {"b::all": ["m.py:9"]}, [])
    both, tests = [near, far], ["a::fast", "a::slow", "a::other", "b::all"]
    assert choose(both, [], file="m.py", lines={"6"}, seconds=20) == (tests, 0)
    assert choose(both, [], file="m.py", lines={"6"}, seconds=4) == (["a::fast", "a::other", "b::all"], 1)
    assert choose(both, [], file="m.py", lines=set(), seconds=20)[0] == ["b::all", "a::fast", "a::slow", "a::other"]
    assert choose([far], [near], file="m.py", lines={"6"}, seconds=20)[0] == ["a::fast", "a::slow", "b::all"]
    shared = Known({"c::one": 3.0}, {"c::one": []}, ["m.py:6"])
    assert choose([far, shared], [], file="m.py", lines={"6"}, seconds=20)[0] == ["c::one", "b::all"]


def project(folder: Path) -> Path:
    """A checkout with one module. A test notices its sum, nothing notices its name, and one test always fails."""
    root = folder / "root"
    for name in (*PACKAGES, "tests"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").touch()
    (root / "pipeline" / "adding.py").write_text(
        "NAME = 'adding'\n\n\ndef add(a, b):\n    while a < 0:\n        a += 1\n    return a + b\n"
    )
    (root / "tests" / "test_adding.py").write_text(
        "from pipeline import adding\n\n\ndef test_add():\n    assert adding.add(-2, 3) == 3\n"
    )
    (root / "tests" / "test_broken_adding.py").write_text("from pipeline import adding\n\nassert not adding\n")
    return root


def test_faults_are_noticed_or_not_and_the_sources_stay(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = project(tmp_path), tmp_path / "out.jsonl"
    source = (root / "pipeline" / "adding.py").read_text()
    faults = sample({"pipeline.adding": source}, faults=9, seed=0)
    endless = [fault for fault in faults if fault.after == "pass"]
    with monkeypatch.context() as patch:
        patch.setattr(mutants, "SLACK", 1)
        mutants.run(endless, jobs=1, to=out, root=root, work=tmp_path / "work")
    outcomes = mutants.run(faults, jobs=2, to=out, root=root, work=tmp_path / "work")  # goes on
    states = {outcome.fault.after: outcome.state for outcome in outcomes}
    assert states == {
        "(a - b)": "seen",
        "return None": "seen",
        "(a <= 0)": "seen",
        "1": "seen",
        "2": "not_seen",
        "pass": "timeout",
        "'addin'": "not_seen",
    }
    assert len(out.read_text().splitlines()) == len(faults) == 7
    assert "5 of   7" in mutants.summary(outcomes) and "'addin'" in mutants.summary(outcomes)
    assert (root / "pipeline" / "adding.py").read_text() == source
    assert source == (tmp_path / "work" / "0" / "checkout" / "pipeline" / "adding.py").read_text()
    assert "7 " in capfd.readouterr().out

    (root / "pipeline" / "adding.py").write_text(f"# moved\n{source}")
    assert [(each.line, each.after) for each in mutants.not_noticed(out, root)] == [(2, "'addin'"), (7, "2")]


def test_a_child_that_is_stopped_leaves_no_process(tmp_path: Path) -> None:
    checkout = mutant_runs.refresh(project(tmp_path), tmp_path)
    (checkout / "tests" / "test_waits.py").write_text(WAITS)
    pid, seconds = checkout / "pid", 1.0
    while not (pid.exists() and pid.read_text()):  # the limit came before the test began
        report = mutant_runs.run_tests(checkout, ["tests/test_waits.py"], chosen=None, seconds=seconds)
        assert not report.ended and seconds < 77
        seconds *= 2
    while processes.alive(int(pid.read_text())):  # a killed process takes a moment to end
        time.sleep(0.05)


def test_an_unknown_module_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        mutants.main(["--modules", "pipeline.nothing"])
    assert refused.value.code == 2 and "--modules pipeline.nothing" in capsys.readouterr().err


def test_root_is_the_checkout() -> None:
    assert mutants.ROOT == ROOT
