"""The options of `pipeline.build`: one group for each stage, and the flat, frozen `Options` with all groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from pipeline import __version__
from pipeline.engine import recipe, runners
from pipeline.engine.command_line import CommandLine
from pipeline.engine.options import option
from pipeline.stages import STAGES
from pipeline.stages.run import HowSettings, RightsSettings, RunSettings

DESCRIPTION = """Web archives or tables in, balanced image-text shards out.

    python -m pipeline.build --input crawl/*.warc.gz --output out
    python -m pipeline.build --config out/recipe.yaml --output again

Every stage writes a folder OUT/stages/<name>. A stage that is COMPLETED is not done again. After a crash, run the same
command again to continue."""


GROUPS = (RunSettings, *(stage.options for stage in STAGES), RightsSettings, HowSettings)  # in the order of the stages


@dataclasses.dataclass(frozen=True)
class Options(*reversed(GROUPS)):  # type: ignore[misc]
    """The options of one run, those of all groups. `engine.options.validate` checks them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowSettings:
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


COMMAND_LINE = CommandLine(
    program="python -m pipeline.build",
    description=DESCRIPTION,
    version=f"openwit {__version__}",
    options=Options,
    groups=GROUPS,
    how=ShowSettings,
    others=runners.beam_flags,
)


def parse(argv: Sequence[str]) -> tuple[Options, ShowSettings]:
    """The command line as Options, validated, and the options of this command alone.

    Raises:
        UsageError, MissingInput: it cannot be carried out. Nothing was written, and Beam was not imported.
    """
    return COMMAND_LINE.parse(argv)


def recipe_text(options: Options) -> str:
    """The recipe of a run as YAML. --config reads it, and makes the same set. It holds no password."""
    from pipeline.sources.inputs import public_spec

    comment = f"openwit {__version__}\npython -m pipeline.build --config recipe.yaml --output OUT"
    return recipe.write(options, comment=comment, public={"input": public_spec, "robots_archive": public_spec})
