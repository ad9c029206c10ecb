"""The engines that `make engines` fetched."""

from __future__ import annotations

import os
from pathlib import Path

ENGINES = "OPENWIT_ENGINES"  # names the folder if it is not ./.engines
FLINK_VERSION = "1.19"


def folder() -> Path:
    """The folder of the engines. It need not exist."""
    return Path(os.environ.get(ENGINES, ".engines")).absolute()


def prism() -> Path:
    """Beam's portable Go runner."""
    return folder() / "prism"


def flink_job_server() -> Path:
    """The job server with Flink inside."""
    return folder() / f"beam-flink-{FLINK_VERSION}.jar"
