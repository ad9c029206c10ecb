"""How much the fuzzing tests try, and where they begin.

In the suite every run tries the same cases, so that a commit fails by its own fault alone. `make fuzz` begins somewhere
else each time, tries longer, and prints the seed of what failed.
"""

import os
import random

FACTOR = float(os.environ.get("OPENWIT_FUZZ_FACTOR", "1"))  # times the cases of the suite
SUITE = "OPENWIT_FUZZ_SEED" not in os.environ
_SEED = os.environ.get("OPENWIT_FUZZ_SEED", "1")
SEED = random.randrange(10**6) if _SEED == "random" else int(_SEED)


def cases(count: int) -> range:
    """The numbers of the cases, of which the suite tries `count`."""
    return range(max(1, round(count * FACTOR)))
