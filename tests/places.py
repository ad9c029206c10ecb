"""Where the tests find this checkout and the data that others made, which may be missing."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("OPENWIT_DATA", ROOT.parent / "shared" / "data"))
