"""The ledger of rights: by protocol the refused pairs, their hosts, the requests that were spared, and examples.

A ledger is JSON: {protocol: {"pairs": n, "hosts": n, "spared": n, "examples": [{"hash", "url", "evidence"}, ...]}}.
Parts of a stage own whole hosts, so ledgers are added up. The examples are those with the smallest hashes, so they do
not depend on how the work was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

EXAMPLES = 3
PAGES = "refused_"  # notes of gather: "refused_noai" counts the pairs of pages with that signal


def add(ledger: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Adds the ledger of other hosts."""
    for protocol, counted in other.items():
        mine = ledger.setdefault(protocol, {"pairs": 0, "hosts": 0, "spared": 0, "examples": []})
        for name in ("pairs", "hosts", "spared"):
            mine[name] += counted[name]
        ordered = sorted([*mine["examples"], *counted["examples"]], key=lambda item: (item["hash"], item["url"]))
        mine["examples"] = ordered[:EXAMPLES]


def of_stages(stages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The ledgers of all stages as one document: {"images": the ledger of the fetch, "pages": {signal: pairs}}."""
    images: dict[str, Any] = {}
    pages: dict[str, int] = {}
    for stage in stages:
        add(images, stage.get("rights") or {})
        for note, count in (stage.get("notes") or {}).items():
            if note.startswith(PAGES):
                pages[note.removeprefix(PAGES)] = pages.get(note.removeprefix(PAGES), 0) + count
    return {"images": images, "pages": pages}


def lines(found: Mapping[str, Any], *, examples: bool) -> list[str]:
    """The document of `of_stages` for people; [] if nothing was refused."""
    images, pages = found["images"], found["pages"]
    out = []
    if pages:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(pages.items(), key=lambda i: (-i[1], i[0])))
        out.append(f"pairs of pages that refuse: {counts}")
    if images:
        out.append(f"{'protocol':<16}{'pairs refused':>15}{'hosts':>10}{'requests spared':>18}")
    for protocol, counted in sorted(images.items(), key=lambda item: (-item[1]["pairs"], item[0])):
        out.append(f"{protocol:<16}{counted['pairs']:>15,}{counted['hosts']:>10,}{counted['spared']:>18,}")
        for item in counted["examples"] if examples else ():
            out += [f"    {item['url']}", f"        {item['evidence']}"]
    return out
