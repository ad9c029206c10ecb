"""What a run takes: the rows of the later stages, CPU seconds, bytes, requests and hours. All functions are pure."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from pipeline.planning.costs import Costs, Sizes
from pipeline.planning.figures import Selected
from pipeline.planning.pictures import Pictures
from pipeline.planning.whole import NOTHING, Interval

# Shares that no sample of the inputs tells, assumed.
GOOD_SHAPE = Interval(0.8, 0.92, 1.0)  # of the images of the web that dedup-images keeps by their shape
DISTINCT = Interval(0.85, 0.97, 1.0)  # of the images that show what no other shows
DECODED = Interval(0.8, 0.95, 1.0)  # of the images in archives that can be stored, where none was tried
PARALLEL = 0.85  # share of the workers that has work, on average
SERIAL = 0.8  # share of the CPU time of the start for which everything else waits
EXACTLY = Interval(1.0, 1.0, 1.0)


class Rows(NamedTuple):
    """Pairs that leave each stage; `read` are those before any drop."""

    read: Interval = NOTHING
    gather: Interval = NOTHING
    match: Interval = NOTHING
    dedup: Interval = NOTHING
    balance: Interval = NOTHING
    fetch: Interval = NOTHING
    dedup_images: Interval = NOTHING
    publish: Interval = NOTHING


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of the selected pairs.

    Attributes:
        archived: the share that lies in archives.
        decoded: the share of these that can be stored.
        shaped: the share of the stored ones of archives that have a good shape.
        alive: the share of the others that the web still has.
        jpeg_bytes: of a stored image.
        archived_cpu: CPU seconds on this machine for one in an archive; None: none was tried.
    """

    archived: float
    decoded: Interval
    shaped: Interval
    alive: Interval
    jpeg_bytes: float
    archived_cpu: float | None

    @classmethod
    def of(cls, archived: float, pictures: Pictures, costs: Costs, *, expected_yield: float) -> Images:
        """From the images that were tried, and what is known of the web.

        `expected_yield` replaces the assumed share of images that the web still has, if it is below 1.
        """
        tried = pictures.decoded + pictures.failed
        of_web = costs.image_bytes * (pictures.options.image_size / 256) ** costs.grows
        alive = Interval(*costs.alive)
        if expected_yield < 1.0:
            alive = Interval(0.8 * expected_yield, expected_yield, min(1.0, 1.2 * expected_yield))
        if not tried:
            return cls(archived, DECODED, GOOD_SHAPE, alive, of_web, None)
        decoded, shaped = pictures.decoded / tried, pictures.shaped / max(1, pictures.decoded)
        size = archived * pictures.jpeg_bytes / max(1, pictures.decoded) + (1.0 - archived) * of_web
        taken = pictures.cpu_seconds / tried
        return cls(archived, _share(decoded, tried), _share(shaped, tried), alive, size, taken)

    @property
    def fetched(self) -> Interval:
        """The share of the selected pairs whose image comes."""
        return self.decoded.times(self.archived).plus(self.alive.times(1.0 - self.archived))

    @property
    def good(self) -> Interval:
        """The share of the fetched pairs that dedup-images keeps."""
        of_archives = self.decoded.value * self.archived
        part = of_archives / max(1e-9, self.fetched.value)
        return self.shaped.times(part).plus(GOOD_SHAPE.times(1.0 - part)).of(DISTINCT)


def _share(value: float, tried: int) -> Interval:
    error = 1.645 * (max(value * (1.0 - value), 0.25 / tried) / tried) ** 0.5
    return Interval(max(0.0, value - error), value, min(1.0, value + error))


def rows_of(selected: Selected, images: Images, cap: float) -> Rows:
    """The pairs that leave each stage."""
    balance = selected.kept(cap)
    fetch = balance.of(images.fetched)
    dedup_images = fetch.of(images.good)
    publish, left = dedup_images, dedup_images.value / max(1.0, balance.value)
    wanted = selected.policy.expected_yield
    if wanted < 1.0 and left:
        again = selected.kept(max(1.0, cap * wanted / left)).times(left)
        publish = Interval(*(min(one, other) for one, other in zip(astuple(again), astuple(dedup_images), strict=True)))
    gathered = (selected.read, selected.gather, selected.match, selected.dedup)
    return Rows(*gathered, balance, fetch, dedup_images, publish)


def astuple(interval: Interval) -> tuple[float, float, float]:
    """(low, value, high)."""
    return interval.low, interval.value, interval.high


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the run is carried out with.

    Attributes:
        queries: of all lists.
        inputs: of the run.
        units: of gather and match. Many small inputs share one.
        remote_inputs: of the inputs, those on servers.
        input_bytes: of all inputs; remote_bytes: of those on servers.
        workers: of the local runner; None: an engine has them.
        loads_kernels: the workers load the compiled code before they begin.
        stages: that are to be done.
        speed: CPU seconds here for one on the machine of the costs.
    """

    queries: int
    inputs: int
    units: int
    remote_inputs: int
    input_bytes: float
    remote_bytes: float
    workers: int | None
    loads_kernels: bool
    stages: tuple[str, ...]
    speed: float


@dataclasses.dataclass(frozen=True)
class Takes:
    """What a run takes.

    Attributes:
        cpu: stage -> CPU seconds; "start" is what no row costs.
        wall: seconds; None: the workers of the engine are not known.
        stages_bytes, published_bytes: below OUT/stages, and beside it.
        download_bytes: from servers: inputs, images.
        requests: for inputs, for images and hosts.
    """

    cpu: dict[str, float]
    wall: float | None
    stages_bytes: dict[str, float]
    published_bytes: float
    download_bytes: dict[str, float]
    requests: dict[str, float]

    @property
    def cpu_seconds(self) -> float:
        """Of all stages."""
        return sum(self.cpu.values())


def takes(
    rows: Rows, images: Images, *, gather_cpu: float, parts_bytes: float, hosts: float, setting: Setting,
    costs: Costs, sizes: Sizes,
) -> Takes:  # fmt: skip
    """What the stages to do take.

    Args:
        rows: that leave each stage.
        images: of the selected pairs.
        gather_cpu: CPU seconds of gather and match on this machine.
        parts_bytes: of the matched parts and their keys.
        hosts: of the images of the rows that dedup leaves.
        setting: of the run.
        costs, sizes: as measured.
    """
    value = {name: interval.value for name, interval in rows._asdict().items()}
    web = value["balance"] * (1.0 - images.archived)
    archived = value["balance"] * images.archived
    hosts = min(hosts, web)
    cpu = _cpu(value, images, web, archived, hosts, gather_cpu, setting, costs)
    cpu = {name: seconds for name, seconds in cpu.items() if name == "start" or name in setting.stages}
    row_bytes = parts_bytes / max(1.0, value["match"])
    stages = {
        "match": parts_bytes + sizes.list_query * setting.queries,
        "dedup": sizes.matched_row * value["match"],
        "balance": value["balance"] * row_bytes * (sizes.selected_share + sizes.parquet_share)
        + sizes.caps_query * setting.queries,
        "fetch": value["fetch"] * (images.jpeg_bytes + sizes.fetched_row) + value["balance"] * row_bytes,
        "publish": sizes.caps_query * setting.queries,
    }
    stages = {name: size for name, size in stages.items() if name in setting.stages}
    published = 0.0
    if "publish" in setting.stages:
        row = images.jpeg_bytes + sizes.tar_row + sizes.metadata_row
        published = value["publish"] * row + sizes.report
    published += sizes.list_shown * setting.queries if "match" in setting.stages else 0.0
    fetches, reads = "fetch" in setting.stages, "gather" in setting.stages
    downloads = {
        "inputs": setting.remote_bytes if reads else 0.0,
        "images": web * images.alive.value * costs.fetched_bytes if fetches else 0.0,
    }
    requests = {
        "inputs": 2.0 * setting.remote_inputs if reads else 0.0,
        "images": web * costs.tries if fetches else 0.0,
        "hosts": hosts * costs.host_requests if fetches else 0.0,
    }
    return Takes(cpu, _wall(cpu, web, setting, costs), stages, published, downloads, requests)


def _cpu(
    value: dict[str, float], images: Images, web: float, archived: float, hosts: float, gather_cpu: float,
    setting: Setting, costs: Costs,
) -> dict[str, float]:  # fmt: skip
    speed, jobs = setting.speed, {JOBS[name] for name in setting.stages}
    start = costs.start if jobs else 0.0
    start += costs.job * max(0, len(jobs) - 1)
    start += costs.workers if jobs and setting.workers != 1 else 0.0
    start += costs.kernels if jobs and setting.loads_kernels else 0.0
    of_archive = costs.image * speed if images.archived_cpu is None else images.archived_cpu
    return {
        "start": start * speed,
        "match": gather_cpu + speed * (costs.input * setting.inputs + costs.unit * setting.units),
        "dedup": speed * costs.dedup_row * value["match"],
        "balance": speed
        * (costs.balance_row * value["dedup"] + costs.selected_row * value["balance"] + costs.query * setting.queries),
        "fetch": speed * (costs.image * web * images.alive.value + costs.host * hosts)
        + archived * (of_archive + costs.archived_image * speed),
        "publish": speed * (costs.published_row * value["fetch"] + costs.query * setting.queries),
    }


def _wall(cpu: dict[str, float], web: float, setting: Setting, costs: Costs) -> float | None:
    """Seconds with the workers of the run, on cores of their own."""
    if setting.workers is None:
        return None
    work = sum(seconds for name, seconds in cpu.items() if name not in ("start", "fetch"))
    wall = SERIAL * cpu["start"] + work / (PARALLEL * setting.workers)
    if "fetch" in setting.stages:
        on_wire = web * costs.tries * costs.seconds_on_wire / (setting.workers * costs.threads)
        wall += max(cpu["fetch"] / (PARALLEL * setting.workers), on_wire) + (costs.pauses if web >= 1.0 else 0.0)
    return wall


# Each stage and the job that it is part of.
JOBS = {
    **dict.fromkeys(("gather", "match", "dedup", "balance"), "select"),
    "fetch": "fetch",
    **dict.fromkeys(("dedup-images", "publish"), "publish"),
}
