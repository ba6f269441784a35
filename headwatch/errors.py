"""Exceptions of headwatch."""


class UserError(ValueError):
    """Invalid input. The message is one line: option, value and fix. The commands print it and exit with 2."""


class UnsupportedModelError(UserError):
    """The model's architecture is not supported. The message names the modules that were expected."""


class StartError(RuntimeError):
    """Probing cannot start for a reason that is no mistake in an option."""


class NonFiniteError(RuntimeError):
    """NaN or infinity in the scores: the training has diverged, and no option of headwatch fixes that."""


def type_and_message(error: BaseException, most: int = 300) -> str:
    """An error's type and message, one line of at most `most` characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:most]
