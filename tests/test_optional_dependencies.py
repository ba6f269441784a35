"""headwatch can be imported without its optional dependencies."""

import subprocess
import sys

OPTIONAL = (
    *("trl", "wandb", "plotly", "peft", "datasets", "accelerate", "matplotlib"),
    *("trackio", "tensorboard", "wandb_workspaces"),
)


def test_import_without_optional_packages() -> None:
    script = f"import sys\nfor name in {OPTIONAL}: sys.modules[name] = None\nimport headwatch.sinks, headwatch.callback"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
