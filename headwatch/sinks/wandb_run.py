"""The W&B run: the existing one, or one of our own, started without prompts and without raising."""

import logging
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S = 30.0
EXIT_TIMEOUT_S = 60.0


def existing_run() -> Any:
    """The W&B run of the process, or None; wandb is not imported for this."""
    return getattr(sys.modules.get("wandb"), "run", None)


def start_run(
    project: str | None,
    name: str | None,
    config: Mapping[str, object] | None,
    run_id: str | None,
    entity: str | None = None,
) -> Any:
    """Start a run, online if there are credentials and the server answers, else offline; None if that fails too.

    Args:
        project: if None, WANDB_PROJECT or "headwatch".
        name, config: see wandb.init.
        run_id: continue this run if it exists.
        entity: of that run; None is the account's default.
    """
    try:
        import wandb
    except ImportError:
        logger.warning("headwatch: wandb='start', but wandb is not installed: pip install 'headwatch[wandb]'.")
        return None
    project = project or os.environ.get("WANDB_PROJECT", "headwatch")
    options: dict[str, Any] = {
        "project": project,
        "name": name,
        "config": dict(config or {}),
        "id": run_id,
        "entity": entity,
    }
    try:
        if _asks_for_key(wandb):
            raise RuntimeError("no API key; `wandb login` stores one")
        settings = wandb.Settings(init_timeout=INIT_TIMEOUT_S)
        if hasattr(settings, "finish_timeout"):  # wandb 0.31: also its time limit at process exit
            settings.finish_timeout = EXIT_TIMEOUT_S
        return wandb.init(settings=settings, resume="allow" if run_id else None, **options)
    except Exception as error:
        logger.warning(
            "headwatch: no online W&B run (%s); it is offline, and `wandb sync` can upload it later.",
            (str(error) or type(error).__name__).splitlines()[0],
        )
    try:
        return wandb.init(mode="offline", **options)
    except Exception as error:
        logger.warning("headwatch: no offline W&B run either (%s); training continues without one.", error)
        return None


def finish_run(run: Any, timeout: float) -> None:
    """Finish a run, or give up after `timeout` seconds: without a server wandb's finish never returns.

    Runs in a thread, because older supported versions of wandb have no time limit.
    """

    def finish() -> None:
        try:
            run.finish()
        except Exception as error:
            logger.warning("headwatch: the W&B run could not be finished (%s).", error)

    thread = threading.Thread(target=finish, name="headwatch-wandb-finish", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        logger.warning("headwatch: W&B did not finish its run within %g s; `wandb sync` can upload the rest.", timeout)


def run_info(run: Any) -> dict[str, str | None]:
    """The run's id, project, entity and url; the last two are None offline."""
    online = not getattr(run, "offline", False)
    return {
        "id": run.id,
        "project": run.project or None,
        "entity": (run.entity or None) if online else None,
        "url": (run.url or None) if online else None,
    }


def _asks_for_key(wandb: Any) -> bool:
    """Whether wandb.init would prompt for a key, which would block the training."""
    if os.environ.get("WANDB_MODE", "online") not in ("online", "run", "shared"):
        return False
    try:
        return not wandb.login(prompt=False, verify=False)
    except TypeError:  # older wandb: login has no `prompt`
        return not wandb.api.api_key
