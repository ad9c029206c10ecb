"""The inputs of a set, each with the number of its unit: OUT/inputs.json.

An input keeps its number while the set grows and shrinks, so what was read of it stays valid. A new input gets a number
that no input has had. The column `source` of a row is the number of the first unit with the name of its input.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Container, Mapping, Sequence
from typing import Any

from pipeline.engine import storage
from pipeline.engine.work import digest_of
from pipeline.sources.base import Found, Input

FILE = "inputs.json"


@dataclasses.dataclass(frozen=True)
class InputList:
    """The inputs of a set.

    Attributes:
        units: number of the unit -> input, by name and part.
        lineage: digest that all lists share which grew from one list. Units of another lineage are not taken.
        unused: the smallest number that no input has had.
        key_bits: the keys of all units are cut into 2 ** key_bits buckets.
        specs, drops: what the user gave as --input and --drop-input, over all builds of the set.
    """

    units: Mapping[int, Input]
    lineage: str
    unused: int
    key_bits: int
    specs: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()

    @classmethod
    def new(cls, inputs: Sequence[Input], *, key_bits: int, specs: Sequence[str], drops: Sequence[str]) -> InputList:
        """The list of a new set."""
        units = dict(enumerate(inputs))
        return cls(units, digest_of(identities(inputs)), len(units), key_bits, tuple(specs), tuple(drops))

    def changed(
        self, inputs: Sequence[Input], *, specs: Sequence[str], drops: Sequence[str], anew: Container[str] = ()
    ) -> InputList:
        """The list with other inputs. Those that stay keep their numbers, but for those with a path of `anew`."""
        known = {identity(item): unit for unit, item in self.units.items()}
        units, unused = {}, self.unused
        for item in inputs:
            unit = None if path_of(item) in anew else known.get(identity(item))
            if unit is None:
                unit, unused = unused, unused + 1
            units[unit] = item
        return dataclasses.replace(self, units=units, unused=unused, specs=tuple(specs), drops=tuple(drops))

    def has_inputs(self, inputs: Sequence[Input]) -> bool:
        """True if these are the inputs, in whatever place they lie."""
        return {identity(item) for item in self.units.values()} == {identity(item) for item in inputs}

    def has_units(self, other: InputList) -> bool:
        """True if the other list has the same units."""
        return self.units.keys() == other.units.keys() and not self.without(other)

    def without(self, other: InputList) -> dict[int, Input]:
        """The units that another list lacks, or holds another input for."""
        there = {unit: identity(item) for unit, item in other.units.items()}
        return {unit: item for unit, item in self.units.items() if there.get(unit) != identity(item)}

    @property
    def names(self) -> list[str]:
        """The name of each unit's input. A unit without an input has the name ""."""
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
        units = {item.pop("unit"): _input(item) for item in found.pop("items")}
        return cls(units, **{**found, "specs": tuple(found["specs"]), "drops": tuple(found["drops"])})

    def write(self, path: str) -> None:
        """Writes the file for the workers and for later runs."""
        items = [{**dataclasses.asdict(item), "unit": unit} for unit, item in self.units.items()]
        rest = {name: getattr(self, name) for name in ("lineage", "unused", "key_bits", "specs", "drops")}
        storage.write_json(path, {"items": items, **rest})


def identity(item: Input) -> tuple[Any, ...]:
    """What tells an input from another one. Its place does not count."""
    return item.name, item.format, item.bytes, item.part


def path_of(item: Input) -> str:
    """The path of the file behind an input."""
    return item.found.path if item.found else item.path


def identities(inputs: Sequence[Input]) -> list[list[Any]]:
    """The same of several inputs, as JSON."""
    return [list(identity(item)) for item in inputs]


def _input(item: dict[str, Any]) -> Input:
    part, found = item.pop("part"), item.pop("found")
    return Input(**item, part=tuple(part) if part else None, found=Found(**found) if found else None)
