"""python -m clip_train train | zero-shot | evaluate | retrieval | probe | overlap | embed | export | tokenizer | bench

Reads the command line, runs one command (commands.py), and prints its result: as JSON with --json, else for a person.
Exit codes: 0 done, 1 crash, 2 usage, 3 below a threshold, 4 input missing, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from clip_train.commandline import parse
from clip_train.commands import PrintOptions
from clip_train.errors import CRASH, DONE, INTERRUPTED, PeerLost, TrainError
from clip_train.launch import tell_launcher
from clip_train.leaving import leave

EXTRA = ("torch", "numpy", "pyarrow", "safetensors", "cv2", "PIL")  # packages of openwit[train]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    Args:
        argv: the words behind the program's name; those of the process unless given.
    """
    try:
        try:
            call = parse(argv)
        except SystemExit as done:  # argparse has printed the help
            return int(done.code or DONE)
        result = call.run()
    except TrainError as error:
        return _fail(str(error), error.exit_code, peer=isinstance(error, PeerLost))
    except OSError as error:  # a file that cannot be read or written, a full disk: the system's words name it
        return _fail(str(error), CRASH)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in EXTRA:
            raise
        return _fail(f"this command needs {error.name}: pip install openwit[train]", CRASH)
    if result is not None:
        print(result if isinstance(result, str) else json.dumps(result) if call[PrintOptions].json else show(result))
    return DONE


def command() -> NoReturn:
    """`main` as a process."""
    leave(main())


def _fail(message: str, code: int, *, peer: bool = False) -> int:
    if not tell_launcher(message, peer=peer):
        print(f"clip_train: {message}", file=sys.stderr)
    return code


def show(result: dict[str, Any]) -> str:
    """A result for a person, a line each."""
    width = max(map(len, result), default=0) + 2
    return "\n".join(
        f"{name:{width}s}{value:,.4f}" if isinstance(value, float) else f"{name:{width}s}{value}"
        for name, value in result.items()
    )


if __name__ == "__main__":
    command()
