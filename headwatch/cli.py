"""The command line: parse the arguments and run one of headwatch/commands."""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from headwatch.commands import (
    ablate,
    circuit,
    compare,
    demo,
    doctor,
    evaluate,
    follow,
    report,
    roles,
    score,
    train,
    workspace,
)
from headwatch.commands.loading import use_local_files_without_network
from headwatch.errors import UserError
from headwatch.version import __version__

COMMANDS = (demo, train, score, circuit, roles, doctor, compare, follow, evaluate, ablate, report, workspace)

WITHOUT_HUB = (demo.run, report.run, workspace.run)  # these read nothing from the Hub

# Loggers of dependencies that warn on import about what is not used here (a faster 4-bit kernel for CPUs), and one that
# prints on standard output that there is no GPU; it sets its own level, so it is filtered.
NOISY = ("bitsandbytes.backends.cpu.ops",)
NO_GPU = ("DeepSpeed", "Setting accelerator to CPU")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 2 after a user's mistake or where a path cannot be used (one line on standard error), 130 after an
        interrupt.
    """
    # TRL's configs set the old name of this option themselves.
    warnings.filterwarnings("ignore", message=r".*gradient_checkpointing.*deprecated", category=FutureWarning)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger(NO_GPU[0]).addFilter(_is_worth_a_line)
    parser = _parser()
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        _check_words(words)
        arguments, rest = parser.parse_known_args(words)
        if rest and not hasattr(arguments, "options"):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.options = rest  # options of a recipe, parsed by the launcher
        if arguments.run not in WITHOUT_HUB:
            use_local_files_without_network()
        return arguments.run(arguments)
    except UserError as error:
        print(f"headwatch: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a path that cannot be used, a full disk
        what = f" ({str(error.filename)[:200]})" if error.filename else ""
        print(f"headwatch: {error.strerror or error}{what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("headwatch: interrupted", file=sys.stderr)
        return 130


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NO_GPU[1])


def _check_words(words: Sequence[str]) -> None:
    """Refuse what no file name or option can hold: null bytes, and bytes that are not UTF-8."""
    for word in words:
        if "\0" in word or word != word.encode("utf-8", "replace").decode():
            raise UserError(f"argument {ascii(word)[:100]} is not text in UTF-8")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="headwatch",
        description="Watch which attention heads your post-training creates, keeps and throws away.",
    )
    parser.add_argument("--version", action="version", version=f"headwatch {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
