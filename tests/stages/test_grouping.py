"""Units that read several small inputs: which ones, and that no row and no count depends on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import build
from pipeline.engine import storage
from pipeline.sources.base import Found, Input
from pipeline.stages import grouping, left_out
from pipeline.stages.input_list import InputList
from tests.archives import member, wat_json, wat_record
from tests.without_beam import without_beam  # noqa: F401

SMALL = 2_000


def table(number: int, size: int | None = SMALL, kind: str = "table") -> Input:
    name, path = f"{number:05d}.parquet", f"/in/{number:05d}.parquet"
    return Input(name, path, kind, size, found=Found(name, path, "/in", size))


def new(inputs: list[Input]) -> InputList:
    return InputList.new(inputs, key_bits=4, specs=["/in"], drops=[])


def changed(old: InputList, inputs: list[Input], **more: Any) -> InputList:
    return old.changed(inputs, specs=["/in"], drops=[], **more)


def test_few_inputs_have_a_unit_each() -> None:
    found = new([table(number) for number in range(grouping.FROM_INPUTS - 1)])
    assert found.members == {number: (number,) for number in found.units}


def test_many_small_inputs_share_units_and_large_ones_do_not() -> None:
    large = [table(2_000, 1 << 30), table(2_001, None, "wat")]
    archives = [table(number, SMALL, "wat") for number in range(3_000, 3_010)]
    found = new([*(table(number) for number in range(1_000)), *large, *archives])
    sizes = [len(members) for members in found.members.values()]
    assert sizes == [*[sizes[0]] * 3, sizes[3], 1, 1, 10] and sum(sizes) == 1_012
    assert max(sizes) <= grouping.MOST_INPUTS
    assert all(unit in members for unit, members in found.members.items())
    assert {unit % 4 for unit in list(found.members)[:4]} == {0, 1, 2, 3}  # in different groups of later steps
    assert found.largest_first[:2] == [1_000, 1_001]


def test_an_input_that_comes_or_goes_changes_no_other_unit(tmp_path: Path) -> None:
    inputs = [table(number) for number in range(600)]
    first = new(inputs)
    first.write(str(tmp_path / "inputs.json"))
    assert InputList.read(str(tmp_path)) == first
    more = changed(first, [*inputs, table(-1), table(900)])
    assert more.members.items() >= first.members.items() and len(more.members) == len(first.members) + 2
    assert first.without(more) == set() and more.without(first) == {600, 601}
    again = changed(first, [*inputs, *(table(number) for number in range(700, 1_000))])
    assert again.members.items() >= first.members.items() and len(again.members) < len(first.members) + 5
    gone = next(unit for unit in first.members if unit)  # the one that names its unit
    fewer = changed(first, [item for number, item in enumerate(inputs) if number != gone])
    touched = first.members[gone]
    assert first.without(fewer) == {gone}
    assert fewer.without(first) == {min(number for number in touched if number != gone)}
    others = {unit: members for unit, members in first.members.items() if unit != gone}
    assert fewer.members.items() >= others.items()


def test_the_units_of_another_set_stay_as_they_are() -> None:
    other = new([table(number) for number in range(300)])
    first = new([table(number) for number in range(5_000, 5_003)])
    both = changed(first, [*first.units.values(), *other.units.values()], others=[other])
    assert [len(members) for members in both.members.values()] == [
        *[1] * 3,
        *(len(members) for members in other.members.values()),
    ]


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 5))
def test_every_input_is_in_one_unit(sizes: list[int], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "FROM_INPUTS", 1)
        patch.setattr(grouping, "MOST_INPUTS", most)
        items = [(number, table(number, size << 20)) for number, size in enumerate(sizes)]
        found = grouping.groups(items)
    assert [number for group in found for number in group] == list(range(len(sizes)))
    for group in found:
        cost = sum(grouping.seconds(items[number][1]) for number in group)
        assert len(group) <= most and (len(group) == 1 or cost <= grouping.UNIT_S)


# ------------------------------------------------------------------------------------------------ builds


def wat(first: int) -> bytes:
    """Two pages at the same places as in the other archives: a German one, and one that forbids AI training."""
    german = [
        {"path": "IMG@/src", "url": f"https://img.example/{first}-{row}.jpg", "alt": f"{text} {first}"}
        for row, text in enumerate(("ein Bild von einem Hund im Garten", "die Katze liegt auf dem Sofa", "red dog"))
    ]
    refused = wat_json(f"{first}r")
    head = refused["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]["Head"]
    head["Metas"] = [{"name": "robots", "content": "noai"}]
    return b"".join(map(member, (wat_record(first, wat_json(first, german)), wat_record(f"{first}r", refused))))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Small archives, one of them cut, and tables, one of them none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.warc.wat.gz").write_bytes(wat(number))
        urls = [f"http://h.example/{number}-{row}.jpg" for row in range(3)]
        pq.write_table(
            pa.table({"url": urls, "text": [f"a red dog {row}" for row in range(3)]}), folder / f"{number}.parquet"
        )
    (folder / "2.warc.wat.gz").write_bytes(wat(2)[:-30])
    (folder / "1.parquet").write_bytes(b"nothing of a table")
    return folder


def run(out: Path, folder: Path, *more: str) -> int:
    queries = out.parent / "queries.txt"
    queries.write_text("dog\npicture\nkatze\n")
    given = ["--output", str(out), "--workers", "1", "--stages", "gather..balance"]
    if "--extend" not in more:
        given += ["--input", str(folder), "--queries", str(queries), "--languages", "all"]
    return build.main([*given, *more])


def counts(out: Path) -> list[dict[str, Any]]:
    """What tells of the rows of each stage: counts, digests, damaged inputs, refusals."""
    stages = [out / "stages" / name for name in ("gather", "match", "dedup", "balance")]
    infos = [json.loads((stage / "info.json").read_text()) for stage in stages]
    return [{name: value for name, value in left_out.counted(info).items() if name != "fingerprint"} for info in infos]


def matched(out: Path) -> list[tuple[Any, ...]]:
    """The rows of match, with the names of their inputs."""
    names = InputList.read(str(out)).names  # type: ignore[union-attr]
    parts = sorted((out / "stages/match/parts").glob("*.arrow"))
    rows = [row for part in parts for batch in storage.read_batches(str(part)) for row in batch.to_pylist()]
    columns = ("url", "text", "source", "source_offset", "language")
    return sorted(tuple(names[row[one]] if one == "source" else row[one] for one in columns) for row in rows)


@pytest.mark.usefixtures("without_beam")
def test_no_row_and_no_count_depends_on_what_shares_a_unit(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after an input that was left out came back, and after one was dropped."""
    found: list[list[Any]] = []
    bad = (inputs / "1.parquet").read_bytes()
    for most in (1, 3):
        monkeypatch.setattr(grouping, "FROM_INPUTS", 1)
        monkeypatch.setattr(grouping, "MOST_INPUTS", most)
        (inputs / "1.parquet").write_bytes(bad)
        out = tmp_path / f"out-{most}"
        assert run(out, inputs, "--skip-bad-inputs") == build.DONE
        units = len(list((out / "stages/match/parts").glob("*.json")))
        found.append([counts(out)])
        rejected = pq.read_table(out / "stages/gather/rejected.parquet")
        found[-1].append(rejected.sort_by([(name, "ascending") for name in rejected.column_names]).to_pylist())
        pq.write_table(pa.table({"url": ["http://h.example/new.jpg"], "text": ["a red dog"]}), inputs / "1.parquet")
        capsys.readouterr()
        assert run(out, inputs, "--retry-failed") == build.DONE
        assert "1 of 1 inputs that were left out could be read now" in capsys.readouterr().err
        found[-1] += [counts(out), matched(out)]
        (inputs / "0.parquet").rename(tmp_path / f"gone-{most}")
        assert run(out, inputs, "--extend", "--drop-input", "0.parquet") == build.DONE
        found[-1].append(counts(out))
        (tmp_path / f"gone-{most}").rename(inputs / "0.parquet")
        assert units == {1: 8, 3: 4}[most]
    assert found[0] == found[1]
    gathered = found[0][0][0]
    assert gathered["left_out"] == ["1.parquet"] and gathered["damaged_inputs"]["count"] == 2
    assert {item["input"] for item in gathered["damaged_inputs"]["inputs"]} == {"1.parquet", "2.warc.wat.gz"}
    assert gathered["dropped"]["opt_out"] == 3 and gathered["rights"]
