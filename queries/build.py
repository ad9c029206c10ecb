"""Builds the query list from public dumps, counts, pageviews and WordNet.

    python -m queries.build --output english --wikipedia 'enwiki_content-*.json.bz2' --pageviews pageviews-*.bz2 \\
        --wordnet /usr/share/wordnet

As in the CLIP paper, the list holds the numbers 0-99, WordNet's lemmas, the words with at least --min-count
occurrences, the best pairs of words, and the most viewed titles. It has at most --size queries. Each source has a share
of them, as in MetaCLIP's list. Room that a source does not use goes to the others. Every source is optional. Slurs and
explicit English terms are left out. The same inputs give the same list with any number of workers.
"""

from __future__ import annotations

from pipeline.engine import interrupts, log_file

if __name__ == "__main__":
    interrupts.install("queries.build")  # before the imports, which take a second

import dataclasses
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.engine import engine_flags
from pipeline.engine.callable_module import make_callable
from pipeline.engine.cli import (
    CRASHED,
    DONE,
    MISSING,
    USAGE,
    MissingInput,
    UsageError,
    fail,
    with_next_step,
)
from pipeline.engine.command_line import CommandLine
from pipeline.engine.log_options import logging_for
from pipeline.engine.options import validate
from pipeline.engine.runners import JobFailed
from pipeline.engine.storage import DamagedError
from pipeline.engine.work import Busy
from queries.options import GROUPS, Options, ShowSettings, recipe_text, with_files

if TYPE_CHECKING:
    from queries.load import QueryList
    from queries.recipe import Sources


@dataclasses.dataclass(frozen=True)
class Result:
    """A list that was made.

    Attributes:
        root: the folder of the list, absolute.
        info: info.json, with the counts of each source and the warnings.
    """

    root: str
    info: dict[str, Any]

    def __len__(self) -> int:
        """The number of queries."""
        return self.info["queries"]

    @property
    def digest(self) -> str:
        """The digest of the queries, which names the list."""
        return self.info["digest"]

    def open(self) -> QueryList:
        """The list."""
        from queries.load import load_queries

        return load_queries(os.path.join(self.root, "queries.parquet"))


def build(options: Options, *, quiet: bool = False) -> Result:
    """Makes the list. Nothing is printed to stdout.

    Args:
        options: as the command line has them; `validate` checks them.
        quiet: shows neither progress nor warnings on stderr; `Result.info` holds the warnings.

    Raises:
        MissingInput, UsageError: an input or an option is wrong. No list is written.
        JobFailed: the counting failed.
        Busy: another run holds the output folder.
    """
    from queries import recipe
    from queries.counts import CountsError
    from queries.load import QueryError
    from queries.wordnet import WordNetError

    start = time.perf_counter()
    options = with_files(validate(options))
    try:
        sources: Sources = recipe.collect(options, quiet=quiet)
        info = recipe.write(options, sources, seconds=time.perf_counter() - start)
    except (CountsError, WordNetError, QueryError) as error:
        raise MissingInput(str(error)) from error
    return Result(os.path.abspath(options.output), info)


# --------------------------------------------------------------------------------------------------- command line


COMMAND_LINE: CommandLine[Options, ShowSettings] = CommandLine(
    program="python -m queries.build",
    script="openwit-queries",
    description=str(__doc__),
    version=f"openwit {__version__}",
    options=Options,
    groups=GROUPS,
    how=ShowSettings,
    others=engine_flags.known,
)


def parse(argv: Sequence[str]) -> tuple[Options, ShowSettings]:
    """Returns the validated Options, and the settings that concern this command line alone.

    Raises:
        UsageError, MissingInput: the command line is wrong. Nothing was written, and Beam was not imported.
    """
    return COMMAND_LINE.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Exit code: 0 done, 1 crash, 2 usage, 4 input missing or empty, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    try:
        options, how = parse(words)
        with logging_for(how, "queries.build", words, output=options.output) as ended:
            return ended(carry_out(options, how))
    except UsageError as error:
        return fail("queries.build", error, USAGE)
    except MissingInput as error:
        return fail("queries.build", error, MISSING)
    except KeyboardInterrupt:
        return interrupts.report("queries.build")


def carry_out(options: Options, how: ShowSettings) -> int:
    """Does what the command line asks for; returns the exit code."""
    try:
        if how.print_config:
            print(recipe_text(options), end="")
            return DONE
        info = build(options).info
        log_file.note("the list is made", queries=info["queries"], digest=info["digest"])
        for warning in info["warnings"]:
            log_file.note(warning, level=logging.WARNING)
        if how.json:
            print(json.dumps(info, indent=1, ensure_ascii=False))
        elif not how.quiet:
            print(summary(options, info))
        return DONE
    except UsageError as error:
        return fail("queries.build", error, USAGE)
    except MissingInput as error:
        return fail("queries.build", error, MISSING)
    except Busy as error:
        return fail("queries.build", error, CRASHED)
    except DamagedError as error:
        return fail("queries.build", f"{error}: remove {options.output}/.counting, then run the same command", CRASHED)
    except JobFailed as error:
        return fail("queries.build", with_next_step(error), CRASHED)
    except BrokenPipeError:  # as with `| head`: the list is written
        return DONE
    except KeyboardInterrupt:
        return interrupts.report("queries.build")


def summary(options: Options, info: dict[str, Any]) -> str:
    """The summary that the command prints."""
    lines = [f"{info['queries']:,} queries, digest {info['digest'][:16]}: {options.output}/queries.parquet"]
    lines.append(
        f"{'source':<12}{'offered':>10}{'dead':>8}{'flagged':>9}{'duplicates':>12}{'over size':>11}{'kept':>10}"
    )
    for name, row in info["sources"].items():
        lines.append(
            f"{name:<12}{row['offered']:>10,}{row['dead']:>8,}{row['flagged']:>9,}{row['duplicates']:>12,}"
            f"{row['over']:>11,}{row['kept']:>10,}"
        )
    lines += [f"warning: {warning}" for warning in info["warnings"]]
    lines.append(f"next: python -m queries.show {shlex.quote(options.output)}")
    return "\n".join(lines)


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(interrupts.ending(main()))
