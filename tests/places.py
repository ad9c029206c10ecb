"""Where the tests find this checkout and the shared data. The data may be missing."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("OPENWIT_DATA", ROOT.parent / "shared" / "data"))
