"""One writer per record: a lock that ends with the process, whichever way it ends."""

import logging
import weakref
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from headwatch.errors import StartError, UserError

logger = logging.getLogger(__name__)

LOCK = ".owner.lock"
WAIT_SECONDS = 10.0  # workers of a killed training keep its lock until they end

_CLAIMS: dict[Path, "Claim"] = {}  # of this process


class Claim:
    """The right to write the record in one folder. Make it with `claim`."""

    def __init__(self, folder: Path, training: Any) -> None:
        self.folder = folder.resolve()
        self._training = weakref.ref(training)
        self._lock = FileLock(self.folder / LOCK)

    @property
    def is_held(self) -> bool:
        """Whether this claim still holds; a later training of this process may have taken over."""
        return _CLAIMS.get(self.folder) is self

    def belongs_to(self, training: Any) -> bool:
        """Whether the claim was made for this training."""
        return self._training() is training

    def release(self) -> None:
        """Give the right up."""
        if self.is_held:
            del _CLAIMS[self.folder]
        self._lock.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            raise StartError(
                f"another process writes the record in {self.folder}: give HeadWatchCallback(folder=...) a folder "
                "of its own, or end that process"
            ) from None
        except PermissionError:
            raise
        except (NotImplementedError, OSError) as error:
            logger.warning("headwatch: %s cannot be locked (%s): a second writer is not noticed", self.folder, error)
        _CLAIMS[self.folder] = self


def claim(folder: Path, training: Any) -> Claim:
    """Claim the record in a folder for one training; an earlier training of this process has to give it up.

    Args:
        folder: the run folder; created if it does not exist.
        training: the trainer's state, which is the same for all callbacks of one training and differs between
            trainings.

    Raises:
        UserError: another callback of the same training writes there.
        StartError: another process writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _CLAIMS.get(folder.resolve())
    if earlier is not None:
        if earlier.belongs_to(training):
            raise UserError(
                f"folder={str(folder)!r}: another HeadWatchCallback of this trainer writes there; give each callback "
                "its own folder"
            )
        earlier.release()
    claimed = Claim(folder, training)
    claimed._acquire()
    return claimed


def is_claimed(folder: Path) -> bool | None:
    """Whether a process writes the record in a folder; None where that cannot be known."""
    path = folder.resolve()
    if path in _CLAIMS:
        return True
    if not (path / LOCK).is_file():
        return None
    lock = FileLock(path / LOCK)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (NotImplementedError, OSError):  # a file system without locks, or a folder that may only be read
        return None
