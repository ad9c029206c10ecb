"""python -m clip_train train | zero-shot | retrieval | probe | overlap | embed | export | tokenizer | bench

Reads the command line, calls one function of another module, prints what it returns: as JSON with --json, for a person
without. Exit codes: 0 done, 1 crash, 2 usage, 3 below a threshold, 4 input missing, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from clip_train.config import PRESETS, TrainOptions, preset
from clip_train.errors import CRASH, DONE, INTERRUPTED, USAGE, TrainError, UsageError

EXTRA = ("torch", "numpy", "pyarrow", "safetensors", "cv2", "PIL")


class Parser(argparse.ArgumentParser):
    """argparse, but an unknown flag gets a suggestion, and abbreviations are not guessed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The options, or exit code 2 with a sentence."""
        given = list(sys.argv[1:] if argv is None else argv)
        self._refuse_unknown_flags(given)  # before argparse misses, say, the --output behind a misspelt flag
        found, unknown = self.parse_known_args(given)
        if unknown:
            self.error(f"unknown argument {unknown[0]}")
        return found

    def _refuse_unknown_flags(self, given: list[str]) -> None:
        parser: argparse.ArgumentParser = self
        for word in given:
            nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
            if nested and word in nested[0].choices:
                parser = nested[0].choices[word]
            elif word.startswith("--") and len(word) > 2:
                flags = [flag for action in parser._actions for flag in action.option_strings]
                flag = word.split("=")[0]
                if flag not in flags:
                    close = difflib.get_close_matches(flag, flags, n=1)
                    hint = f"did you mean {close[0]}?" if close else f"see {parser.prog} --help"
                    parser.error(f"unknown argument {flag}; {hint}")

    def error(self, message: str) -> NoReturn:
        """One line, exit code 2."""
        self.exit(USAGE, f"{self.prog}: {message}\n")


def make_parser() -> Parser:
    """All commands and their options."""
    models = "\n".join(f"  {name:14s}{preset.note}" for name, preset in PRESETS.items())
    parser = Parser(
        prog="clip_train",
        description="Train CLIP from image-text shards, and use what was trained.",
        epilog=f"models:\n{models}\n\nexit codes: 0 done, 1 crash, 2 usage, 3 below a threshold, 4 input missing, "
        "130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, text: str) -> Parser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--json", action="store_true", help="print the result as JSON")
        return added

    _add_train(command("train", "train a model"))
    _add_evaluation(command)
    _add_tools(command)
    return parser


def _add_train(parser: Parser) -> None:
    for field in dataclasses.fields(TrainOptions):
        flag, text = f"--{field.name.replace('_', '-')}", field.metadata["help"].replace("%", "%%")
        kind, default = _type_of(field), field.default
        if kind is bool:
            text += f" (default {'on' if default else 'off'})"
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            choices, word = field.metadata.get("choices"), field.metadata.get("metavar", "PATH")
            text += "" if default in (None, "") else f" (default {default})"
            parser.add_argument(
                flag, type=kind, default=default, choices=choices, help=text, required=default == "",
                metavar=None if choices else word if kind is str else kind.__name__.upper(),
            )  # fmt: skip
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "by the model:\n" + "\n".join(
        f"  {name:14s}lr {r.lr:g}, batch {r.batch_size:,}, {r.epochs:g} epochs, warm-up {r.warmup} steps"
        for name, r in ((name, preset.recipe) for name, preset in PRESETS.items())
    )
    group = parser.add_argument_group("several processes (one a GPU unless given; torchrun's variables are understood)")
    group.add_argument("--processes", type=_positive, metavar="INT", help="on this host; works on a CPU too")
    group.add_argument("--nnodes", type=_positive, default=1, metavar="INT", help="hosts (default 1)")
    group.add_argument("--node-rank", type=int, default=0, metavar="INT", help="number of this host (default 0)")
    group.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where the hosts meet, on the first of them")


def _type_of(field: dataclasses.Field[Any]) -> type:
    kind = typing.get_type_hints(TrainOptions)[field.name]
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def _positive(text: str) -> int:
    """An integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _add_model(parser: Parser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH",
        help="a run, a checkpoint, OpenAI's .pt, open_clip's .pt or .safetensors, or a Hugging Face folder",
    )  # fmt: skip
    parser.add_argument("--ema", action="store_true", help="use the moving average of the weights")
    parser.add_argument("--activation", choices=("quick_gelu", "gelu"), help="of open_clip weights; files do not say")


def _add_evaluation(command: Any) -> None:
    def evaluation(name: str, text: str) -> Parser:
        parser = command(name, text)
        parser.add_argument("--data", required=True, metavar="DIR", help="images or shards to work on")
        _add_model(parser)
        parser.add_argument("--bpe", metavar="FILE", help="vocabulary; the run's own unless given")
        parser.add_argument(
            "--batch-size", type=_positive, default=128, metavar="INT", help="images at a time (default 128)"
        )
        return parser

    def labelled(parser: Parser) -> None:
        parser.add_argument("--classes", metavar="FILE", help="class names: JSON or a line each")
        parser.add_argument("--templates", metavar="FILE", help="prompt templates: JSON or a line each")
        parser.add_argument("--dataset", metavar="NAME", help="the entry of the class and template files to take")

    zero_shot = evaluation("zero-shot", "classify labelled images by prompts")
    labelled(zero_shot)
    zero_shot.add_argument("--min-top1", type=float, metavar="FLOAT", help="exit with code 3 below this accuracy")
    evaluation("retrieval", "recall of captions by images and of images by captions")
    probe = evaluation("probe", "linear probe: logistic regression on image features")
    labelled(probe)
    probe.add_argument("--test-data", metavar="DIR", help="images to test on; a fifth of --data unless given")
    probe.add_argument("--l2", type=float, metavar="FLOAT", help="this strength, instead of the paper's sweep")
    embed = evaluation("embed", "write a Parquet table of keys and image embeddings")
    embed.add_argument("--output", required=True, metavar="FILE", help="the table")
    embed.add_argument("--texts", action="store_true", help="embed the captions too")
    overlap = evaluation("overlap", "how far training images in an evaluation set change its accuracy")
    labelled(overlap)
    overlap.add_argument("--train-embeddings", required=True, metavar="FILE", help="table of `embed` on the train set")
    overlap.add_argument("--threshold", type=float, default=0.95, metavar="FLOAT",
                         help="cosine from which an image counts as seen (default 0.95)")  # fmt: skip


def _add_tools(command: Any) -> None:
    export = command("export", "write weights for another program")
    _add_model(export)
    export.add_argument("--output", required=True, metavar="PATH", help="file, or folder for huggingface")
    export.add_argument("--format", default="safetensors", choices=("safetensors", "open_clip", "huggingface"))
    tokenizer = command("tokenizer", "train a vocabulary, or show how a text is cut")
    actions = tokenizer.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    train = actions.add_parser("train", help="learn merges from captions")
    train.add_argument("--input", nargs="+", required=True, metavar="FILE",
                       help="Parquet with a text column, .txt, .txt.gz, WordNet's data.*, or shards")  # fmt: skip
    train.add_argument("--text-column", default="text", metavar="NAME", help="of Parquet files (default text)")
    train.add_argument("--merges", type=int, default=48894, metavar="INT", help="default 48894: 49,408 ids in all")
    train.add_argument("--min-count", type=int, default=2, metavar="INT", help="stop below this count (default 2)")
    train.add_argument("--output", required=True, metavar="FILE", help="the vocabulary, .txt.gz")
    encode = actions.add_parser("encode", help="ids and pieces of a text")
    encode.add_argument("text")
    for action in (train, encode):
        action.add_argument("--bpe", metavar="FILE", help="vocabulary")
        action.add_argument("--json", action="store_true", help="print the result as JSON")
    bench = command("bench", "measure tokenizer, loader, loss and training steps on this machine")
    bench.add_argument("--model", default="ViT-B-32", metavar="NAME", help="default ViT-B-32")
    bench.add_argument("--data", metavar="DIR", help="shards to read; made up unless given")
    bench.add_argument("--batch-size", type=_positive, default=64, metavar="INT", help="default 64")
    bench.add_argument("--seconds", type=float, default=5.0, metavar="FLOAT", help="for each measure (default 5)")
    bench.add_argument("--only", nargs="*", metavar="NAME", help="some of: tokenizer loader loss model step")
    bench.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    bench.add_argument("--compile", action="store_true", help="torch.compile the towers")


# --- what the commands do ---------------------------------------------------------------------------------------------


def run_command(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any] | None:
    """Does it; what comes back is the result. None: another process has printed it."""
    if options.command == "train":
        return _train(options, argv)
    if options.command == "export":
        from clip_train.convert import export, read_weights

        weights = read_weights(options.checkpoint, ema=options.ema, activation=options.activation)
        return export(weights, options.output, form=options.format)
    if options.command == "tokenizer":
        return _tokenizer(options)
    if options.command == "bench":
        from clip_train.bench import bench

        preset(options.model)  # a misspelt one is refused before anything is measured
        return bench(
            model=options.model, data=options.data, batch_size=options.batch_size, seconds=options.seconds,
            only=options.only, precision=options.precision, compiled=options.compile,
        )  # fmt: skip
    return _evaluate(options)


def _train(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any] | None:
    from clip_train.launch import launch, processes_to_start

    count = processes_to_start(options.processes, nnodes=options.nnodes)
    if count:
        launch(
            list(argv), processes=count, nnodes=options.nnodes, node_rank=options.node_rank,
            endpoint=options.rdzv_endpoint,
        )  # fmt: skip
        return None
    from clip_train.distributed import first_process
    from clip_train.training import train

    names = [field.name for field in dataclasses.fields(TrainOptions)]
    result = train(TrainOptions(**{name: getattr(options, name) for name in names}))
    if not first_process():
        return None
    if not options.json:
        result["next"] = f"python -m clip_train zero-shot --checkpoint {options.output} --data FOLDER_OF_CLASSES"
    return result


def _tokenizer(options: argparse.Namespace) -> dict[str, Any]:
    if options.action == "train":
        from clip_train.bpe import train_vocabulary

        return train_vocabulary(
            options.input, options.output, column=options.text_column, merges=options.merges,
            min_count=options.min_count,
        )  # fmt: skip
    from clip_train.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(options.bpe)
    ids = tokenizer.encode(options.text)
    return {"ids": ids, "pieces": [tokenizer.decode([number]) for number in ids], "vocabulary": tokenizer.name}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from clip_train import evaluate
    from clip_train.use import load_for_use

    model, tokenizer = load_for_use(
        options.checkpoint, ema=options.ema, activation=options.activation, bpe=options.bpe
    )
    if options.command == "retrieval":
        return evaluate.retrieval(model, tokenizer, options.data, batch_size=options.batch_size)
    if options.command == "embed":
        return evaluate.embed(
            model, tokenizer, options.data, options.output, texts=options.texts, batch_size=options.batch_size
        )
    labels = {"classes": options.classes, "dataset": options.dataset, "batch_size": options.batch_size}
    if options.command == "probe":
        from clip_train.probe import probe

        return probe(model, options.data, test_data=options.test_data, l2=options.l2, **labels)
    if options.command == "overlap":
        from clip_train.overlap import overlap

        return overlap(
            model, tokenizer, options.data, options.train_embeddings, threshold=options.threshold,
            templates=options.templates, **labels,
        )  # fmt: skip
    result = evaluate.zero_shot(model, tokenizer, options.data, templates=options.templates, **labels)
    if options.min_top1 is not None and result["top1"] < options.min_top1:
        from clip_train.errors import BelowThreshold

        raise BelowThreshold(f"top-1 is {result['top1']:.4f}, below --min-top1 {options.min_top1}")
    return result


def show(result: dict[str, Any]) -> str:
    """A result for a person, a line each."""
    width = max(map(len, result), default=0) + 2
    return "\n".join(
        f"{name:{width}s}{value:,.4f}" if isinstance(value, float) else f"{name:{width}s}{value}"
        for name, value in result.items()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = make_parser().parse(arguments)
    try:
        result = run_command(options, arguments)
    except TrainError as error:
        print(f"clip_train: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a file that cannot be read or written, a full disk: the system's words name it
        print(f"clip_train: {error}", file=sys.stderr)
        return CRASH
    except KeyboardInterrupt:
        print("clip_train: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in EXTRA:
            raise
        print(f"clip_train: this command needs {error.name}: pip install openwit[train]", file=sys.stderr)
        return CRASH
    if result is not None:
        print(json.dumps(result) if options.json else show(result))
    return DONE


__all__ = ["UsageError", "main", "make_parser"]

if __name__ == "__main__":
    sys.exit(main())
