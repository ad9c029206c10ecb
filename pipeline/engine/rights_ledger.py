"""The ledger of rights: by protocol the pairs that were looked at and refused, their hosts, and examples with evidence.

A ledger is JSON: {protocol: {"seen", "allowed", "pairs", "hosts", "spared", "examples": [...]}}. `pairs` are those that
were refused. An example is {"hash", "url", "evidence"}, in gather also "page". The parts of the fetch own whole hosts,
so their ledgers are added up. The units of gather do not: they keep hashes of hosts ("host_hashes"), and these are
merged. The examples are those with the smallest hashes, so they do not depend on how the work was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

EXAMPLES = 3
# The smallest hashes of hosts are kept, so many at most. Fewer hosts are counted exactly. The number of more hosts is
# estimated from the largest hash (k minimum values: Bar-Yossef et al. 2002), to about 3 %.
MOST_HASHES = 1024
NUMBERS = ("seen", "allowed", "pairs", "hosts", "spared")
PAGES, IMAGES = "gather", "fetch"  # the stages with a ledger


def add(ledger: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Adds a ledger of other rows, and of other hosts where it counts them."""
    for protocol, counted in other.items():
        mine = ledger.setdefault(protocol, {"examples": []})
        for name in NUMBERS:
            if name in mine or name in counted:
                mine[name] = mine.get(name, 0) + counted.get(name, 0)
        if counted.get("hosts_estimated"):
            mine["hosts_estimated"] = True
        if "host_hashes" in counted:
            mine["host_hashes"] = smallest([*mine.get("host_hashes", ()), *counted["host_hashes"]])
        ordered = sorted([*mine["examples"], *counted["examples"]], key=lambda item: (item["hash"], item["url"]))
        mine["examples"] = ordered[:EXAMPLES]


def smallest(hashes: Iterable[int]) -> list[int]:
    """The smallest hashes, each once, MOST_HASHES at most."""
    return sorted(set(hashes))[:MOST_HASHES]


def settle(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """The merged ledger of gather with the number of hosts in the place of their hashes."""
    found = {}
    for protocol, counted in ledger.items():
        hashes = counted.get("host_hashes", [])
        few = len(hashes) < MOST_HASHES
        hosts = len(hashes) if few else round((MOST_HASHES - 1) * 2.0**64 / max(1, hashes[-1]))
        rest = {name: value for name, value in counted.items() if name != "host_hashes"}
        found[protocol] = {**rest, "hosts": hosts, **({} if few else {"hosts_estimated": True})}
    return found


def of_stages(stages: Iterable[Mapping[str, Any]], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ledgers of all stages as one document.

    Args:
        stages: rows of a manifest's ledger, or info.json of the stages.
        options: of the run; None: those in info.json of the last stage that has any. An earlier stage may be older.

    Returns:
        {"pages": the ledger of gather, "images": the ledger of the fetch, "ignored": the protocols that the user
        ignored, "robots_archives": what `--robots-archive` held, if it was given}
    """
    found: dict[str, Any] = {"pages": {}, "images": {}, "ignored": []}
    recorded: Mapping[str, Any] = {}
    for stage in stages:
        recorded = stage.get("options") or recorded
        part = {PAGES: "pages", IMAGES: "images"}.get(stage.get("stage", ""))
        if part is not None:
            add(found[part], stage.get("rights") or {})
        if "robots_archives" in stage:
            found["robots_archives"] = stage["robots_archives"]
    options = recorded if options is None else options
    found["ignored"] = list(options.get("ignore_rights") or [])
    if options.get("respect_opt_out") is False:
        found["ignored"].append("all statements of pages (--ignore-opt-out)")
    return found


def lines(found: Mapping[str, Any], *, examples: bool) -> list[str]:
    """The document of `of_stages` for people; [] if no protocol was asked."""
    out = []
    if found["ignored"]:
        out.append(f"not honoured, by option: {', '.join(found['ignored'])}")
    if archives := found.get("robots_archives"):
        names = {"answers": "answers", "urls": "URLs", "records_lost": "lost records", "cut_files": "cut files"}
        held = ", ".join(f"{name} {archives[key]:,}" for key, name in names.items() if archives[key])
        out.append(f"robots.txt archives {archives['archives']:,}: {held}")
    for part, title, columns in (
        ("pages", "statements of pages", ("seen", "pairs", "hosts")),
        ("images", "statements of sites and images", NUMBERS),
    ):
        if found[part]:
            out += ["", *_table(found[part], title, columns, examples=examples)]
    return out[1:] if out[:1] == [""] else out


HEADINGS = {"seen": "pairs seen", "allowed": "allowed", "pairs": "refused", "hosts": "hosts", "spared": "spared"}


def _table(ledger: Mapping[str, Any], title: str, columns: Sequence[str], *, examples: bool) -> list[str]:
    out = [f"{title:<30}" + "".join(f"{HEADINGS[name]:>13}" for name in columns)]
    for protocol, counted in sorted(ledger.items(), key=lambda item: (-item[1].get("pairs", 0), item[0])):
        values = {name: f"{counted.get(name, 0):,}" for name in columns}
        if counted.get("hosts_estimated"):
            values["hosts"] = f"~{values['hosts']}"
        out.append(f"{protocol:<30}" + "".join(f"{values[name]:>13}" for name in columns))
        for item in counted["examples"] if examples else ():
            out += [f"    {item['url']}", f"        {item['evidence']}"]
    return out
