"""The inputs of a set, each with its number: OUT/inputs.json.

An input keeps its number while the set grows and shrinks, so what was read of it stays valid. A new input gets a number
that no input has had. The column `source` of a row is the number of the first input with its name. A unit of gather has
the number of its input. Where several inputs share a unit (`grouping`), it has the number of one of them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from pipeline.engine import storage
from pipeline.engine.work import digest_of
from pipeline.sources.base import Found, Input
from pipeline.stages import grouping

FILE = "inputs.json"
_PLAIN, _FOUND = ("name", "path", "format", "bytes"), ("name", "path", "root", "size")


@dataclasses.dataclass(frozen=True)
class InputList:
    """The inputs of a set.

    Attributes:
        units: number -> input, by name and part.
        lineage: digest that all lists share which grew from one list. Units of another lineage are not taken.
        unused: the smallest number that no input has had.
        key_bits: the keys of all units are cut into 2 ** key_bits buckets.
        specs, drops: what the user gave as --input and --drop-input, over all builds of the set.
        shared: number of an input -> number of its unit, for inputs that share a unit.
    """

    units: Mapping[int, Input]
    lineage: str
    unused: int
    key_bits: int
    specs: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    shared: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def new(cls, inputs: Sequence[Input], *, key_bits: int, specs: Sequence[str], drops: Sequence[str]) -> InputList:
        """The list of a new set."""
        units = dict(enumerate(inputs))
        shared = grouping.units(grouping.groups(list(units.items())))
        lineage = digest_of(identities(inputs))
        return cls(units, lineage, len(units), key_bits, tuple(specs), tuple(drops), shared)

    def changed(
        self,
        inputs: Sequence[Input],
        *,
        specs: Sequence[str],
        drops: Sequence[str],
        anew: Container[str] = (),
        others: Iterable[InputList] = (),
    ) -> InputList:
        """The list with other inputs. Those that stay keep their numbers, but for those with a path of `anew`.

        They stay in their units, and new inputs do not join them. Those of `others` stay in the units of their set.
        """
        known = {identity(item): number for number, item in self.units.items()}
        units: dict[int, Input] = {}
        new: dict[tuple[Any, ...], int] = {}
        for item in inputs:
            number = None if path_of(item) in anew else known.get(identity(item))
            if number is None:
                number = new[identity(item)] = self.unused + len(new)
            units[number] = item
        shared = _left_of(self.shared, units)
        for other in others:
            shared |= other._shared_as(new)
            new = {item: number for item, number in new.items() if item not in other.numbers}
        shared |= grouping.units(grouping.groups([(number, units[number]) for number in new.values()]))
        unused = max(units, default=-1) + 1
        return dataclasses.replace(
            self, units=units, unused=max(unused, self.unused), specs=tuple(specs), drops=tuple(drops), shared=shared
        )

    def _shared_as(self, numbers: Mapping[tuple[Any, ...], int]) -> dict[int, int]:
        """`shared` of a list that takes the inputs of some units under new numbers, for units that it takes whole."""
        taken = [[numbers.get(identity(self.units[one])) for one in members] for members in self.members.values()]
        firsts = [numbers.get(identity(self.units[unit])) for unit in self.members]
        found: dict[int, int] = {}
        for unit, members in zip(firsts, taken, strict=True):
            if len(members) > 1 and unit is not None and None not in members:
                found |= {number: unit for number in members if number is not None}
        return found

    @functools.cached_property
    def numbers(self) -> dict[tuple[Any, ...], int]:
        """`identity` of an input -> its number."""
        return {identity(item): number for number, item in self.units.items()}

    @functools.cached_property
    def members(self) -> dict[int, tuple[int, ...]]:
        """Number of a unit -> the numbers of its inputs, in the order of the list."""
        found: dict[int, list[int]] = {}
        for number in self.units:
            found.setdefault(self.shared.get(number, number), []).append(number)
        return {unit: tuple(numbers) for unit, numbers in found.items()}

    @functools.cached_property
    def largest_first(self) -> list[int]:
        """The units, those that take longest first: so the last ones that run are short."""
        cost = {unit: sum(grouping.seconds(self.units[one]) for one in some) for unit, some in self.members.items()}
        return sorted(cost, key=lambda unit: (-cost[unit], unit))

    def has_inputs(self, inputs: Sequence[Input]) -> bool:
        """True if these are the inputs, in whatever place they lie."""
        return {identity(item) for item in self.units.values()} == {identity(item) for item in inputs}

    def has_units(self, other: InputList) -> bool:
        """True if the other list has the same inputs under the same numbers, in the same units."""
        return self.units.keys() == other.units.keys() and not self.without(other)

    def without(self, other: InputList) -> set[int]:
        """The inputs that another list lacks, or holds another one for, and the units with other inputs there."""
        there = {number: identity(item) for number, item in other.units.items()}
        gone = {number for number, item in self.units.items() if there.get(number) != identity(item)}
        units = (unit for unit, members in self.members.items() if set(other.members.get(unit, ())) != set(members))
        return gone | set(units)

    @property
    def names(self) -> list[str]:
        """The name of each input. A number without an input has the name ""."""
        names = [""] * (max(self.units, default=-1) + 1)
        for unit, item in self.units.items():
            names[unit] = item.name
        return names

    @functools.cached_property
    def sources(self) -> dict[str, int]:
        """Name of an input -> its number in the column `source`."""
        found: dict[str, int] = {}
        for unit, item in self.units.items():
            found[item.name] = min(unit, found.get(item.name, unit))
        return found

    @classmethod
    def read(cls, root: str) -> InputList | None:
        """The list of a folder; None if it has none, or one of an older version.

        Raises:
            DamagedError: the file is not as it was written.
        """
        found = storage.read_json(os.path.join(root, FILE))
        if found is None or "lineage" not in found:
            return None
        items = found.pop("items")
        shared = {item["unit"]: item.pop("shared") for item in items if "shared" in item}
        strings: dict[str, str] = {}
        units = {item.pop("unit"): _input(item, strings) for item in items}
        return cls(units, **{**found, "specs": tuple(found["specs"]), "drops": tuple(found["drops"])}, shared=shared)

    def write(self, path: str) -> None:
        """Writes the file for the workers and for later runs."""
        shared = {number: {"shared": unit} for number, unit in self.shared.items()}
        items = [{**_json(item), "unit": number, **shared.get(number, {})} for number, item in self.units.items()]
        rest = {name: getattr(self, name) for name in ("lineage", "unused", "key_bits", "specs", "drops")}
        storage.write_json(path, {"items": items, **rest})


def _left_of(shared: Mapping[int, int], numbers: Container[int]) -> dict[int, int]:
    """What is left of shared units. A unit whose number goes gets that of another input, since it is read again."""
    members: dict[int, list[int]] = {}
    for number, unit in shared.items():
        if number in numbers:
            members.setdefault(unit, []).append(number)
    units = {unit: unit if unit in some else min(some) for unit, some in members.items()}
    return {number: units[unit] for unit, some in members.items() if len(some) > 1 for number in some}


def identity(item: Input) -> tuple[Any, ...]:
    """What tells an input from another one. Its place does not count."""
    return item.name, item.format, item.bytes, item.part


def path_of(item: Input) -> str:
    """The path of the file behind an input."""
    return item.found.path if item.found else item.path


def identities(inputs: Sequence[Input]) -> list[list[Any]]:
    """The same of several inputs, as JSON."""
    return [list(identity(item)) for item in inputs]


def _json(item: Input) -> dict[str, Any]:
    """An input as JSON. Of the file behind it, only what differs: a list of 90,000 inputs is long."""
    found, same = item.found, _found_of(item.name, item.path, item.bytes)
    both = [] if found is None else [(name, getattr(found, name)) for name in _FOUND]
    differs = None if found is None else {name: value for name, value in both if same.get(name) != value}
    return {**{name: getattr(item, name) for name in _PLAIN}, "part": item.part, "found": differs}


def _found_of(name: str, path: str, size: int | None) -> dict[str, Any]:
    """The file behind an input, as far as the input tells."""
    return {"name": name, "path": path, "size": size}


def _input(item: dict[str, Any], shared: dict[str, str]) -> Input:
    """The inverse of `_json`, and of its longer form. Equal strings of `shared` are one object."""
    part, found = item.pop("part"), item.pop("found")
    if found is not None:
        found = {**_found_of(item["name"], item["path"], item["bytes"]), **found}
        found["root"] = shared.setdefault(found.get("root", ""), found.get("root", ""))
    item["format"] = shared.setdefault(item["format"], item["format"])
    return Input(**item, part=tuple(part) if part else None, found=Found(**found) if found is not None else None)
