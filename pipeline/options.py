"""The options of `pipeline.build`: one group for each stage, and the flat, frozen `Options` with all groups."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline import __version__
from pipeline.engine import checks, engine_flags, recipe, storage
from pipeline.engine.cli import MissingInput, UsageError
from pipeline.engine.command_line import CommandLine
from pipeline.engine.log_options import LogSettings
from pipeline.engine.options import declared, option, show, validate
from pipeline.stages import STAGES
from pipeline.stages.run import RECIPE, HowSettings, RightsSettings, RunSettings

DESCRIPTION = """Web archives or tables in, balanced image-text shards out.

    python -m pipeline.build --input crawl/*.warc.gz --output out
    python -m pipeline.build --config out/recipe.yaml --output again

Every stage writes a folder OUT/stages/<name>. A stage that is COMPLETED is not done again. After a crash, run the same
command again to continue."""


INPUTS = ("input", "drop_input")  # what --extend changes
GROUPS = (RunSettings, *(stage.options for stage in STAGES), RightsSettings, HowSettings)  # in the order of the stages


@dataclasses.dataclass(frozen=True)
class Options(*reversed(GROUPS)):  # type: ignore[misc]
    """The options of one run, those of all groups. `engine.options.validate` checks them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowSettings(LogSettings):
    """The options that concern one command alone, not the run."""

    title: ClassVar[str] = "this command"

    config: str | None = option(
        None,
        help="recipe (.yaml, .toml or .json) with options by name, such as OUT/recipe.yaml; flags win over it",
        metavar="FILE",
        steers=True,
    )
    print_config: bool = option(False, help="print the recipe that results, and do nothing", steers=True)
    plan: bool = option(False, flag=("--plan", "--dry-run"), help="say what would be done, and do nothing", steers=True)
    json: bool = option(False, help="print the summary as JSON", steers=True)


def options_of_set(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the set in OUT, for a command that changes its inputs; {} for other commands.

    Args:
        given: the values of the flags.

    Raises:
        UsageError: OUT holds no set.
    """
    changes = given.get("extend") or (given.get("drop_input") and not given.get("input"))
    if not changes or "output" not in given:
        return {}
    path = os.path.join(given["output"], RECIPE)
    try:
        checks.readable_file(path)
    except (UsageError, MissingInput):
        if checks.URL.match(given["output"]):
            return {}  # `validate` refuses it, or the run does
        raise UsageError(f"--extend: {given['output']} holds no set: build one first") from None
    return {**recipe.read(path, Options, without=INPUTS), "extend": True}


def check_options(options: Options) -> None:
    """Refuses to change the inputs of a set together with its options. With --redo, `continuing` refuses.

    Raises:
        UsageError: its message names the option, both values, and what to type.
    """
    path = os.path.join(options.output, RECIPE)
    if not options.extend or options.redo or not storage.is_file(path):
        return
    there = validate(Options(**recipe.read(path, Options, without=INPUTS), output=options.output, extend=True))
    here = validate(options)  # the caller of `build` may leave open what follows from other options
    for item in declared(Options):
        old, new = getattr(there, item.name), getattr(here, item.name)
        if not item.steers and item.name not in INPUTS and old != new:
            was = "not given" if old is None else show(old)
            raise UsageError(
                f"{item.shown} {show(new)}: must be as in the set ({was}) for --extend. Leave it out, or name with "
                "--redo the first stage that changes"
            )


COMMAND_LINE = CommandLine(
    program="python -m pipeline.build",
    script="openwit-build",
    description=DESCRIPTION,
    version=f"openwit {__version__}",
    options=Options,
    groups=GROUPS,
    how=ShowSettings,
    others=engine_flags.known,
    beneath=options_of_set,
)


def parse(argv: Sequence[str]) -> tuple[Options, ShowSettings]:
    """The command line as Options, validated, and the options of this command alone.

    Raises:
        UsageError, MissingInput: it cannot be carried out. Nothing was written, and Beam was not imported.
    """
    options, how = COMMAND_LINE.parse(argv)
    check_options(options)
    return options, how


def recipe_text(options: Options, *, inputs: Sequence[str] | None = None, drops: Sequence[str] = ()) -> str:
    """The recipe of a run as YAML. --config reads it, and makes the same set. It holds no password.

    `inputs` and `drops` replace --input and --drop-input.
    """
    from pipeline.sources.inputs import public_spec

    comment = f"openwit {__version__}\npython -m pipeline.build --config recipe.yaml --output OUT"
    if inputs is not None:
        options = dataclasses.replace(options, **{"input": tuple(inputs), "drop_input": tuple(drops)})
    return recipe.write(options, comment=comment, public=dict.fromkeys((*INPUTS, "robots_archive"), public_spec))
