"""gather: sources -> PAIRS. Reads archives and tables, cleans texts and URLs, finds the evidence for languages.

CANDIDATES --clean_batch--> PAIRS        drops bad or empty texts and URLs, each with its reason; computes uid
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.tombstones import Tombstones
from pipeline.engine import checks, hashing, remote, rights_ledger, storage
from pipeline.engine.cli import BelowThreshold, MissingInput, UsageError
from pipeline.engine.input_errors import UNAVAILABLE, InputError, ReaderError, TransferError, UnreadableInputError
from pipeline.engine.ledger import CUT, Ledger, damaged_inputs
from pipeline.engine.options import option
from pipeline.engine.progress import Watched
from pipeline.engine.remote import RemoteSettings
from pipeline.engine.rows import Rows
from pipeline.engine.work import Json, StepFolder, digest_of
from pipeline.schema import PAIRS
from pipeline.sources import READERS
from pipeline.sources.base import BATCH_ROWS, Input, ReadSettings, SettingsError
from pipeline.sources.inputs import AUTO
from pipeline.stages import left_out
from pipeline.stages.base import INPUTS, STATES, Job, Outputs
from pipeline.stages.blocklist import ADDRESSES, BLOCKED, Blocklist, BlocklistSettings, blocklist_of
from pipeline.stages.input_list import InputList, identities
from pipeline.stages.row_pass import EVIDENCE, GATHERED_PART, LeftOut, Parts, RowStage
from pipeline.stages.run import AGAIN, RESULT, SKIP, TRY_LATER, RightsSettings, Run
from pipeline.stages.tally import Tally
from pipeline.stages.user_files import UserFiles, content_of, write_copy
from pipeline.text import clean, rights
from pipeline.text.language_names import LID

IMAGES = pa.schema(
    [
        pa.field("url", pa.string(), False),
        pa.field("source", pa.int32(), False),
        pa.field("offset", pa.int64(), False),
        pa.field("length", pa.int32(), False),
    ]
)


INPUT = pa.field("input", pa.int32(), False)  # beside CANDIDATES of several inputs: the place of each row's input


class Origin(NamedTuple):
    """The inputs that a batch comes from: several where its rows have the column INPUT, else one.

    Attributes:
        sources: the number of each, for the column `source`.
        name_hashes: hashes of their names. The digest of the rows uses them, since numbers change with the inputs.
        names: for the evidence of refusals.
    """

    sources: npt.NDArray[np.int32]
    name_hashes: npt.NDArray[np.uint64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], sources: Sequence[int]) -> Origin:
        """The origin with these inputs."""
        return cls(np.array(sources, np.int32), hashing.hash_strings(pa.array(names))[:, 0], tuple(names))


def _places(candidates: pa.RecordBatch) -> npt.NDArray[np.int32]:
    """For each row the place of its input in the `Origin`."""
    if INPUT.name not in candidates.schema.names:
        return np.zeros(candidates.num_rows, np.int32)
    return candidates[INPUT.name].to_numpy()


def _pages(candidates: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """A number for each row. The rows of a page have the same one: a page is a record of an archive."""
    offsets = candidates["offset"].to_numpy()
    if INPUT.name not in candidates.schema.names:
        return offsets
    return np.unique(offsets, return_inverse=True)[1] + _places(candidates).astype(np.int64) * len(offsets)


def page_signals(ignored: Sequence[str]) -> tuple[str, ...]:
    """The signals of pages that count if some protocols are ignored."""
    return tuple(signal for signal, protocol in rights.SIGNALS.items() if protocol not in ignored)


def _ignored_signals(run: Run) -> dict[str, Json]:
    """The entry of the fingerprint; none where no signal of pages is ignored, as it was without the option."""
    ignored = set(rights.SIGNALS) - set(page_signals(run.settings(RightsSettings).ignore_rights))
    return {"ignore_rights": sorted(ignored)} if ignored and run.settings(GatherSettings).respect_opt_out else {}


def column_names(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """url,text -> ("url", "text").

    Raises:
        UsageError: a name is empty or stands twice.
    """
    names = tuple(name.strip() for name in (given.split(",") if isinstance(given, str) else given))
    if "" in names or len(set(names)) < len(names):
        raise UsageError("must be different names with commas between them, such as url,text")
    return names


FASTTEXT = (793712314).to_bytes(4, "little")  # the first bytes of a model (fastText's FASTTEXT_FILEFORMAT_MAGIC_INT32)


MODELS = ("auto", LID, "none")  # all other values of --language-model are paths
MODEL = UserFiles("--language-model")


def _described_model(value: str) -> Json:
    return value if value in MODELS else MODEL.described([value])[0]


def _check_model(value: str) -> None:
    if value in MODELS:
        return
    checks.readable_file(value)
    if not checks.begins_with(value, FASTTEXT):
        raise MissingInput("is no fastText model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatherSettings(BlocklistSettings):
    """The options that say which pairs are read, and which model looks at their languages."""

    title: ClassVar[str] = "gather"

    input_format: str = option(
        AUTO,
        help="of all inputs",
        default_text="auto, by name and first bytes",
        choices=(AUTO, *READERS),
    )
    skip_bad_inputs: bool = option(
        False, help="go on without inputs that cannot be had or read; they are counted and named", steers=True
    )
    url_column: str = option("url", help="of tables", metavar="NAME", check=checks.not_empty)
    text_column: str = option("text", help="of tables", metavar="NAME", check=checks.not_empty)
    columns: tuple[str, ...] = option(
        (),
        help="names of the columns of CSV and TSV files, if their first line does not hold them",
        default_text="as in the first line",
        metavar="url,text",
        parse=column_names,
    )
    language_model: str = option(
        "auto",
        help="auto, lid.176, none, or a supervised fastText model's path",
        default_text="auto: lid.176 for archives, and where texts are chosen by language",
        metavar="M",
        check=_check_model,
        published=_described_model,
    )
    respect_opt_out: bool = option(
        True,
        flag="--ignore-opt-out",
        help="keep pairs of pages that forbid AI training (all metas and headers, see docs/rights.md)",
    )

    keep_personal: bool = option(False, help="keep texts with an e-mail address or a phone number")

    @staticmethod
    def check_together(o: Any) -> None:
        """Refuses one column for URL and text."""
        if o.url_column == o.text_column:
            raise UsageError(f"--text-column {o.text_column}: must be another column than --url-column")


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """The rules that a pair must meet to leave the stage.

    Attributes:
        language_model: "lid.176", a fastText model's path, or "none" (all columns on languages stay null).
        opt_outs: signals of pages (rights.SIGNALS) whose pairs are dropped.
        keep_personal: keeps texts with an e-mail address or a phone number.
    """

    language_model: str = "none"
    opt_outs: tuple[str, ...] = tuple(rights.SIGNALS)
    keep_personal: bool = False


_LANGUAGE_FIELDS = [PAIRS.field("language"), PAIRS.field("language_score"), *EVIDENCE]
FORGOTTEN = "forgotten"  # the reason of pairs that `pipeline.forget` took out of the folder
UNNAMED = (FORGOTTEN, BLOCKED)  # such rows are never among the rejected rows


def clean_batch(
    candidates: pa.RecordBatch,
    tally: Tally,
    *,
    origin: Origin,
    rules: Cleaning,
    forgotten: Tombstones | None = None,
    blocked: Blocklist | None = None,
) -> pa.RecordBatch:
    """CANDIDATES -> PAIRS with the hashes of GATHERED_PART. The order stays. `tally` counts every dropped row.

    Args:
        candidates: as a source yields them.
        tally: the stage's ledger and rejects.
        origin: the inputs that they come from.
        rules: which pairs stay.
        forgotten: what was forgotten; None: nothing. Such a row is counted, but is never among the rejected rows.
        blocked: what is listed; None: nothing. The same holds for such a row.
    """
    candidates, lacking = _filled(candidates)
    text, text_codes = clean.clean_text(candidates["text"])
    if rules.keep_personal:
        text_codes = np.where(text_codes == clean.TEXT_REASONS.index("personal"), 0, text_codes)
    url, url_codes = clean.canonical_urls(candidates["url"])
    codes = np.where(text_codes > 0, text_codes, np.where(url_codes > 0, url_codes + len(clean.TEXT_REASONS), 0))
    reasons = [*clean.TEXT_REASONS, *clean.URL_REASONS]
    for reason, rows in lacking.items():
        codes = np.where(rows, len(reasons), codes)
        reasons.append(reason)
    if rules.opt_outs and candidates["opt_out"].null_count < len(candidates):
        refused = pc.match_substring_regex(candidates["opt_out"], "|".join(rules.opt_outs)).fill_null(False)
        codes = np.where((codes == 0) & refused.to_numpy(zero_copy_only=False), len(reasons), codes)
        reasons.append("opt_out")
    if blocked is not None:
        listed = blocked.among_urls(url) | blocked.among_pages(candidates["page_url"])
        codes = np.where(listed, len(reasons), codes)
        reasons.append(BLOCKED)
    stays, gone = codes == 0, np.zeros(len(codes), np.bool_)
    if forgotten is not None:
        gone = find_forgotten(candidates, url, text, forgotten)
        codes = np.where(gone, len(reasons), codes)
        reasons.append(FORGOTTEN)
    if rules.opt_outs:
        refused = codes == reasons.index("opt_out") if "opt_out" in reasons else np.zeros(len(codes), np.bool_)
        note_refusals(candidates, url, text, refused, tally, rules=rules, names=origin.names)
    _drop(candidates, codes, reasons, tally)
    candidates = _with_texts_as_found(candidates, text)
    if not stays.all():
        keep = pa.array(stays)
        candidates, text, url = candidates.filter(keep), text.filter(keep), url.filter(keep)
    languages, left = _languages(text, candidates, rules), ~gone[stays]
    if not left.all():  # only now: what is forgotten later does not change what the page says of its other texts
        keep = pa.array(left)
        candidates, text, url = candidates.filter(keep), text.filter(keep), url.filter(keep)
        languages = Languages(*(column.filter(keep) for column in languages))
    return _pairs(candidates, text, url, languages, tally, origin)


def _filled(candidates: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, npt.NDArray[np.bool_]]]:
    """The candidates with "" in the place of nulls. Reason -> the rows that lack a text, a URL: the last one holds."""
    names = [name for name in ("text", "url") if candidates[name].null_count]
    lacking = {f"null_{name}": candidates[name].is_null().to_numpy(zero_copy_only=False) for name in names}
    columns = {name: candidates[name] for name in candidates.schema.names}
    for name in names:
        columns[name] = columns[name].fill_null("")
    return (pa.RecordBatch.from_pydict(columns) if names else candidates), lacking


def _drop(candidates: pa.RecordBatch, codes: np.ndarray, reasons: Sequence[str], tally: Tally) -> None:
    """Drops the rows with a code over 0."""
    at = np.flatnonzero(codes)
    dropped, codes = candidates.select(["url", "text"]).take(pa.array(at)), codes[at]
    for code in np.unique(codes).tolist():
        if reasons[code] in UNNAMED:
            tally.ledger.drop(reasons[code], int((codes == code).sum()))
            continue
        some = dropped.filter(pa.array(codes == code))
        tally.drop(reasons[code], some["url"], some["text"])


def _with_texts_as_found(candidates: pa.RecordBatch, text: pa.Array) -> pa.RecordBatch:
    """The candidates with `text_as_found` in place of their URLs and texts: null where equal to `text`."""
    as_found = pc.if_else(pc.equal(candidates["text"], text), None, candidates["text"])
    others = {name: candidates[name] for name in candidates.schema.names if name not in ("url", "text")}
    return pa.RecordBatch.from_pydict({**others, "text_as_found": as_found})


# The words that say what a signal was on the page.
SAID = {
    **{word: f"meta robots or X-Robots-Tag: {word}" for word in ("noai", "noimageai", "noml")},
    rights.TDM: "meta or header tdm-reservation: 1",
    rights.USAGE: "header Content-Usage: train-ai=n",
    rights.SIGNAL: "header Content-Signal: ai-train=no",
}
LONGEST_PAGE = 200  # characters of the URL of a page in an evidence


def note_refusals(
    candidates: pa.RecordBatch,
    url: pa.Array,
    text: pa.Array,
    refused: np.ndarray,
    tally: Tally,
    *,
    rules: Cleaning,
    names: Sequence[str],
) -> None:
    """Adds the refusals of a batch to the ledger of rights. A pair counts in each protocol that refuses it.

    Args:
        candidates: as a source yields them.
        url, text: of the candidates, cleaned.
        refused: True for each row that is dropped for it: (rows,).
        tally: of the stage.
        rules: which signals count.
        names: of the inputs.
    """
    seen = pc.sum(pc.not_equal(candidates["page_url"], "")).as_py() or 0
    if not seen:
        return
    found: dict[str, Any] = {
        rights.SIGNALS[signal]: {"seen": seen, "pairs": 0, "host_hashes": [], "examples": []}
        for signal in rules.opt_outs
    }
    if refused.any():
        mask = pa.array(refused)
        rows = candidates.filter(mask)
        hashes = hashing.uid_words(hashing.pair_keys(url.filter(mask), text.filter(mask)).uid)[0]
        _add_refusals(found, rows, hashes, rules, names)
    rights_ledger.add(tally.refusals, found)


def _add_refusals(
    found: dict[str, Any], rows: pa.RecordBatch, hashes: np.ndarray, rules: Cleaning, names: Sequence[str]
) -> None:
    """Adds refused rows with their hashes to the counts of each protocol."""
    hosts = hashing.hash_strings(host_names(rows["page_url"]))[:, 0]
    encoded = rows["opt_out"].dictionary_encode()
    said, of_row = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    for protocol, counted in found.items():
        signals = [signal for signal in rules.opt_outs if rights.SIGNALS[signal] == protocol]
        words = [[signal for signal in signals if signal in value.split(",")] for value in said]
        at = np.flatnonzero(np.array([bool(some) for some in words])[of_row])
        counted["pairs"] = len(at)
        counted["host_hashes"] = rights_ledger.smallest(np.unique(hosts[at]).tolist())
        for row in at[np.argsort(hashes[at], kind="stable")[: rights_ledger.EXAMPLES]].tolist():
            item = rows.slice(row, 1).to_pylist()[0]
            counted["examples"].append(_example(item, int(hashes[row]), words[of_row[row]], names))


def _example(item: dict[str, Any], number: int, words: list[str], names: Sequence[str]) -> dict[str, str]:
    byte, place = item["offset"] & ((1 << 40) - 1), item["offset"] >> 40  # as sources.archive counts records
    record = f"record at byte {byte}" + (f" (number {place} there)" if place else "")
    page = item["page_url"][:LONGEST_PAGE]
    archive = names[item.get(INPUT.name, 0)]
    evidence = f"{', '.join(SAID[word] for word in words)} (page {page}, {record}, archive {archive})"
    return {"hash": f"{number:016x}", "url": item["url"], "page": item["page_url"], "evidence": evidence}


def host_names(urls: pa.Array) -> pa.Array:
    """The host of each URL as written; "" where there is none."""
    return pc.struct_field(pc.extract_regex(urls, r"^[A-Za-z]+://(?P<host>[^/?#]+)"), "host").fill_null("")


def find_forgotten(candidates: pa.RecordBatch, url: pa.Array, text: pa.Array, forgotten: Tombstones) -> np.ndarray:
    """True for each row that was forgotten by its URL, domain, page's domain or uid: (rows,)."""
    found = forgotten.among_urls(url) | forgotten.among_pages(candidates["page_url"])
    return found | forgotten.among_uids(hashing.pair_keys(url, text).uid)


class Languages(NamedTuple):
    """The columns on the languages of texts. All are null without a model."""

    language: pa.StringArray
    score: pa.FloatArray
    evidence: pa.ListArray
    page_language: pa.StringArray
    page_score: pa.FloatArray


def _pairs(
    candidates: pa.RecordBatch,
    text: pa.Array,
    url: pa.Array,
    languages: Languages,
    tally: Tally,
    origin: Origin,
) -> pa.RecordBatch:
    """The cleaned rows with their keys and hashes."""
    places = _places(candidates)
    keys = hashing.pair_keys(url, text)
    codes = [candidates[name].to_numpy() for name in ("text_source", "url_source")]
    name_hashes = origin.name_hashes[places]
    provenance = hashing.provenance_hash(candidates["page_url"], name_hashes, candidates["offset"].to_numpy(), *codes)
    high, low = hashing.uid_words(keys.uid)
    as_found = candidates["text_as_found"]
    more = [hashing.column_hash(column) for column in (as_found, *languages[:2], candidates["opt_out"])]
    row_hash = hashing.row_hash(high, low, provenance, *more, hashing.column_hash(candidates["license"]))
    tally.passed(row_hash)
    columns = [
        keys.uid,
        url,
        text,
        as_found,
        candidates["page_url"],
        pa.array(origin.sources[places]),
        candidates["offset"],
        candidates["text_source"],
        candidates["url_source"],
        languages.language,
        languages.score,
        candidates["opt_out"],
        candidates["license"],
        languages.evidence,
        languages.page_language,
        languages.page_score,
        pa.array(provenance),
        pa.array(row_hash),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=GATHERED_PART)


def _languages(text: pa.Array, candidates: pa.RecordBatch, rules: Cleaning) -> Languages:
    """What the model and the scripts say about each text, and about the other texts of its page.

    A page is a record of an archive. A reader never cuts one, so all texts of a page are in the batch.
    """
    if rules.language_model == "none":
        return Languages(*(pa.nulls(len(text), field.type) for field in _LANGUAGE_FIELDS))
    from pipeline.text.language import LanguageModel, likeliest

    model = LanguageModel.load(rules.language_model)
    evidence, page_language, page_score = model.with_pages(text, _pages(candidates))
    return Languages(*likeliest(evidence, model.labels), evidence, page_language, page_score)


@dataclasses.dataclass(frozen=True)
class CleanRows:
    """`clean_batch` as a function of a pass. Its units are those of `ReadInputs`."""

    inputs: str  # path of the JSON list of inputs
    rules: Cleaning
    blocked: StepFolder | None = None

    def open(self, unit: int) -> Callable[[pa.RecordBatch, Tally], pa.RecordBatch]:
        inputs = load_inputs(self.inputs)
        names = [inputs.units[number].name for number in inputs.members[unit]]
        return functools.partial(
            clean_batch,
            origin=Origin.of(names, [inputs.sources[name] for name in names]),
            rules=self.rules,
            forgotten=Tombstones.load(os.path.dirname(self.inputs)),
            blocked=None if self.blocked is None else Blocklist.load(self.blocked),
        )


@dataclasses.dataclass(frozen=True)
class ReadInputs:
    """The inputs as the source of a pass: a unit reads one, or several small ones. It also lists the images in them."""

    inputs: str  # path of the JSON list of inputs
    settings: ReadSettings
    skip_bad: bool
    images: StepFolder
    states: StepFolder
    remote: RemoteSettings

    def units(self) -> int:
        return len(load_inputs(self.inputs).names)

    def numbers(self) -> Sequence[int]:
        return load_inputs(self.inputs).largest_first

    def read(self, unit: int, ledger: Ledger, more: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        """The batches of a unit. `more` gets the losses of its inputs, if there are several (`left_out.LOSSES`).

        Raises:
            LeftOut: with `skip_bad`, the only input of the unit cannot be read to its end.
            MissingInputError, RefusedInputError, UnreadableInputError, TransferError: without it.
        """
        remote.configure(self.remote)
        members = load_inputs(self.inputs).members[unit]
        images: list[pa.Table] = []
        try:
            if len(members) == 1:
                yield from self._read(members[0], ledger, images)
            else:
                yield from self._read_several(members, ledger, images, more)
        except LeftOut:
            self.images.remove_files(unit)
            raise
        if sum(map(len, images)):
            storage.write_table(self.images.file(unit, "images"), pa.concat_tables(images))
            self.images.write_manifest(unit, {"images": sum(map(len, images))})

    def _read_several(
        self, members: Sequence[int], ledger: Ledger, images: list[pa.Table], more: dict[str, Any]
    ) -> Iterator[pa.RecordBatch]:
        """The batches of small inputs, joined. Each input is read to its end before any of its rows count."""
        losses: dict[str, Any] = {}
        waiting, rows = list[pa.RecordBatch](), 0
        for place, number in enumerate(members):
            counted, found = Ledger(), list[pa.Table]()
            try:
                batches = list(self._read(number, counted, found))
            except LeftOut as error:
                counted, batches, found = Ledger(records_in=1), [], []
                counted.lose(error.reason)
            ledger.add(counted)
            images += found
            if counted.records_dropped or counted.notes[CUT]:
                losses[str(number)] = counted.to_json()
            for batch in batches:
                if waiting and rows + batch.num_rows > BATCH_ROWS:
                    yield pa.concat_batches(waiting)
                    waiting, rows = [], 0
                waiting.append(batch.append_column(INPUT, pa.array(np.full(batch.num_rows, place, np.int32))))
                rows += batch.num_rows
        if waiting:
            yield pa.concat_batches(waiting)
        if losses:
            more[left_out.LOSSES] = losses

    def _read(self, number: int, ledger: Ledger, images: list[pa.Table]) -> Iterator[pa.RecordBatch]:
        """The batches of one input. `images` gets IMAGES."""
        inputs, found = load_inputs(self.inputs), list[pa.RecordBatch]()
        source = left_out.as_it_is(os.path.dirname(self.inputs), inputs.units[number])
        try:
            yield from self._batches(source, ledger, found)
        except UNAVAILABLE as error:
            broken = isinstance(error, TransferError)
            if not self.skip_bad:
                raise type(error)(f"{error}. {AGAIN if broken else SKIP}") from error
            if ledger.rows_in or not isinstance(error, UnreadableInputError):
                raise LeftOut(left_out.BROKEN if broken else left_out.UNREADABLE) from error
            ledger.records_in += 1  # the reasons for which all of its records were lost stay
            ledger.lose(left_out.UNREADABLE)
            return
        if (state := remote.seen(source.path)) is not None:
            self.states.write_manifest(number, dataclasses.asdict(state))
        if not ledger.rows_in and source.bytes != 0:
            ledger.notes["input_without_pairs"] += 1  # its layout may be another one than the reader expects
        images += [list_images(batch, inputs.sources[source.name]) for batch in found if batch.num_rows]

    def _batches(self, source: Input, ledger: Ledger, images: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches of a reader.

        Raises:
            UnreadableInputError: no byte of the input can be understood.
        """
        reader = READERS[source.format]
        batches = reader.read(source, ledger=ledger, images=images, settings=self.settings)
        yield from name_failures(batches, source)
        all_lost = ledger.records_in == sum(ledger.records_dropped.values()) and not ledger.rows_in
        if all_lost and not sum(map(len, images)) and not reader.understands(source):
            raise UnreadableInputError(f"no byte of {source.name!r} can be understood")


def name_failures(batches: Iterator[pa.RecordBatch], source: Input) -> Iterator[pa.RecordBatch]:
    """The batches of a reader. An error that no reader raises on purpose gets the names of the input and the reader.

    Raises:
        ReaderError: the reader failed otherwise than by InputError or an error of the system (disk full, no rights).
    """
    try:
        yield from batches
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = " ".join(str(error).split())
        cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise ReaderError(f"{source.name!r}: the reader {source.format} failed: {cause}") from error


def list_images(found: pa.RecordBatch, source: int) -> pa.Table:
    """IMAGES of one input, with canonical URLs. An image without a usable URL is left out."""
    url, codes = clean.canonical_urls(found["url"])
    columns = [url, pa.array(np.full(len(url), source, np.int32)), found["offset"], found["length"]]
    return pa.table(columns, schema=IMAGES).filter(pa.array(codes == 0))


_lists: dict[str, InputList] = {}  # path -> the list, of one run: that of a crawl takes 100 MB


def load_inputs(path: str) -> InputList:
    """The inputs of the run.

    Raises:
        DamagedError: the file is damaged, or it is missing.
    """
    if path not in _lists:
        found = InputList.read(os.path.dirname(path))
        if found is None:
            raise storage.DamagedError(f"{path} is missing")
        _lists.clear()
        _lists[path] = found
    return _lists[path]


def save_inputs(path: str, inputs: InputList) -> None:
    """Writes the list of inputs for the workers and for later runs."""
    inputs.write(path)
    _lists.clear()
    _lists[path] = inputs


def read_settings(o: GatherSettings) -> ReadSettings:
    """The options that the readers use."""
    return ReadSettings(url_column=o.url_column, text_column=o.text_column, columns=o.columns)


def check_inputs(inputs: tuple[Input, ...], settings: ReadSettings, *, skip_bad: bool) -> None:
    """Lets every reader check its inputs, so that an unreadable input is reported before anything is written.

    `skip_bad` accepts inputs that cannot be had.

    Raises:
        UsageError: the options do not fit an input.
        MissingInput: an input cannot be read.
        BelowThreshold: its server is away.
    """
    try:
        for name, reader in READERS.items():
            try:
                reader.check([item for item in inputs if item.format == name], settings)
            except UNAVAILABLE as error:
                if skip_bad:
                    continue
                if isinstance(error, TransferError):
                    raise BelowThreshold(f"{error}. {TRY_LATER}") from error
                raise MissingInput(f"{error}. {SKIP}") from error
    except SettingsError as error:
        raise UsageError(str(error)) from error
    except (InputError, OSError) as error:
        raise MissingInput(str(error)) from error


@dataclasses.dataclass(frozen=True)
class Gather(RowStage):
    """The stage."""

    name: ClassVar[str] = "gather"
    job: ClassVar[Job] = "select"
    options: ClassVar[type] = GatherSettings

    inputs: InputList
    inputs_file: str
    settings: ReadSettings
    skip_bad: bool
    rules: Cleaning
    remote: RemoteSettings
    lists: tuple[str, ...]

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        o = run.settings(GatherSettings)
        opt_outs = page_signals(run.settings(RightsSettings).ignore_rights) if o.respect_opt_out else ()
        rules = Cleaning(run.workers_model, opt_outs, o.keep_personal)
        settings = read_settings(o)
        return cls(
            before.plan(run, cls),
            run.keep_rejected,
            run.input_list,
            run.inputs_file,
            settings,
            o.skip_bad_inputs,
            rules,
            dataclasses.replace(run.remote, fill=True),
            o.blocklist,
        )

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        o = run.settings(GatherSettings)
        listed = Blocklist.read(o.blocklist).digest(*ADDRESSES) if o.blocklist else None
        model = run.language_model
        return {
            "result": RESULT,
            INPUTS: digest_of(identities(run.inputs)),
            "url_column": o.url_column,
            "text_column": o.text_column,
            "columns": o.columns,
            "language_model": model if model in (LID, "none") else content_of(MODEL.flag, model),
            "respect_opt_out": o.respect_opt_out,
            "keep_personal": o.keep_personal,
            "keep_rejected": run.keep_rejected,
            **({"blocklist": listed} if listed else {}),  # else as it was without the option
            **_ignored_signals(run),
        }

    def check(self, run: Run) -> None:
        o = run.settings(GatherSettings)
        check_inputs(run.new_inputs, read_settings(o), skip_bad=o.skip_bad_inputs)

    def settle(self, run: Run) -> None:
        save_inputs(self.inputs_file, self.inputs)
        write_copy(run.language_model, run.workers_model)
        if self.lists:
            Blocklist.read(self.lists).write(blocklist_of(self.folder))

    def source(self) -> ReadInputs:
        return ReadInputs(self.inputs_file, self.settings, self.skip_bad, self.images, self.states, self.remote)

    def count(self, *, counted: Sequence[StepFolder] | None = None) -> dict[str, Any]:
        info = super().count(counted=counted)
        steps = self.counted() if counted is None else counted
        units = [row for step in steps for row in step.manifests()]
        names = {number: item.name for number, item in self.inputs.units.items()}
        counts = left_out.counts_of_inputs(units, self.inputs)
        damaged = damaged_inputs((names[number], counted) for number, counted in counts)
        without = [names[number] for step in steps for number in left_out.inputs(step, self.inputs)]
        refusals: dict[str, Any] = {}
        for _, row in units:
            rights_ledger.add(refusals, row["ledgers"][self.name].get("rights") or {})
        more = {"damaged_inputs": damaged, left_out.NAMES: without, "rights": rights_ledger.settle(refusals)}
        return {**info, **{name: value for name, value in more.items() if value}}

    def function(self) -> CleanRows:
        return CleanRows(self.inputs_file, self.rules, blocklist_of(self.folder) if self.lists else None)

    def parts(self) -> Parts:
        return Parts(self.folder.units("parts"), GATHERED_PART)

    @property
    def states(self) -> StepFolder:
        """Where the units note what a server said of their input (`remote.State`)."""
        return self.folder.units(STATES)

    @property
    def images(self) -> StepFolder:
        """Where the images inside the inputs are listed."""
        return self.folder.units("images")

    @property
    def output(self) -> Rows:
        return Rows(self.parts().folder)

    def watched(self) -> list[Watched]:
        return [Watched("gather parts", self.parts().folder, len(self.inputs.members))]
