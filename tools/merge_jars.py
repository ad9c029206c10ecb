"""Merges jars into one that runs: python tools/merge_jars.py OUT.jar MAIN_CLASS CLASSPATH

Of several files with one name the first is taken. Lists of services and reference.conf are joined, as Java and Akka
expect. Signatures are left out, because they are no longer valid. Time stamps are fixed: the same jars give the same
bytes.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = (".SF", ".RSA", ".DSA", ".EC", "module-info.class")
LONG_AGO = (1980, 1, 1, 0, 0, 0)


def entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, LONG_AGO)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def files(jars: list[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every entry of the jars, in their order. A folder's name ends with a slash."""
    for jar in jars:
        with zipfile.ZipFile(jar) as archive:
            for info in archive.infolist():
                if info.filename != "META-INF/MANIFEST.MF" and not info.filename.endswith(LEFT_OUT):
                    yield info.filename, archive.read(info)


def is_joined(name: str) -> bool:
    return name == "reference.conf" or (name.startswith("META-INF/services/") and not name.endswith("/"))


def join(parts: list[bytes], *, once: bool) -> str:
    """The lines of all parts. With `once` a repeated line is written one time."""
    lines = [line for part in parts for line in part.decode().splitlines()]
    return "\n".join(dict.fromkeys(lines) if once else lines) + "\n"


def merge(out: Path, main_class: str, jars: list[str]) -> None:
    """Writes `out`, a runnable jar with the content of `jars`. The file appears when it is whole."""
    seen: set[str] = set()
    joined: dict[str, list[bytes]] = {}
    partial = out.with_suffix(f".{os.getpid()}.tmp")
    with zipfile.ZipFile(partial, "w", compresslevel=1) as archive:
        manifest = f"Manifest-Version: 1.0\nMain-Class: {main_class}\nMulti-Release: true\n\n"
        archive.writestr(entry("META-INF/MANIFEST.MF"), manifest)
        for name, content in files(jars):
            if is_joined(name):
                joined.setdefault(name, []).append(content)
            elif name not in seen:
                seen.add(name)
                archive.writestr(entry(name), content)
        for name, parts in sorted(joined.items()):
            archive.writestr(entry(name), join(parts, once=name != "reference.conf"))
    partial.replace(out)


if __name__ == "__main__":
    merge(Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(os.pathsep))
