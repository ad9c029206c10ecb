"""What engines need of this machine: what `make engines` fetched, and Java."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipeline.engine import variables

FLINK_VERSION, SPARK_VERSION = "1.19", "3"


def folder() -> Path:
    """The folder of the engines. It need not exist."""
    return Path(os.environ.get(variables.ENGINES) or ".engines").absolute()


def prism() -> Path:
    """Beam's portable Go runner."""
    return folder() / "prism"


def flink_job_server() -> Path:
    """The job server with Flink inside."""
    return folder() / f"beam-flink-{FLINK_VERSION}.jar"


def spark_job_server() -> Path:
    """The job server with Spark inside."""
    return folder() / f"beam-spark-{SPARK_VERSION}.jar"


def java() -> str:
    """The java that Beam starts: that of JAVA_HOME if it is set, else the one on the PATH. "": it is not there."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which(os.path.join(home, "bin", "java") if home else "java") or ""
