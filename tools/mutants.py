"""Puts single faults into the code and lists those that no test notices.

    python -m tools.mutants --faults 400 --spread 60 --seed 7 --jobs 2 --to mutants.jsonl
    python -m tools.mutants --modules pipeline.stages.caps queries.rules --faults 20
    python -m tools.mutants --again mutants.jsonl --to again.jsonl

A fault is one small change of a source file: another operator, another constant, two swapped arguments, a condition
turned round, a dropped statement. The sample depends on the seed and the sources alone. Each fault goes into a copy of
the checkout, then tests run there until the first one fails: of the test files that are nearest to the module, the
tests that enter the function of the fault, the fast ones first. Which tests these are is found once by a run without
faults, and kept in .mutants. Other test files that were run for other modules give such tests, too. The tests of a
kernel are also those of its reference.

Outcomes are appended to --to as they come. The same command goes on where it stopped. --again tries those once more
that were not noticed: give it more --seconds of tests for a fault, more files (--near), and more --file-seconds for
the first run of a file, whose later tests are not tried else.

A fault that was not noticed is either a gap in the tests or a change without an effect. A person decides that:
docs/testing.md has the figures, and the reason for each fault that was left.

A fault can send requests anywhere or fill a disk. Run this where it can do no harm, best without a network:
`unshare -rn sh -c 'ip link set lo up; make mutants'`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tools import mutant_runs
from tools.mutant_faults import Fault, sample
from tools.mutant_tests import Known, choose, function_of, module_files, tests_of

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".mutants"
FILE_SECONDS = 40  # for the run of one test file without faults; the tests that come later are not known
SLACK = 30  # seconds that the tests of a fault may take beside four times their usual time


@dataclass(frozen=True)
class Outcome:
    """What became of a fault. `state` is seen, not_seen or timeout (a hang is seen, too).

    `by` is the test that noticed. `tried` and `left` count the tests that were run and those that had no time.
    """

    fault: Fault
    state: str
    seconds: float
    by: str
    tried: int
    left: int
    text: str  # the line of the source, to find the place again


@dataclass(frozen=True)
class Effort:
    """How much is tried: seconds of tests for a fault, test files for a module, seconds for the first run of a file.

    `tests` are test files that are tried first, for every module.
    """

    seconds: float = 15
    near: int = 3
    file_seconds: float = FILE_SECONDS
    tests: tuple[str, ...] = ()


# ---- runs


class Bench:
    """A copy of the checkout in which one fault at a time is tried."""

    def __init__(self, root: Path, work: Path, number: int, effort: Effort) -> None:
        self.root, self.work, self.effort = root, work, effort
        (place := work / str(number)).mkdir(parents=True, exist_ok=True)
        self.copy = mutant_runs.refresh(root, place)
        mutant_runs.compile_kernels(self.copy)
        self.number = 0
        self._read: dict[Path, Known] = {}

    def known(self, file: str) -> Known:
        """What a run of a test file without faults shows. It is kept until the file changes."""
        kept = self._kept(file)
        known = Known(**json.loads(kept.read_text())) if kept.exists() else Known({}, {}, [], complete=False)
        if kept.exists() and (known.complete or self.effort.file_seconds <= FILE_SECONDS):
            return known
        report = mutant_runs.run_tests(
            self.copy,
            [file],
            chosen=None,
            seconds=self.effort.file_seconds + SLACK,
            trace=True,
            stop_after=self.effort.file_seconds,
            without=known.seconds,
        )
        known = Known(
            known.seconds | report.seconds,
            known.entered | {test: names for test, names in report.entered.items() if test in report.seconds},
            sorted({*known.shared, *report.shared}),
            complete=report.complete or self.effort.file_seconds > FILE_SECONDS,
        )
        kept.parent.mkdir(exist_ok=True)
        (part := kept.with_suffix(f".{os.getpid()}")).write_text(json.dumps(asdict(known)))
        part.replace(kept)
        return known

    def _all_known(self) -> dict[str, Known]:
        """What is known of all test files that have been run without faults, as far as they have not changed."""
        found = {}
        for file in sorted((self.root / "tests").rglob("test_*.py")):
            kept = self._kept(str(file.relative_to(self.root)))
            if kept.exists():
                if kept not in self._read:
                    self._read[kept] = Known(**json.loads(kept.read_text()))
                found[str(file.relative_to(self.root))] = self._read[kept]
        return found

    def _kept(self, file: str) -> Path:
        digest = hashlib.sha256((self.root / file).read_bytes()).hexdigest()[:12]
        return self.work / "known" / f"{file.replace('/', '+')}-{digest}.json"

    def tests(self, fault: Fault) -> tuple[list[str], int, float]:
        """The tests for a fault, the number of those that are left out, and the seconds that the chosen ones take."""
        path = module_files(self.root)[fault.module]
        lines = function_of(fault, path.read_text()) if not fault.module.endswith("_kernel") else set()
        files = [*self.effort.tests, *tests_of(fault.module, self.root)[: self.effort.near]]
        files = list(dict.fromkeys(files))
        near = [self.known(file) for file in files]
        far = [known for file, known in self._all_known().items() if file not in files]
        file = str(path.relative_to(self.root))
        tests, left = choose(near, far, file=file, lines=lines, seconds=self.effort.seconds)
        taken = {test: seconds for each in [*near, *far] for test, seconds in each.seconds.items()}
        return tests, left, sum(taken[test] for test in tests)

    def try_fault(self, fault: Fault) -> Outcome:
        """Puts a fault into the copy, runs the tests, and takes the fault out again."""
        tests, left, usual = self.tests(fault)
        path = module_files(self.copy)[fault.module]
        source = path.read_bytes()
        files = list(dict.fromkeys(test.split("::")[0] for test in tests))
        start = time.perf_counter()
        self.number += 1
        state, by = "not_seen", ""
        if tests:
            with mutant_runs.changed(self.copy, path, fault.apply(source), self.number):
                limit = SLACK + 4 * usual
                report = mutant_runs.run_tests(self.copy, files, chosen=tests, seconds=limit)
            by = report.failed
            state = "timeout" if not report.ended else "seen" if by else "not_seen"
        text = source.decode().splitlines()[fault.line - 1].strip()
        return Outcome(fault, state, round(time.perf_counter() - start, 1), by, len(tests), left, text)


def run(
    faults: list[Fault], *, jobs: int, to: Path, effort: Effort | None = None, root: Path = ROOT, work: Path = WORK
) -> list[Outcome]:
    """Tries each fault that has no outcome in `to`, prints a line for each outcome, and appends it to `to`.

    Returns all outcomes of `faults` that are in `to`. Each of the `jobs` processes has the faults of some modules.
    """
    done = {outcome.fault for outcome in outcomes_in(to)}
    todo = [fault for fault in faults if fault not in done]
    modules = sorted({fault.module for fault in todo})
    pids = []
    for number in range(min(jobs, len(modules))):
        mine = [fault for fault in todo if modules.index(fault.module) % jobs == number]
        pid = os.fork()
        if not pid:
            try:
                bench = Bench(root, work, number, effort or Effort())
                for fault in mine:
                    _append(to, bench.try_fault(fault), done=len(faults) - len(todo), total=len(faults))
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    failed = [pid for pid in pids if os.waitpid(pid, 0)[1]]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(pids)} processes ended early; the same command goes on")
    wanted = set(faults)
    return [outcome for outcome in outcomes_in(to) if outcome.fault in wanted]


def _append(to: Path, outcome: Outcome, *, done: int, total: int) -> None:
    """Writes one outcome. Short lines in append mode do not mix."""
    with to.open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")
    print(f"{len(outcomes_in(to))} {_line(outcome)}", flush=True)


def outcomes_in(path: Path) -> list[Outcome]:
    """The outcomes in a file, or none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [Outcome(**row | {"fault": Fault(**row["fault"])}) for row in rows]


def not_noticed(path: Path, root: Path = ROOT) -> list[Fault]:
    """The faults of a file of outcomes that no test noticed, at their places in the sources of now.

    Those whose line is gone are left out.
    """
    files = module_files(root)
    found = []
    for outcome in outcomes_in(path):
        if outcome.state == "not_seen" and outcome.fault.module in files:
            source = files[outcome.fault.module].read_text()
            again = sample({outcome.fault.module: source}, faults=10**6, seed=0)
            same = [
                fault
                for fault in again
                if (fault.before, fault.after) == (outcome.fault.before, outcome.fault.after)
                and source.splitlines()[fault.line - 1].strip() == outcome.text
            ]
            found += sorted(same, key=lambda fault: abs(fault.start - outcome.fault.start))[:1]
    return found


# ---- words


def _line(outcome: Outcome) -> str:
    fault = outcome.fault
    change = f"{fault.before!r} -> {fault.after!r}"
    left = f" ({outcome.tried} tests, {outcome.left} left)" if outcome.state == "not_seen" else ""
    return f"{outcome.state:8} {outcome.seconds:5.1f} s {fault.module}:{fault.line} {change[:150]}{left}"


def summary(outcomes: list[Outcome]) -> str:
    """A table by module, then the faults that no test noticed."""
    rows: dict[str, tuple[int, int]] = {}
    for outcome in outcomes:
        noticed, total = rows.get(outcome.fault.module, (0, 0))
        rows[outcome.fault.module] = (noticed + (outcome.state in ("seen", "timeout")), total + 1)
    noticed = sum(row[0] for row in rows.values())
    lines = [f"{name:44} {row[0]:3} of {row[1]:3}" for name, row in sorted(rows.items())]
    missed = [_line(each) for each in outcomes if each.state == "not_seen"]
    return "\n".join([*lines, f"{'all':44} {noticed:3} of {len(outcomes):3}", "", "not noticed:", *missed])


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__.split("\n")[0])
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="dotted names, or the start of some; default: all")
    parser.add_argument("--faults", type=int, default=40, help="number of faults (default: 40)")
    parser.add_argument("--spread", type=int, metavar="N", help="draw N of the modules (default: all of them)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default: 1)")
    parser.add_argument("--seconds", type=float, default=15, help="of tests for a fault (default: 15)")
    parser.add_argument("--near", type=int, default=3, help="test files for a module (default: 3)")
    parser.add_argument(
        "--file-seconds", type=float, default=FILE_SECONDS, help="for the first run of a test file (default: 40)"
    )
    parser.add_argument("--tests", nargs="+", default=[], metavar="FILE", help="test files for every module, too")
    parser.add_argument("--to", type=Path, default=Path("mutants.jsonl"), metavar="FILE", help="append outcomes here")
    parser.add_argument("--again", type=Path, metavar="FILE", help="try those of FILE that were not noticed")
    parser.add_argument("--work", type=Path, default=WORK, metavar="FOLDER", help="of the copies (default: .mutants)")
    parser.add_argument("--list", action="store_true", help="print the faults and the test files, and run nothing")
    options = parser.parse_args(argv)
    known = {name: path for name, path in module_files(ROOT).items() if ".demo." not in name}
    wanted = options.modules or ["pipeline", "queries", "clip_train"]
    names = [name for name in known if any(name == each or name.startswith(f"{each}.") for each in wanted)]
    if not names:
        first = next(iter(known))
        parser.error(f"--modules {' '.join(wanted)}: no such module; {len(known)} are known, the first is {first}")
    options.sources = {name: known[name].read_text() for name in names}
    return options


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    faults = sample(options.sources, faults=options.faults, seed=options.seed, spread=options.spread)
    if options.again:
        faults = [fault for fault in not_noticed(options.again) if fault.module in options.sources]
    if options.list:
        for fault in faults:
            tests = " ".join(tests_of(fault.module, ROOT)[: options.near])
            print(f"{fault.module}:{fault.line} {fault.kind}: {fault.before!r} -> {fault.after!r} [{tests}]")
        return 0
    mutant_runs.preload(ROOT)
    effort = Effort(options.seconds, options.near, options.file_seconds, tuple(options.tests))
    print(summary(run(faults, jobs=options.jobs, to=options.to, effort=effort, work=options.work)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
