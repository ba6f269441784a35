"""What headwatch raises when the caller can mend it: one line that names the option, the value and the fix."""


class UserError(ValueError):
    """Bad input. The message is one clear line; the command line prints it and exits with 2."""


class UnsupportedModelError(UserError):
    """The model's residual stream could not be taken apart; the message names what was looked for."""


class StartError(RuntimeError):
    """Probing cannot start for a reason that is no mistake in an option."""


class NonFiniteError(RuntimeError):
    """NaN or infinity where a score needs a number: the training has diverged, and no option mends it."""
