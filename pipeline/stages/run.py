"""A run: its options, its inputs and its query list. They are looked up before anything is written."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pipeline.dataset import tombstones
from pipeline.engine import checks, engine_checks, lease, log_file, remote, runners, storage
from pipeline.engine.cli import BelowThreshold, MissingInput, UsageError
from pipeline.engine.fork_server import Preload
from pipeline.engine.input_errors import RefusedInputError, TransferError, UnreadableInputError, is_remote
from pipeline.engine.options import REQUIRED, declared, nearest, option
from pipeline.engine.remote import RemoteSettings
from pipeline.engine.work import Json, StageFolder, digest_of
from pipeline.schema import STAGES
from pipeline.sources import READERS, published_sets
from pipeline.sources import inputs as sources
from pipeline.sources.base import Input
from pipeline.sources.published_sets import MANIFEST
from pipeline.stages import left_out, other_sets
from pipeline.stages.input_list import FILE as INPUTS
from pipeline.stages.input_list import InputList, identity, path_of
from pipeline.stages.other_sets import OtherSet
from pipeline.stages.user_files import copy_of
from pipeline.text.language_names import ALL, LID, NAMES, code_hint, model_code
from pipeline.text.rights import PROTOCOLS
from queries import load
from queries.load import QueryError
from queries.several import load_lists

if TYPE_CHECKING:
    from queries.identity import UsedQueries

RESULT = 4  # raised whenever equal input and options give other rows; then an older folder cannot be continued
HIDDEN = ("input", "drop_input", "queries")  # paths that other entries of the manifest and its tables stand for
PACKAGES = ("openwit", "apache-beam", "img2dataset", "numpy", "pillow", "pyarrow")  # the manifest holds their versions

AGAIN = "Run the same command again to continue."  # ends a message about an input that may be read later
SKIP = "Replace the input, or add --skip-bad-inputs to go on without it"  # ends a message about an unreadable input
# Ends a message about an input out of reach.
TRY_LATER = "Check the address and the network, or try again later; --skip-bad-inputs goes on without it"
PLANNING_PATIENCE_S = 60.0  # for remote inputs that are looked up before a run: somebody waits for an answer
DEFAULT_CACHE_GB = 50.0
NEXT = ".next"  # in OUT: what the next publication shows to users beside its shards
READ_BY_USERS = ("queries.parquet", "recipe.yaml")
GROWN_BITS = 1  # buckets of keys that are more than 2 ** GROWN_BITS times too large are cut anew
KERNEL_ROWS = 50_000  # with more expected rows, workers load the kernels before they begin
# The kernels of select. A worker loads the kernel of a source when it meets such a source.
KERNELS = (
    "pipeline.engine.hashing_kernel",
    "pipeline.text.clean_kernel",
    "pipeline.text.fasttext_model_kernel",
    "pipeline.text.image_variants_kernel",
    "pipeline.text.language_kernel",
    "pipeline.text.matcher_kernel",
    "pipeline.text.scripts_kernel",
    "pipeline.text.words_kernel",
    "pipeline.stages.selection_kernel",
)

RECIPE = "recipe.yaml"  # in OUT: the options of the set
# Files of ours -> fields of theirs that those of other tools lack.
OUR_FILES = {MANIFEST: published_sets.FIELDS, lease.NAME: lease.FIELDS, INPUTS: ("items", storage.CHECKSUM)}

AMOUNTS = ("none", "sample", "all")  # of --keep-rejected, from few to many
T = TypeVar("T")


def stage_range(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """gather..balance -> the stages from the first to the last; one name is a range of one."""
    if isinstance(given, str):
        first, _, last = given.partition("..")
        given = first, last or first
    for name in given:
        if name not in STAGES:
            raise UsageError(f"must be stages of {', '.join(STAGES)}{nearest(name, STAGES)}")
    chosen = STAGES[STAGES.index(given[0]) : STAGES.index(given[-1]) + 1] if given else ()
    if not chosen:
        raise UsageError(f"must be a first and a last stage, in the order of {', '.join(STAGES)}")
    return chosen


def _ours(folder: str, names: list[str]) -> bool:
    """True for the folder of a run, here or on a store. A copy may hold only the published files.

    A run makes its lock files first, or its lease. The names of other files prove nothing: other tools have a
    manifest.json, too. A folder with nothing but the list of what another set has forgotten is as good as empty.
    """
    if names in ([".lock"], [tombstones.FILE]) or _has_stages(folder):
        return True
    if ".workers" in names and storage.is_file(os.path.join(folder, ".workers")):
        return True
    return any(_is_ours(folder, name) for name in OUR_FILES)


def _has_stages(folder: str) -> bool:
    return bool(set(STAGES) & set(storage.names(os.path.join(folder, "stages"))))


def _is_ours(folder: str, name: str) -> bool:
    """True for a file of OUR_FILES that a run has written."""
    return set(OUR_FILES[name]) <= set(checks.read_object(os.path.join(folder, name)))


def _check_output(path: str) -> None:
    checks.output_folder(path, ours=_ours, stores=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The options of the run: inputs, output folder, stages, seed."""

    title: ClassVar[str] = ""

    input: tuple[str, ...] = option(
        (),
        help="files, folders, globs, published sets, @LIST, URLs, or cc:CC-MAIN-2026-05[0:100]",
        default_text="required, but for --extend",
        metavar="WHAT",
        check=checks.not_empty,
    )
    output: str = option(
        REQUIRED,
        help="folder of the run, new or empty; an existing run there is continued",
        metavar="OUT",
        check=_check_output,
        steers=True,
    )
    extend: bool = option(
        False,
        help="add --input to the set in OUT, with the set's options; only what is new is read and fetched",
        steers=True,
    )
    drop_input: tuple[str, ...] = option(
        (),
        help="leave out inputs, or take them out of the set in OUT: names, paths, folders or globs",
        default_text="none",
        metavar="WHAT",
        check=checks.not_empty,
    )
    stages: tuple[str, ...] = option(
        STAGES,
        help=f"first and last stage of: {', '.join(STAGES)}",
        default_text="all",
        metavar="A..B",
        parse=stage_range,
        steers=True,
    )
    seed: int = option(0, help="of every choice that looks random", within="[0, 2^64)")
    keep_rejected: str = option(
        "sample", help="dropped rows that are kept: 1,000 a reason, all, none", choices=("sample", "all", "none")
    )

    @staticmethod
    def fill_in(o: Any) -> Any:
        """--drop-input without --input changes the set in OUT."""
        return dataclasses.replace(o, extend=True) if o.drop_input and not o.input else o

    @staticmethod
    def check_together(o: Any) -> None:
        """Refuses a run without inputs."""
        if not o.input and not (o.extend or o.drop_input):
            raise UsageError(
                "--input is missing: it names files, folders, globs, @LIST, URLs, or a crawl (see --help). --extend "
                "alone goes on with the inputs of the set in OUT"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RightsSettings:
    """The options on rights that concern several stages."""

    title: ClassVar[str] = "rights"

    ignore_rights: tuple[str, ...] = option(
        (),
        help="protocols that do not count, neither for pages nor for images; the report names them (docs/rights.md)",
        default_text="none",
        metavar="PROTOCOL",
        choices=PROTOCOLS,
    )

    @staticmethod
    def fill_in(o: Any) -> Any:
        """Each name once, in the order of PROTOCOLS: another order is no other choice."""
        return dataclasses.replace(o, ignore_rights=tuple(name for name in PROTOCOLS if name in o.ignore_rights))


def mirrors(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """https,s3,http://HOST/ -> names and URLs of mirrors.

    Raises:
        UsageError: one is neither a known name nor a URL.
    """
    names = tuple(name.strip() for name in (given.split(",") if isinstance(given, str) else given))
    for name in names:
        if name not in sources.CC_MIRRORS and not is_remote(name):
            known = ", ".join(sources.CC_MIRRORS)
            raise UsageError(f"must be names of {known}, or URLs, with commas between them")
    return names


def _check_url(value: str) -> None:
    if not is_remote(value):
        raise UsageError("must be a URL, such as https://my.mirror/ or s3://my-bucket/")


def remote_settings(o: HowSettings, *, pace: str = "") -> RemoteSettings:
    """How remote inputs are read. `pace` is a file that all processes of the job share."""
    names = (o.cc_host,) if o.cc_host else o.cc_mirrors
    bases = tuple(sources.CC_MIRRORS.get(name, name) for name in names)
    cache, most = os.path.abspath(o.input_cache) if o.input_cache else "", o.input_cache_gb or DEFAULT_CACHE_GB
    return RemoteSettings(o.input_patience, o.input_rate, pace, sources.CC_BASE, bases, cache, int(most * 1e9))


def reach(root: str) -> None:
    """Looks at OUT: it is no copy of a set. On an object store it can be read, and is empty or the folder of a run.

    Raises:
        UsageError: it holds other things, or a published set without its stages.
        MissingInput: there is no such bucket, or the store refuses.
        BelowThreshold: the store is away.
    """
    if storage.is_url(root) and (needed := checks.missing_package(root)):
        raise MissingInput(f"--output {root}: {needed}")
    with store_failures(root):
        if _is_ours(root, MANIFEST) and not _has_stages(root):
            raise UsageError(
                f"--output {root}: holds a published set without its stages, and this build would replace it. Name "
                "another folder (--input takes such a set in), or remove its manifest.json"
            )
        if not storage.is_url(root):
            return  # `_check_output` has looked
        names = storage.names(root)
        if names and not _ours(root, names):
            raise UsageError(f"--output {root}: {checks.holds_others(names)}")


def _said(error: Exception) -> str:
    return str(error).rstrip(".")


@contextlib.contextmanager
def store_failures(root: str) -> Iterator[None]:
    """Failures of the store that holds OUT, as the failures of a command.

    Raises:
        MissingInput: there is no such bucket, or the store refuses.
        BelowThreshold: the store is away.
    """
    if not storage.is_url(root):
        yield
        return
    try:
        yield
    except RefusedInputError as error:
        raise MissingInput(f"--output: {_said(error)}. Check the credentials and the endpoint") from error
    except FileNotFoundError as error:
        raise MissingInput(f"--output: {_said(error)}. Make the bucket, or check its name") from error
    except TransferError as error:
        remedy = "Check the endpoint and the network, or try again later"
        raise BelowThreshold(f"--output: {_said(error)}. {remedy}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class HowSettings:
    """The options that say where and how a run is carried out. None of them decides a row."""

    title: ClassVar[str] = "how"

    runner: str = option(
        "local",
        help="local, or any Beam runner (FlinkRunner, PrismRunner ...) with Beam's own flags",
        metavar="NAME",
        check=runners.check_name,
        steers=True,
    )
    workers: int | None = option(
        None, help="of the local runner", default_text="one a core", unit="processes", within="[1, 1024]", steers=True
    )
    exchange: str = option(
        "files",
        help="of columns between steps: as files in OUT, or through the engine (OUT must be shared with both)",
        choices=("files", "shuffle"),
        steers=True,
    )
    input_patience: float = option(
        600.0,
        help="time of failed tries without a new byte, after which a remote input is given up",
        unit="seconds",
        metavar="S",
        within="[0, 604800]",
        steers=True,
    )
    input_rate: float = option(
        10.0,
        help="requests for remote inputs of the whole job; 0: no limit",
        unit="a second",
        metavar="N",
        within="[0, 100000]",
        steers=True,
    )
    cc_mirrors: tuple[str, ...] = option(
        ("https",),
        help="where Common Crawl's files are read: https, s3, hf or URLs, in the order in which they are asked",
        metavar="A,B",
        parse=mirrors,
        steers=True,
    )
    cc_host: str | None = option(
        None,
        help="a server or a bucket with Common Crawl's files under their paths (crawl-data/...), in place of its own",
        metavar="URL",
        check=_check_url,
        steers=True,
    )
    input_cache: str | None = option(
        None,
        help="folder of this machine that keeps whole remote inputs, for this and other runs",
        default_text="none: inputs are streamed",
        metavar="DIR",
        check=checks.cache_folder,
        steers=True,
    )
    input_cache_gb: float | None = option(
        None,
        help="the most of --input-cache; what was not used for the longest time goes first",
        default_text=f"{DEFAULT_CACHE_GB:g}",
        unit="GB",
        metavar="N",
        within="(0, 1e9]",
        steers=True,
    )
    retry_failed: bool = option(
        False,
        help="read again the inputs that were left out, fetch again what failed in a way that may pass",
        steers=True,
    )
    redo: str | None = option(
        None, help="make this stage and those after it anew", choices=STAGES, metavar="STAGE", steers=True
    )
    beam: tuple[str, ...] = option((), flag=(), help="Beam's own flags", steers=True)

    @staticmethod
    def check_together(o: Any) -> None:
        """Refuses an engine without its parts, a redo of stages that the run does not do, and such a retry."""
        engine_checks.check_flags(o.runner, o.beam, output=o.output)
        if o.cc_host and o.cc_mirrors != HowSettings.cc_mirrors:
            raise UsageError(f"--cc-host {o.cc_host}: must not stand beside --cc-mirrors; name it there")
        if o.input_cache_gb is not None and not o.input_cache:
            raise UsageError(f"--input-cache-gb {o.input_cache_gb:g}: needs --input-cache DIR")
        if storage.is_url(o.output):
            HowSettings._check_stages(o)
            return
        out = os.path.join(os.path.realpath(o.output), "")
        if o.input_cache and os.path.join(os.path.realpath(o.input_cache), "").startswith(out):
            raise UsageError(f"--input-cache {o.input_cache}: must not lie in --output {o.output}")
        HowSettings._check_stages(o)

    @staticmethod
    def _check_stages(o: Any) -> None:
        if o.retry_failed and not {"gather", "fetch"} & set(o.stages):
            raise UsageError(
                f"--retry-failed: needs the stage gather or fetch, and --stages is {o.stages[0]}..{o.stages[-1]}"
            )
        if o.redo and o.redo not in o.stages:
            raise UsageError(f"--redo {o.redo}: must be one of the stages of --stages {o.stages[0]}..{o.stages[-1]}")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The number of buckets of each exchange. The result does not depend on it.

    Attributes:
        key_bits: dedup cuts its keys into 2 ** key_bits buckets.
        groups: the number of groups of parts in the steps after match.
    """

    key_bits: int
    groups: int

    @classmethod
    def of(cls, rows: float) -> Sizes:
        """Sizes for about so many rows: at most 64 MiB a bucket of keys, about half a million rows a group."""
        return cls(
            key_bits=min(12, max(4, (int(57 * rows) >> 26).bit_length())),
            groups=min(4096, max(1, round(rows / 500_000))),
        )


@dataclasses.dataclass(frozen=True)
class About:
    """The options and the versions of the code. Every info.json and the manifest hold them."""

    options: dict[str, Json]
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class WantedLanguages:
    """The languages among which match chooses.

    Attributes:
        codes: as the language model names them; empty: nothing is chosen.
        names: as the user names them.
        lists: for each language, the number of its query list.
        drop: texts that are clearly of another language are dropped.
    """

    codes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    lists: tuple[int, ...] = ()
    drop: bool = True

    @classmethod
    def of(cls, asked: Sequence[str], listed: Sequence[str], model: str) -> WantedLanguages:
        """The languages that follow from --languages, the query lists and the model.

        Args:
            asked: value of --languages.
            listed: the language of each query list; "": it names none.
            model: value of --language-model.

        Raises:
            UsageError: they do not fit each other.
        """
        every, named = tuple(asked) == (ALL,), [code for code in listed if code]
        wanted = named if every or not asked else asked
        if not wanted or (len(listed) == 1 and (every or not asked and model == "none")):
            return cls()
        if model == "none":
            raise UsageError(f"--language-model none: must be a model, since texts are chosen by {', '.join(wanted)}")
        for code in wanted:
            if named and code not in named:
                raise UsageError(f"--languages {code}: no query list is for it; the lists are for {', '.join(named)}")
        lists = [listed.index(code) if named else 0 for code in wanted]
        by = "--languages" if asked and not every else "a query list is for"
        return cls(tuple(_model_codes(wanted, model, by)), tuple(wanted), tuple(lists), not every)


def _model_codes(wanted: Sequence[str], model: str, by: str) -> list[str]:
    """The names of the languages in the model. `by` says in a message who wants them."""
    packaged = model in ("auto", LID)
    known = tuple(NAMES) if packaged else _model_languages(model)
    codes = [model_code(code, known) for code in wanted]
    for code, found in zip(wanted, codes, strict=True):
        if found is None:
            hint = code_hint(code) if packaged else nearest(code, known)
            who = LID if packaged else model
            remedy = "--languages all: drop no text"
            raise UsageError(f"{by} {code}: the language model {who} does not know it{hint} ({remedy})")
    return [found for found in codes if found]


def _model_languages(path: str) -> tuple[str, ...]:
    """The language codes of a user's own model."""
    from pipeline.text.language import LanguageModel

    try:
        return tuple(LanguageModel.load(path).languages)
    except ValueError as error:
        raise MissingInput(f"--language-model {path}: is no supervised fastText model ({error})") from None


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        options: the options of the user, an instance of the options class of every stage.
        root: OUT, absolute.
        inputs: the files to read, sorted by name.
        queries: the query lists. Equal queries are merged when they are needed.
        languages: the languages of the texts that stay, and the list of each.
        language_model: "lid.176", a path, or "none".
        sizes: the number of buckets of each exchange.
        about: the options and versions that every info.json and the manifest hold.
        expected_rows: a rough number of pairs in the inputs.
        input_list: the inputs with the numbers of their units.
        recorded: the list of the folder; None: it has none. The run changes it if it adds inputs or drops some.
        robots_archives: the robots.txt archives, sorted by name.
        others: the sets that the user named as inputs. What they read and fetched is copied.
        anew: the paths of inputs of the set that are taken out and read anew.
        rejected_there: what gather kept of the dropped rows, if it is done and stays.
    """

    options: object
    root: str
    inputs: tuple[Input, ...]
    queries: UsedQueries
    languages: WantedLanguages
    language_model: str
    sizes: Sizes
    about: About
    expected_rows: float
    input_list: InputList
    recorded: InputList | None = None
    robots_archives: tuple[Input, ...] = ()
    others: tuple[OtherSet, ...] = ()
    anew: frozenset[str] = frozenset()
    rejected_there: str = "none"

    def settings(self, kind: type[T]) -> T:
        """The options, typed as those of one stage."""
        if not isinstance(self.options, kind):
            raise TypeError(f"the options of the run do not include {kind.__name__}")
        return self.options

    @property
    def remote(self) -> RemoteSettings:
        """How the workers read remote inputs, all at one rate."""
        return remote_settings(self.settings(HowSettings), pace=os.path.join(self.root, ".pace"))

    @property
    def runner(self) -> tuple[str, int | None, tuple[str, ...]]:
        """The runner's name, its workers, and Beam's own flags."""
        how = self.settings(HowSettings)
        return how.runner, how.workers, how.beam

    @property
    def workers_elsewhere(self) -> bool:
        """True if workers may run on other machines. They need not see what the user names by a path of this one."""
        return self.settings(HowSettings).runner.lower() not in runners.LOCAL

    @property
    def workers_model(self) -> str:
        """The language model as workers name it: a user's own is copied into OUT if they may not see it."""
        path = self.language_model
        if path in (LID, "none") or not self.workers_elsewhere:
            return path
        return copy_of("--language-model", path, os.path.join(self.root, "stages", STAGES[0]))

    @property
    def preload(self) -> Preload:
        """The modules that local workers load before they begin."""
        return Preload(("pipeline.stages",), KERNELS if self.expected_rows > KERNEL_ROWS else ())

    @property
    def keep_rejected(self) -> str:
        """Which dropped rows the stages keep: sample, all or none. It may be more than the user asks for now."""
        return max(self.settings(RunSettings).keep_rejected, self.rejected_there, key=AMOUNTS.index)

    @property
    def exchange(self) -> str:
        """How rows go from step to step: files or shuffle."""
        return self.settings(HowSettings).exchange

    @property
    def inputs_file(self) -> str:
        """Path of the list of inputs, for the workers and for later runs."""
        return os.path.join(self.root, INPUTS)

    @property
    def robots_file(self) -> str:
        """Path of the list of robots.txt archives, for the workers."""
        return os.path.join(self.root, "robots.json")

    @property
    def shown(self) -> str:
        """The folder for the files of READ_BY_USERS: OUT, or OUT/.next while OUT holds a published set.

        publish moves them with the set. So a run that does not reach it leaves the published set as it is.
        """
        published = storage.is_file(os.path.join(self.root, "manifest.json"))
        return os.path.join(self.root, NEXT) if published else self.root

    @property
    def source_names(self) -> tuple[str, ...]:
        """The names of the inputs. The column `source` is an index into it."""
        return tuple(self.input_list.names)

    @property
    def new_inputs(self) -> tuple[Input, ...]:
        """The inputs that no set has read yet. Those that were read need not be there any more."""
        if not self.settings(RunSettings).extend or self.settings(HowSettings).redo == STAGES[0]:
            return self.inputs
        lists = [*([self.recorded] if self.recorded else []), *(other.inputs for other in self.others)]
        known = {identity(item) for there in lists for item in there.units.values()}
        return tuple(item for item in self.inputs if identity(item) not in known or path_of(item) in self.anew)


def look_up(
    options: RunSettings,
    *,
    input_format: str,
    skip_bad: bool,
    queries: Sequence[str],
    match: str,
    case: str,
    languages: Sequence[str],
    language_model: str,
    robots_archive: Sequence[str] = (),
) -> Run:
    """The run that the options describe. Its inputs and its query list are looked up. Nothing is written.

    Args:
        options: the options of the user.
        input_format: of the inputs.
        skip_bad: unreadable inputs are skipped.
        queries: the query lists, as `queries.several` reads them; empty: the list that comes with the project.
        match, case: how texts are matched. This decides which queries are equal.
        languages, language_model: which texts stay, and what tells their language.
        robots_archive: the robots.txt archives of the crawl.

    Raises:
        MissingInput: an input or the query list does not exist or cannot be read.
        UsageError: lists, languages and model do not fit each other.
    """
    if isinstance(options, HowSettings):
        patience = min(options.input_patience, PLANNING_PATIENCE_S)
        settings = dataclasses.replace(remote_settings(options), patience=patience, of_workers=options.input_patience)
        say = remote.sparingly(lambda line: log_file.say(f"pipeline.build: {line}"))
        remote.configure(settings, on_wait=say)
    root = storage.absolute(options.output)
    reach(root)
    recorded = recorded_list(root, options)
    if options.extend and recorded is None:
        raise UsageError(f"--extend: {options.output} holds no set of this version: build one without --extend first")
    others = look_up_sets(options, recorded)
    inputs, asked = look_up_inputs(options, recorded, others, input_format=input_format, skip_bad=skip_bad)
    robots = look_up_robots(robots_archive, output=options.output)
    rows = sum(READERS[item.format].expected_rows(item) for item in inputs)
    used = look_up_queries(queries, match=match, case=case)
    wanted = WantedLanguages.of(languages, used.languages, language_model)
    if language_model == "auto":
        from_pages = any(READERS[item.format].knows_pages for item in inputs)
        language_model = LID if wanted.codes or from_pages else "none"
    sizes = Sizes.of(rows)
    anew = frozenset[str]()
    if recorded is not None and (options.extend or recorded.has_inputs(inputs)):
        if options.extend:
            anew = sources.exchanged(options.input, tuple(recorded.units.values()), options.drop_input)
        input_list = recorded.changed(inputs, **asked, anew=anew, others=[other.inputs for other in others])
        if recorded.has_inputs(inputs) or sizes.key_bits <= recorded.key_bits + GROWN_BITS:
            sizes = dataclasses.replace(sizes, key_bits=recorded.key_bits)
        input_list = dataclasses.replace(input_list, key_bits=sizes.key_bits)
    else:
        input_list = InputList.new(inputs, key_bits=sizes.key_bits, **asked)
    return Run(
        options=options,
        root=root,
        inputs=inputs,
        queries=used,
        languages=wanted,
        language_model=language_model,
        sizes=sizes,
        about=About(published_options(options, robots=robots), code_versions()),
        expected_rows=rows,
        input_list=input_list,
        recorded=recorded,
        robots_archives=robots,
        others=others,
        anew=anew,
        rejected_there=_rejected_there(root, options),
    )


def recorded_list(root: str, options: Any) -> InputList | None:
    """The inputs of the set in OUT; None: there is no set, or its list is damaged and all inputs are read anew."""
    try:
        return InputList.read(root)
    except storage.DamagedError:
        redo = options.redo if isinstance(options, HowSettings) else None
        if redo != STAGES[0] or options.extend:
            raise
        return None


def _rejected_there(root: str, options: RunSettings) -> str:
    """What gather kept of the dropped rows. publish can show fewer, so that no stage is done again for that."""
    redo = options.redo if isinstance(options, HowSettings) else None
    try:
        info = StageFolder(root, STAGES[0]).info() if redo != STAGES[0] else None
    except storage.DamagedError:  # whoever reads the stage says it
        info = None
    there = (info or {}).get("decided_by", {}).get("keep_rejected")
    return there if there in AMOUNTS else AMOUNTS[0]


def look_up_sets(options: RunSettings, recorded: InputList | None) -> tuple[OtherSet, ...]:
    """The sets with their stages that the user named as inputs, each once.

    Raises:
        UsageError, MissingInput: they cannot be taken.
    """
    known = recorded.units.values() if recorded is not None and options.extend else None
    given = (other_sets.find(spec, options.output, known=known) for spec in options.input)
    found = [other for other in given if other is not None]
    if found and not options.extend:
        raise UsageError(
            f"--input {found[0].spec}: the stages of a set come in by --extend alone. A new set takes what another one "
            "has published: finish its build, and name its folder"
        )
    redo = options.redo if isinstance(options, HowSettings) else None
    if found and redo in other_sets.TAKEN:
        raise UsageError(f"--redo {redo}: must not stand beside --input {found[0].spec}, a set: use two commands")
    return tuple({other.root: other for other in found}.values())


def published_options(options: Any, *, robots: Sequence[Input] = ()) -> dict[str, Json]:
    """The options that decide the set, as the manifest shows them, without paths of this machine.

    A file of the user is shown by its name and its content. An option of files that is not given has no entry.

    Args:
        options: of the user.
        robots: the files that --robots-archive names. Their names and sizes stand for them.
    """
    found: dict[str, Json] = {}
    for item in declared(type(options)):
        value = getattr(options, item.name)
        if item.steers or item.name in HIDDEN:
            continue
        if item.published is None or value is None:
            found[item.name] = value
        elif value:
            found[item.name] = item.published(value)
    if robots:
        digest = digest_of([[item.name, item.bytes] for item in robots])
        found |= {"robots_archive": {"names": found["robots_archive"], "digest": digest}}
    return found


def look_up_inputs(
    options: RunSettings,
    recorded: InputList | None,
    others: Sequence[OtherSet] = (),
    *,
    input_format: str,
    skip_bad: bool,
) -> tuple[tuple[Input, ...], dict[str, tuple[str, ...]]]:
    """The inputs that the user named. With --extend those of the set are among them, and those of `others`.

    Files in the output folder are no inputs of its run.

    Returns:
        The inputs, and what names all of them: `specs` (--input) and `drops` (--drop-input).

    Raises:
        UsageError: a spec names robots.txt archives.
        MissingInput: an input does not exist or cannot be read.
        BelowThreshold: the server of an input is away.
    """
    if robots := next((spec for spec in options.input if re.match(r"cc:[^:]*:robotstxt\b", spec)), None):
        raise UsageError(f"--input {robots}: must be its WAT or WARC files; --robots-archive takes its robots.txt")
    known: tuple[Input, ...] = ()
    given = tuple(spec for spec in options.input if spec not in {other.spec for other in others})
    asked = {"specs": options.input, "drops": options.drop_input}
    if options.extend and recorded is not None:
        known = other_sets.known_inputs(recorded, others)
        lists = [recorded, *(other.inputs for other in others)]
        specs = [spec for there in lists for spec in there.specs]
        asked = {
            "specs": tuple(dict.fromkeys([*specs, *given])),
            "drops": tuple(dict.fromkeys(drop for there in lists for drop in there.drops)),
        }
    try:
        inputs = sources.expand(
            given,
            input_format=input_format,
            skip_bad=skip_bad,
            without=options.output,
            known=known,
            drop=options.drop_input,
            dropped=asked["drops"] if known else (),
        )
        redo = options.redo if isinstance(options, HowSettings) else None
        inputs = left_out.as_listed(options.output, inputs, anew=redo == STAGES[0])
    except (RefusedInputError, UnreadableInputError) as error:
        raise MissingInput(f"{error}. {SKIP}") from error
    except TransferError as error:
        raise BelowThreshold(f"{error}. {TRY_LATER}") from error
    except sources.InputError as error:
        raise MissingInput(str(error)) from error
    if known:
        left = sources.places_of(inputs)
        gone = [path for path in sources.places_of(known) if path not in left]
        asked["drops"] = tuple(path for path in dict.fromkeys([*asked["drops"], *gone]) if path not in left)
    return tuple(inputs), asked


def look_up_robots(specs: Sequence[str], *, output: str) -> tuple[Input, ...]:
    """The robots.txt archives that the user named, in the forms of inputs; cc:CRAWL means those of the crawl.

    Raises:
        UsageError: a spec names other files of a crawl.
        MissingInput: an archive does not exist or cannot be read.
    """
    named = [sources.robots_spec(spec) for spec in specs]
    if other := next((spec for spec in named if re.match(r"cc:[^:]*:(wat|warc)\b", spec)), None):
        raise UsageError(f"--robots-archive {other}: must be cc:CRAWL or cc:CRAWL:robotstxt, or archives of robots.txt")
    try:
        return tuple(sources.expand(named, input_format="warc", without=output)) if named else ()
    except sources.InputError as error:
        raise MissingInput(f"--robots-archive: {error}") from error


def look_up_queries(specs: Sequence[str], *, match: str, case: str) -> UsedQueries:
    """The query lists of the user, or the list that comes with the project, with equal queries merged.

    Raises:
        MissingInput: a list does not exist, cannot be read, or holds no query that can be matched.
    """
    from queries.identity import merge_queries  # imported here: it takes long to load, and --help does not need it

    named = " ".join(specs)
    try:
        return merge_queries(load_lists(specs), mode=match, case=case)
    except FileNotFoundError as error:
        raise MissingInput(f"there is no query list {named!r}: check --queries") from error
    except QueryError as error:
        raise MissingInput(str(error)) from error
    except ValueError as error:
        raise MissingInput(f"query list {named or load.default_list()}: {error}") from error


def code_versions() -> dict[str, str]:
    """The versions of Python, of the packages, and of the rules that decide the rows (RESULT)."""
    found = {"python": ".".join(map(str, sys.version_info[:3])), "result": str(RESULT)}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
