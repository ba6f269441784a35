"""The command line: parse the arguments and run one of headwatch/commands."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from headwatch.commands import circuit, demo, doctor, follow, report, roles, score, train, workspace
from headwatch.errors import UserError
from headwatch.version import __version__

COMMANDS = (demo, train, score, circuit, roles, doctor, follow, report, workspace)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 2 after a user's mistake or where a path cannot be used (one line on standard error), 130 after an
        interrupt.
    """
    parser = _parser()
    try:
        arguments, rest = parser.parse_known_args(argv)
        if rest and not hasattr(arguments, "options"):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.options = rest  # options of a recipe, parsed by the launcher
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


if __name__ == "__main__":
    sys.exit(main())
