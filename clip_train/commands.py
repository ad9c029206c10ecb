"""The commands: the options of each, declared once, and what each does. `COMMANDS` is the list of all of them.

A command has one or more classes of options (see fields.py). Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from clip_train import __version__, messages, places
from clip_train.config import (
    ACTIVATIONS,
    MEASURES,
    PRESETS,
    TrainOptions,
    check_model,
    check_run,
    check_together,
    fill_from_preset,
)
from clip_train.errors import BelowThreshold, TrainError, UsageError
from clip_train.fields import check_files, check_values, flag_of, kinds, nearest, option
from clip_train.hosts import JOIN_MINUTES, refused_before
from clip_train.recipe import label, read_recipe, recipe_file, write_recipe
from clip_train.same_run import continued
from clip_train.suite import check_suite, read_suite, shipped
from clip_train.tokenizer import MAX_MERGES

T = TypeVar("T")


# --- options ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrintOptions:
    """What every command has."""

    json: bool = option(False, "print the result as JSON")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogOptions:
    """the log (the numbers of all steps are in RUN/log.jsonl)"""

    log_file: str | None = option(None, "file to whose end messages are added as JSON lines", metavar="PATH")
    quiet: bool = option(False, "show no progress and no result on the screen; errors stay")

    def check(self) -> None:
        """UsageError where the file cannot be written."""
        if self.log_file is None:
            return
        folder = os.path.dirname(os.path.abspath(self.log_file))
        if os.path.isdir(self.log_file) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise UsageError(f"--log-file {self.log_file} must be a file in a folder that can be written to")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """several processes (one a GPU unless given; torchrun's variables are understood)"""

    processes: int | None = option(None, "processes on this host; works on a CPU too", within="[1, 4096]")
    nnodes: int = option(1, "hosts", within="[1, 65536]")
    node_rank: int = option(0, "number of this host, from 0", within="[0, 65536)")
    rdzv_endpoint: str | None = option(None, "where the hosts meet, on the first of them", metavar="HOST:PORT")
    join_minutes: float = option(JOIN_MINUTES, "how long the processes wait at the start until all are there",
                                 within="(0, inf)")  # fmt: skip

    def check(self) -> None:
        """UsageError where the options exclude each other."""
        if self.node_rank >= self.nnodes:
            raise UsageError(f"--node-rank {self.node_rank} must be below --nnodes {self.nnodes}: hosts count from 0")
        if self.nnodes > 1 and not self.rdzv_endpoint:
            raise UsageError(f"--nnodes {self.nnodes} needs --rdzv-endpoint HOST:PORT, the same on every host")
        endpoint = re.fullmatch(r"[^\s:]+:(\d{1,5})|\[[0-9A-Fa-f:]+\]:(\d{1,5})", self.rdzv_endpoint or "host:0")
        if endpoint is None or int(endpoint[1] or endpoint[2]) > 65535:
            raise UsageError(f"--rdzv-endpoint {self.rdzv_endpoint!r}: HOST:PORT with a port up to 65535 is expected")

    @property
    def ranks(self) -> int:
        """Processes of the whole run, as far as they are known before torch counts the GPUs."""
        started = os.environ.get("WORLD_SIZE", "")
        return int(started) if started.isdecimal() and int(started) else (self.processes or 1) * self.nnodes

    def start(self, argv: list[str], processes: int) -> None:
        """Runs the command in several processes."""
        from clip_train.launch import launch

        launch(
            argv, processes=processes, nnodes=self.nnodes, node_rank=self.node_rank, endpoint=self.rdzv_endpoint,
            join_minutes=self.join_minutes,
        )  # fmt: skip

    def refused(self, message: str) -> str:
        """Another host than the first tells the others, if they wait, why it does not come. Returns what it says."""
        started = "LOCAL_RANK" in os.environ  # such a process has its launcher for that
        if self.node_rank == 0 or self.nnodes == 1 or started or not self.rdzv_endpoint:
            return message
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        try:
            self.check()
        except UsageError:
            return message
        return refused_before(self.rdzv_endpoint, hosts=self.nnodes, host=self.node_rank, message=message)

    @property
    def first(self) -> bool:
        """True for the first process of the run, and for what starts it."""
        return self.node_rank == 0 and os.environ.get("RANK", "0") == "0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """recipes"""

    config: str | None = option(None, "recipe: .yaml, .toml, .json, or a run's config.json; the command line wins",
                                metavar="FILE", files=recipe_file)  # fmt: skip
    print_config: bool = option(False, "print the recipe that the options come to, and do nothing else")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Weights to use."""

    checkpoint: str = option(
        "", "a run, a checkpoint, OpenAI's .pt, open_clip's .pt or .safetensors, or a folder of Hugging Face",
        files=places.weights,
    )  # fmt: skip
    ema: bool = option(False, "use the moving average of the weights")
    model: str | None = option(None, "the model of weights that do not name it, such as ViT-H-14", metavar="NAME",
                               value=check_model)  # fmt: skip
    activation: str | None = option(None, "the activation of weights that do not name it", choices=ACTIVATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ModelOptions):
    """Weights, and how they are used."""

    bpe: str | None = option(None, "vocabulary; the run's own unless given", metavar="FILE", files=places.readable_file)
    batch_size: int = option(128, "images at a time", within="[1, inf)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledOptions(EvaluationOptions):
    """Labelled images."""

    data: str = option("", "images (a folder a class) or shards with .cls members", files=places.labelled_images)
    classes: str | None = option(None, "class names: JSON or a line each", metavar="FILE", files=places.readable_file)
    dataset: str | None = option(None, "the entry to take of the JSON files that the other flags name", metavar="NAME")

    def check(self) -> None:
        """UsageError where --dataset has no file to look into."""
        if self.dataset and not (self.classes or getattr(self, "templates", None)):
            raise UsageError(
                f"--dataset {self.dataset} names an entry of a JSON file: give --classes or --templates too"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedOptions(LabelledOptions):
    """Labelled images that prompts classify."""

    templates: str | None = option(None, "prompt templates: JSON or a line each", metavar="FILE",
                                   files=places.readable_file)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(PromptedOptions):
    """Options of `zero-shot`."""

    min_top1: float | None = option(None, "exit with code 3 below this accuracy, a share", within="[0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(EvaluationOptions):
    """Options of `evaluate`."""

    suite: str = option("", f"the sets: a YAML file, or one of: {', '.join(shipped())}", metavar="NAME",
                        files=check_suite)  # fmt: skip
    root: str = option(".", "folder below which the sets lie", files=places.folder)
    output: str = option("evaluation", "folder for the results, and for what is kept of each set",
                         files=places.writable_folder)  # fmt: skip
    only: tuple[str, ...] | None = option(None, "some of the sets", metavar="NAME")
    threads: int = option(0, "threads of a probe's fit; 0: one for every second core", within="[0, 1024]")
    fresh: bool = option(False, "evaluate again what is kept of these weights")

    def check(self) -> None:
        """UsageError for a set that the suite does not have."""
        names = [each.name for each in read_suite(self.suite).sets]
        for name in self.only or ():
            if name not in names:
                raise UsageError(f"--only {name!r} is no set of {self.suite}{nearest(name, names)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalOptions(EvaluationOptions):
    """Options of `retrieval`."""

    data: str = option("", "shards with captions", files=places.shards)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeOptions(LabelledOptions):
    """Options of `probe`."""

    test_data: str | None = option(None, "images to test on; a fifth of --data unless given",
                                   files=places.labelled_images)  # fmt: skip
    threads: int = option(0, "threads of the fit; 0: one for every second core", within="[0, 1024]")
    l2: float | None = option(None, "this strength of the penalty, instead of the paper's sweep", within="[0, inf)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedOptions(EvaluationOptions):
    """Options of `embed`."""

    data: str = option("", "shards", files=places.shards)
    output: str = option("", "the table, a Parquet file", metavar="FILE", files=places.new_file)
    texts: bool = option(False, "embed the captions too")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOptions(EvaluationOptions):
    """Options of `score`."""

    data: str = option("", "shards", files=places.shards)
    output: str = option("", "the table, a Parquet file", metavar="FILE", files=places.new_file, also="--to")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlapOptions(PromptedOptions):
    """Options of `overlap`."""

    train_embeddings: str | None = option(None, "table that `embed` wrote for the training set", metavar="FILE",
                                          files=places.readable_file)  # fmt: skip
    threshold: float = option(0.95, "cosine from which an image counts as seen", within="[-1, 1]")
    contamination: str | None = option(None, "contamination.parquet of a set, or the set's folder", metavar="OUT")
    contamination_set: str | None = option(None, "the evaluation set in it; the only one unless given", metavar="NAME")

    def check(self) -> None:
        """UsageError where nothing says which images were seen, InputMissing where the table is absent."""
        super().check()
        if (self.train_embeddings is None) == (self.contamination is None):
            raise UsageError("give --train-embeddings FILE or --contamination OUT: it says which images were seen")
        if self.contamination is None and self.contamination_set is not None:
            raise UsageError(f"--contamination-set {self.contamination_set} needs --contamination OUT")
        if self.contamination is not None:
            folder = os.path.isdir(self.contamination)
            file = os.path.join(self.contamination, "contamination.parquet") if folder else self.contamination
            places.readable_file("--contamination", file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Options of `export`."""

    output: str = option("", "file to write; a folder for huggingface", files=places.new_path)
    format: str = option("safetensors", "form of the weights", choices=("safetensors", "open_clip", "huggingface"))
    bpe: str | None = option(None, "vocabulary, for huggingface; the run's own unless given", metavar="FILE",
                             files=places.readable_file)  # fmt: skip

    def check(self) -> None:
        """UsageError where the output would take another's place."""
        if self.format == "huggingface" and os.path.exists(self.output):
            raise UsageError(f"--output {self.output} exists already: name a new folder")
        if self.format != "huggingface":
            places.new_file("--output", self.output)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyOptions:
    """Options of `tokenizer train`."""

    input: tuple[str, ...] = option((), "Parquet with a text column, .txt, .txt.gz, WordNet's data.*, or shards",
                                    files=places.captions)  # fmt: skip
    text_column: str = option("text", "column of the Parquet files", metavar="NAME")
    merges: int = option(MAX_MERGES, "merges to learn; 48894 make 49,408 ids in all", within=f"[1, {MAX_MERGES}]")
    min_count: int = option(2, "stop at pairs that occur less often", within="[1, inf)")
    output: str = option("", "the vocabulary, .txt.gz", metavar="FILE", files=places.new_file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Options of `tokenizer encode`."""

    text: str = option("", "the text", positional=True)
    bpe: str | None = option(None, "vocabulary; found by itself unless given", metavar="FILE",
                             files=places.readable_file)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `bench`."""

    model: str = option("ViT-B-32", "one of: " + ", ".join(PRESETS), metavar="NAME", value=check_model)
    data: str | None = option(None, "shards to read; made up unless given", files=places.shards)
    batch_size: int = option(64, "pairs a step", within="[1, inf)")
    seconds: float = option(5.0, "seconds for each measure", within="(0, inf)")
    only: tuple[str, ...] | None = option(None, "some of the measures", choices=MEASURES, metavar="NAME")
    precision: str = option("auto", "auto: bf16 on a GPU that has it, else fp32",
                            choices=("auto", "fp32", "bf16", "fp16"))  # fmt: skip
    compile: bool = option(False, "torch.compile the towers")


# --- what the commands do ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Call:
    """A command with its options."""

    command: Command
    given: dict[str, Any]  # by the command line, field by field
    argv: list[str]
    parts: dict[type, Any] = dataclasses.field(default_factory=dict)

    def __getitem__(self, part: type[T]) -> T:
        return self.parts[part]

    def run(self) -> dict[str, Any] | str | None:
        """The result. A text is printed as it is; None: another process has printed it."""
        return self.command.run(self)


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its name ("tokenizer train" is a command of a group), its options, and what it does."""

    name: str
    help: str
    parts: tuple[type, ...]
    run: Callable[[Call], dict[str, Any] | str | None]
    epilog: str = ""


def prepare(call: Call) -> Call:
    """Builds the options from the command line and the recipe, and refuses what is known to be wrong.

    Raises:
        UsageError: a value, or a combination, that is not allowed.
        InputMissing: a file or folder that is absent.
    """
    try:
        return _prepared(call)
    except TrainError as error:
        if LaunchOptions in call.parts:
            error.args = (call[LaunchOptions].refused(str(error)),)
        raise


def _prepared(call: Call) -> Call:
    recipe, labels = _recipe_values(call)
    values = {**recipe, **call.given}
    for part in call.command.parts:
        fields = dataclasses.fields(part)
        options = part(**{field.name: values[field.name] for field in fields if field.name in values})
        check_values(options, labels)
        call.parts[part] = options
    if TrainOptions in call.parts:
        _check_train(call, labels)
    else:
        for options in call.parts.values():
            check_files(options, labels)
            _check_part(options)
    return call


def _check_part(options: Any) -> None:
    if hasattr(options, "check"):
        options.check()


def _recipe_values(call: Call) -> tuple[dict[str, Any], dict[str, str]]:
    """What the recipe gives beside the command line, and how messages name it."""
    path = call.given.get("config")
    if RecipeOptions not in call.command.parts or path is None:
        return {}, {}
    fields = [field for part in _RECIPE_PARTS for field in dataclasses.fields(part)]
    replaced = {field.metadata.get("replaces") for field in fields if field.name in call.given}
    values = read_recipe(path, _RECIPE_PARTS)
    values = {name: value for name, value in values.items() if name not in call.given and name not in replaced}
    return values, {name: label(path, name) for name in values}


_RECIPE_PARTS = (TrainOptions, LaunchOptions)


def _check_train(call: Call, labels: dict[str, str]) -> None:
    _check_part(call[LaunchOptions])
    _check_part(call[LogOptions])
    first = call[LaunchOptions].first  # the others learn from it what stands in the run's folder
    if first:
        said = {name for name in kinds(TrainOptions) if name in call.given or name in labels}
        call.parts[TrainOptions], _ = continued(call[TrainOptions], said)
    check_together(call[TrainOptions], world_size=call[LaunchOptions].ranks)
    if not call[RecipeOptions].print_config:
        check_run(call[TrainOptions], labels, first=first)


def _train(call: Call) -> dict[str, Any] | str | None:
    options, hosts = call[TrainOptions], call[LaunchOptions]
    if call[RecipeOptions].print_config:
        return _recipe_of(call)
    from clip_train.launch import processes_to_start

    count = processes_to_start(hosts.processes, nnodes=hosts.nnodes)
    if count:
        hosts.start(call.argv, count)
        return None
    from clip_train.distributed import first_process, pick_device, process_group
    from clip_train.training import train

    logs = call[LogOptions]
    with messages.logging_to(logs.log_file if first_process() else None, quiet=logs.quiet):
        waits = {"timeout_minutes": options.timeout_minutes, "join_minutes": hosts.join_minutes}
        with process_group(pick_device(), **waits):
            result = train(options)
        messages.note("the run is done", **result)
    if not first_process() or (logs.quiet and not call[PrintOptions].json):
        return None
    if not call[PrintOptions].json:
        folder = shlex.quote(options.output)
        result["next"] = f"python -m clip_train zero-shot --checkpoint {folder} --data FOLDER_OF_CLASSES"
    return result


def _recipe_of(call: Call) -> dict[str, Any] | str:
    options = fill_from_preset(call[TrainOptions])
    values = {**dataclasses.asdict(options), **dataclasses.asdict(call[LaunchOptions])}
    if call[PrintOptions].json:
        return values
    help_of = {field.name: field.metadata["help"] for part in _RECIPE_PARTS for field in dataclasses.fields(part)}
    return write_recipe(values, help_of)


def _by_processes(call: Call, work: Callable[[], T]) -> T | None:
    """Does the work in one process, or in several that share it. None: another process has the result.

    Ranks wait for each other as long as it takes: a probe may take hours.
    """
    hosts = call[LaunchOptions]
    from clip_train.launch import processes_to_start

    count = processes_to_start(hosts.processes, nnodes=hosts.nnodes)
    if count:
        hosts.start(call.argv, count)
        return None
    from clip_train.distributed import first_process, pick_device, process_group, refuse_different

    with process_group(pick_device(), timeout_minutes=7 * 24 * 60, join_minutes=hosts.join_minutes):
        refuse_different({"the version of openwit": __version__, **_numbers_of(call)})
        result = work()
    return result if first_process() else None


def _numbers_of(call: Call) -> dict[str, Any]:
    """The options of an evaluation that all ranks must share: none that names a place on a host, or its speed."""
    own = ("threads", "min_top1")
    return {
        flag_of(field.name): getattr(call[part], field.name)
        for part in call.command.parts if part not in (LaunchOptions, PrintOptions)
        for field in dataclasses.fields(part) if "files" not in field.metadata and field.name not in own
    }  # fmt: skip


def _zero_shot(call: Call) -> dict[str, Any] | None:
    from clip_train.evaluate import zero_shot

    options = call[ZeroShotOptions]

    def work() -> dict[str, Any]:
        model, tokenizer, _ = _load(options)
        return zero_shot(model, tokenizer, options.data, templates=options.templates, **_labels(options))

    result = _by_processes(call, work)
    if result is None:
        return None
    if options.min_top1 is not None and result["top1"] < options.min_top1:
        raise BelowThreshold(f"top-1 is {result['top1']:.4f}, below --min-top1 {options.min_top1}")
    return result


def _evaluate(call: Call) -> dict[str, Any] | str | None:
    options = call[EvaluateOptions]
    from clip_train.suite_report import summary, table, write_report
    from clip_train.suite_run import Evaluator, run_suite

    suite = read_suite(options.suite).only(options.only)

    def work() -> tuple[list[dict[str, Any]], str]:
        model, tokenizer, _ = _load(options)
        with_model = Evaluator(model, tokenizer, options.batch_size, options.threads)
        rows = run_suite(with_model, suite, options.root, Path(options.output), say=_say, fresh=options.fresh)
        return rows, with_model.digest

    found = _by_processes(call, work)
    if found is None:
        return None
    rows, digest = found
    result = summary(suite.name, options.checkpoint, rows)
    folder = Path(options.output) / f"{suite.name}-{digest[:12]}"
    write_report(folder, result)
    failed = [row["name"] for row in rows if row["status"] == "failed"]
    if failed:
        raise TrainError(f"{', '.join(failed)}: no result; {folder} has the others and the reasons")
    return {**result, "output": str(folder)} if call[PrintOptions].json else f"{table(result)}\n{folder}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _retrieval(call: Call) -> dict[str, Any] | None:
    from clip_train.evaluate import retrieval

    options = call[RetrievalOptions]

    def work() -> dict[str, Any]:
        model, tokenizer, _ = _load(options)
        return retrieval(model, tokenizer, options.data, batch_size=options.batch_size)

    return _by_processes(call, work)


def _probe(call: Call) -> dict[str, Any]:
    from clip_train.probe import probe

    options = call[ProbeOptions]
    model, _, _ = _load(options)
    return probe(
        model, options.data, test_data=options.test_data, l2=options.l2, threads=options.threads, **_labels(options)
    )


def _embed(call: Call) -> dict[str, Any]:
    from clip_train.evaluate import embed

    options = call[EmbedOptions]
    model, tokenizer, _ = _load(options)
    return embed(model, tokenizer, options.data, options.output, texts=options.texts, batch_size=options.batch_size)


def _score(call: Call) -> dict[str, Any]:
    from clip_train.evaluate import score

    options = call[ScoreOptions]
    model, tokenizer, _ = _load(options)
    return score(model, tokenizer, options.data, options.output, batch_size=options.batch_size)


def _overlap(call: Call) -> dict[str, Any]:
    from clip_train.overlap import overlap

    options = call[OverlapOptions]
    model, tokenizer, _ = _load(options)
    return overlap(
        model, tokenizer, options.data, options.train_embeddings, threshold=options.threshold,
        contamination=options.contamination, contamination_set=options.contamination_set,
        templates=options.templates, **_labels(options),
    )  # fmt: skip


def _load(options: EvaluationOptions) -> Any:
    from clip_train.distributed import refuse_different, together, world_size
    from clip_train.suite_run import digest_of_model
    from clip_train.use import load

    found = together(lambda: load(
        options.checkpoint, ema=options.ema, model=options.model, activation=options.activation, bpe=options.bpe
    ))  # fmt: skip
    refuse_different({"the model of --checkpoint": digest_of_model(*found[:2])[:16] if world_size() > 1 else ""})
    return found


def _labels(options: LabelledOptions) -> dict[str, Any]:
    return {"classes": options.classes, "dataset": options.dataset, "batch_size": options.batch_size}


def _export(call: Call) -> dict[str, Any]:
    from clip_train.export import export
    from clip_train.use import tokenizer_of
    from clip_train.weights import read_weights

    options = call[ExportOptions]
    weights = read_weights(options.checkpoint, ema=options.ema, model=options.model, activation=options.activation)
    tokenizer = tokenizer_of(weights, options.checkpoint, bpe=options.bpe) if options.format == "huggingface" else None
    return export(weights, options.output, form=options.format, tokenizer=tokenizer)


def _tokenizer_train(call: Call) -> dict[str, Any]:
    from clip_train.bpe import train_vocabulary

    options = call[VocabularyOptions]
    return train_vocabulary(
        options.input, options.output, column=options.text_column, merges=options.merges, min_count=options.min_count
    )


def _tokenizer_encode(call: Call) -> dict[str, Any]:
    from clip_train.tokenizer import load_tokenizer

    options = call[EncodeOptions]
    tokenizer = load_tokenizer(options.bpe)
    ids = tokenizer.encode(options.text)
    return {"ids": ids, "pieces": [tokenizer.decode([number]) for number in ids], "vocabulary": tokenizer.name}


def _bench(call: Call) -> dict[str, Any]:
    from clip_train.bench import bench

    options = call[BenchOptions]
    return bench(
        model=options.model, data=options.data, batch_size=options.batch_size, seconds=options.seconds,
        only=options.only, precision=options.precision, compiled=options.compile,
    )  # fmt: skip


_RECIPES = "recipes of the paper, by the model:\n" + "\n".join(
    f"  {name:14s}lr {r.lr:g}, batch {r.batch_size:,}, {r.epochs:g} epochs, warm-up {r.warmup} steps"
    for name, r in ((name, preset.recipe) for name, preset in PRESETS.items())
)
_ALL = (
    Command("train", "train a model", (TrainOptions, LaunchOptions, LogOptions, RecipeOptions), _train, _RECIPES),
    Command("zero-shot", "classify labelled images by prompts", (ZeroShotOptions, LaunchOptions), _zero_shot),
    Command("evaluate", "many test sets: a suite of zero-shot, retrieval and probe", (EvaluateOptions, LaunchOptions),
            _evaluate),
    Command("retrieval", "recall of captions by images and of images by captions", (RetrievalOptions, LaunchOptions),
            _retrieval),
    Command("probe", "linear probe: logistic regression on image features", (ProbeOptions,), _probe),
    Command("embed", "write a Parquet table of keys and image embeddings", (EmbedOptions,), _embed),
    Command("score", "write a Parquet table of keys and the cosines of image and text", (ScoreOptions,), _score),
    Command("overlap", "how far training images in an evaluation set change its accuracy", (OverlapOptions,), _overlap),
    Command("export", "write weights for another program", (ExportOptions,), _export),
    Command("tokenizer train", "learn merges from captions", (VocabularyOptions,), _tokenizer_train),
    Command("tokenizer encode", "ids and pieces of a text", (EncodeOptions,), _tokenizer_encode),
    Command("bench", "measure tokenizer, loader, loss and training steps on this machine", (BenchOptions,), _bench),
)
COMMANDS = {each.name: dataclasses.replace(each, parts=(*each.parts, PrintOptions)) for each in _ALL}
GROUPS = {"tokenizer": "train a vocabulary, or show how a text is cut"}
