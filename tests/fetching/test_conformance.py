"""The cases of conformance of all protocols: how many there are, and that docs/rights.md says so."""

from __future__ import annotations

import importlib
import re

from tests.places import ROOT

ROW = re.compile(r"^\| [^|]+ \| (\d+) \| `(tests/[a-z_/]+)\.py`, ([A-Z_]+) \|$", re.MULTILINE)
LEAST = 300


def test_each_case_names_its_rule_and_the_documentation_counts_them() -> None:
    listed = ROW.findall((ROOT / "docs/rights.md").read_text())
    tables = {(file, name): int(count) for count, file, name in listed}
    assert len(tables) == len(listed) and sum(tables.values()) >= LEAST
    for (file, name), count in tables.items():
        cases = getattr(importlib.import_module(file.replace("/", ".")), name)
        assert len(cases) == count, (file, name, len(cases))
        assert all(isinstance(case[0], str) and case[0] for case in cases), (file, name)
