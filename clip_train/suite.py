"""A suite: the test sets of one evaluation, as YAML. `read_suite` refuses what can be known to be wrong.

    name: mine
    sets:
      - name: cifar10            # of the row in the table
        kind: zero-shot          # or retrieval, probe
        data: [cifar10, wds_cifar10]     # below --root; the first that is there
        metric: accuracy
        prompts: cifar10         # class names and templates that come with clip_train, or:
        classes: [airplane, automobile]  # or a file, or {folder: class name}
        templates: ["a photo of a {}."]  # or a file, or {class name: [prompts]}

Other keys: `split` ("test") and `train` ("train"), the folders within `data`; `k` (1) of recall; `group`, the column of
the .npy members that `worst-group` goes by, and `ignore_group`, a group that does not count; `l2` of a probe; `beside`,
another set of the suite that this one is a shift of: its accuracy on the same classes stands beside; `needs`, what the
set needs on disk, in words; `skip`, why the set is never run. Files are relative to the suite's own folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from clip_train.errors import InputMissing, UsageError
from clip_train.fields import nearest, within
from clip_train.places import refuse_url
from clip_train.prompts import read_classes, read_templates
from clip_train.recipe import parse_file

DATA = Path(__file__).parent / "data"
METRICS = {
    "zero-shot": (
        "accuracy", "accuracy-top5", "accuracy-top1-top5", "mean-per-class", "f1-macro", "roc-auc", "map",
        "map-11-point", "worst-group", "worst-group-top5",
    ),
    "retrieval": ("recall",),
    "probe": ("accuracy", "mean-per-class"),
}  # fmt: skip
MULTI_LABEL = ("map", "map-11-point")
Classes = tuple[str, ...] | dict[str, str]
Templates = tuple[str, ...] | dict[str, list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteSet:
    """One set of a suite."""

    name: str
    kind: str
    data: tuple[str, ...]
    metric: str
    split: str = "test"
    train: str = "train"
    classes: Classes | None = None  # in the order of the labels; or class names by folder or label
    templates: Templates | None = None
    prompts: str | None = None  # an entry of prompts.json: what stands in for names and templates that lie beside
    k: int = 1
    group: int = 0
    ignore_group: int | None = None
    l2: float | None = None
    beside: str | None = None
    needs: str = ""
    skip: str = ""


@dataclasses.dataclass(frozen=True)
class Suite:
    """Sets in the order of the file."""

    name: str
    sets: tuple[SuiteSet, ...]

    def only(self, names: Collection[str] | None) -> Suite:
        """The suite with the sets of these names; None: all."""
        return self if names is None else Suite(self.name, tuple(each for each in self.sets if each.name in names))


def shipped() -> list[str]:
    """The names of the suites that come with clip_train."""
    return sorted(path.stem.removeprefix("suite-") for path in DATA.glob("suite-*.yaml"))


def check_suite(said: str, value: str) -> None:
    """UsageError or InputMissing for a suite that cannot be read, with `said` before the message."""
    try:
        read_suite(value)
    except (UsageError, InputMissing) as error:
        raise type(error)(f"{said} {error}") from None


def read_suite(name: str) -> Suite:
    """A suite that comes with clip_train, by its name, or the one of a file.

    Raises:
        InputMissing: there is no such file.
        UsageError: the file cannot be parsed, or a key of a set is unknown, missing or wrong.
    """
    path = DATA / f"suite-{name}.yaml" if name in shipped() else Path(name)
    if not path.is_file():
        raise InputMissing(f"{name}: neither a file nor a suite of clip_train{nearest(name, shipped())}")
    found = parse_file(path, said=str(path))
    if not isinstance(found, dict) or not isinstance(found.get("sets"), list) or not found["sets"]:
        raise UsageError(f"{path}: a list `sets:` is expected, with name, kind, data and metric of each set")
    strange = [str(key) for key in found if key not in ("name", "sets")]
    if strange:
        raise UsageError(f"{path}: the key {strange[0][:100]!r} is unknown{nearest(strange[0], ('name', 'sets'))}")
    title = found.get("name", path.stem)
    if not isinstance(title, str) or not _is_label(title):
        raise UsageError(f"{path}: name {title!r}: letters, digits and any of -_. are expected")
    sets = tuple(_read_set(path, number, values) for number, values in enumerate(found["sets"]))
    for number, each in enumerate(sets):
        if each.name in {other.name for other in sets[:number]}:
            raise UsageError(f"{path}: set {each.name!r}: name is given twice")
    _check_beside(str(path), sets)
    return Suite(title, sets)


def _check_beside(path: str, sets: tuple[SuiteSet, ...]) -> None:
    """UsageError where `beside` names no set that can be compared."""
    accuracies = [each for each in sets if (each.kind, each.metric) == ("zero-shot", "accuracy")]
    names = [each.name for each in accuracies if each.beside is None]
    for each in sets:
        said = f"{path}: set {each.name!r}: beside: "
        if each.beside is not None and each not in accuracies:
            raise UsageError(f"{said}has no effect without zero-shot accuracy")
        if each.beside is not None and each.beside not in names:
            raise UsageError(f"{said}{each.beside!r} is no set with zero-shot accuracy{nearest(each.beside, names)}")


def _is_label(text: str) -> bool:
    return 0 < len(text) <= 100 and all(char.isalnum() or char in "-_." for char in text) and text.strip(".") != ""


def _read_set(path: Path, number: int, values: Any) -> SuiteSet:
    """One entry of `sets`. Messages name the set and the key."""
    if not isinstance(values, dict):
        raise UsageError(f"{path}: set {number + 1}: keys and values are expected, such as `name: cifar10`")
    name = values.get("name")
    said = f"{path}: set {str(name)[:100]!r}" if isinstance(name, str) else f"{path}: set {number + 1}"
    known = {field.name: field for field in dataclasses.fields(SuiteSet)}
    for key in values:
        if key not in known:
            raise UsageError(f"{said}: the key {str(key)[:100]!r} is unknown{nearest(str(key), known)}")
    missing = [key for key in ("name", "kind", "data", "metric") if values.get(key) in (None, "", [])]
    if missing:
        raise UsageError(f"{said}: {missing[0]} is missing")
    read = {}
    for key, value in values.items():
        try:
            read[key] = _READ[key](value, path.parent)
        except UsageError as error:
            raise UsageError(f"{said}: {key}: {error}") from None
        except InputMissing as error:
            raise InputMissing(f"{said}: {key}: {error}") from None
    made = SuiteSet(**{key: value for key, value in read.items() if value is not None})
    _check_set(said, made, values)
    return made


def _check_set(said: str, made: SuiteSet, given: Mapping[str, Any]) -> None:
    """UsageError where keys of a set do not fit together."""
    if made.metric not in METRICS[made.kind]:
        hint = nearest(made.metric, METRICS[made.kind])
        raise UsageError(f"{said}: metric: {made.metric!r} is unknown for {made.kind}{hint}")
    belongs = {"k": ("retrieval",), "l2": ("probe",), "train": ("probe",), "templates": ("zero-shot",),
               "prompts": ("zero-shot", "probe"), "classes": ("zero-shot", "probe")}  # fmt: skip
    for key, kinds in belongs.items():
        if given.get(key) is not None and made.kind not in kinds:
            raise UsageError(f"{said}: {key}: has no effect on {made.kind}; it belongs to {' and '.join(kinds)}")
    for key in ("group", "ignore_group"):
        if given.get(key) is not None and not made.metric.startswith("worst-group"):
            raise UsageError(f"{said}: {key}: has no effect on metric {made.metric}; it belongs to worst-group")
    if isinstance(made.templates, dict) and made.classes is not None:
        names = made.classes.values() if isinstance(made.classes, dict) else made.classes
        lacking = [name for name in names if name not in made.templates]
        if lacking:
            raise UsageError(f"{said}: templates: no prompts for the class {lacking[0]!r}")


# --- the keys ---------------------------------------------------------------------------------------------------------


def _text(value: Any, _: Path) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise UsageError(f"{_short(value)}: a text is expected{_quotes(value)}")
    return value


def _name(value: Any, _: Path) -> str:
    if not isinstance(value, str) or not _is_label(value):
        raise UsageError(f"{_short(value)}: letters, digits and any of -_. are expected{_quotes(value)}")
    return value


def _kind(value: Any, folder: Path) -> str:
    if not isinstance(value, str) or value not in METRICS:
        raise UsageError(f"{_short(value)} is unknown{nearest(str(value), METRICS)}")
    return value


def _places(value: Any, folder: Path) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise UsageError(f"{_short(value)}: a path below --root, or a list of them, is expected")
    for each in values:
        refuse_url("the place", _text(each, folder))
    return tuple(values)


def _folder(value: Any, folder: Path) -> str:
    if "/" in _text(value, folder) or value in (".", ".."):
        raise UsageError(f"{_short(value)}: the name of a folder is expected")
    return value


def _whole(low: int) -> Callable[[Any, Path], int]:
    def read(value: Any, _: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**31:
            raise UsageError(f"{_short(value)}: a whole number in [{low}, 2147483648) is expected")
        return value

    return read


def _strength(value: Any, _: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not within(value, "[0, inf)"):
        raise UsageError(f"{_short(value)}: a number in [0, inf) is expected")
    return float(value)


def _prompts(value: Any, folder: Path) -> str:
    if _text(value, folder) not in shipped_prompts():
        raise UsageError(f"{_short(value)} is unknown{nearest(value, shipped_prompts())}")
    return value


def _classes(value: Any, folder: Path) -> Classes:
    if isinstance(value, str):
        return tuple(read_classes(str(folder / value), None))
    if isinstance(value, dict) and value:
        return {_word(key): _word(name) for key, name in value.items()}
    if isinstance(value, list) and value:
        return tuple(_word(name) for name in value)
    raise UsageError(f"{_short(value)}: a list of names, a file, or names by folder are expected")


def _templates(value: Any, folder: Path) -> Templates:
    if isinstance(value, str):
        found = read_templates(str(folder / value), None)
        return found if isinstance(found, dict) else tuple(found)
    if isinstance(value, dict) and value:
        for name, prompts in value.items():
            if not isinstance(prompts, list) or not prompts:
                raise UsageError(f"{_short(name)}: a list of prompts is expected")
        return {_word(name): [_word(prompt) for prompt in prompts] for name, prompts in value.items()}
    if isinstance(value, list) and value:
        for template in value:
            if "{}" not in _word(template) and "{c}" not in template:
                raise UsageError(f"{_short(template)} has no place for the class ({{}} or {{c}})")
        return tuple(value)
    raise UsageError(f"{_short(value)}: a list of templates, a file, or prompts by class are expected")


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{_short(value)}: a text is expected{_quotes(value)}")
    return value


def _short(value: Any) -> str:
    return repr(value)[:100]


def _quotes(value: Any) -> str:
    return "; put it in quotes" if isinstance(value, bool | int | float) else ""


_READ: dict[str, Callable[[Any, Path], Any]] = {
    "name": _name, "kind": _kind, "data": _places, "metric": _text, "split": _folder, "train": _folder,
    "classes": _classes, "templates": _templates, "prompts": _prompts, "k": _whole(1), "group": _whole(0),
    "ignore_group": _whole(0), "l2": _strength, "beside": _name, "needs": _text, "skip": _text,
}  # fmt: skip


@cache
def shipped_prompts() -> dict[str, dict[str, list[str]]]:
    """`classes` and `templates` by the name of a set (clip_train/data/README.md has their origin and licence)."""
    found: dict[str, dict[str, list[str]]] = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))
    return found
