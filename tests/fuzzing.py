"""How many cases the fuzzing tests try, and where they begin.

In the suite every run tries the same cases, so that a failure is the fault of the commit. `make fuzz` begins at another
case each time, tries more cases, and prints the seed of a failure.
"""

import os
import random

FACTOR = float(os.environ.get("OPENWIT_FUZZ_FACTOR", "1"))  # times the cases of the suite
SUITE = "OPENWIT_FUZZ_SEED" not in os.environ
_SEED = os.environ.get("OPENWIT_FUZZ_SEED", "1")
SEED = random.randrange(10**6) if _SEED == "random" else int(_SEED)


def cases(count: int) -> range:
    """The numbers of the cases. The suite tries `count` of them."""
    return range(max(1, round(count * FACTOR)))
