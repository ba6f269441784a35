"""Adapters of other frameworks, called by their documented signatures; the frameworks themselves are not installed.

Axolotl 067b021 (July 2026), ms-swift 3602360 (August 2026), LLaMA-Factory ff6d4d1 (August 2026).
"""

import importlib
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers.tiny_trainers import same_weights, save_tiny_model, sft_trainer, trained_weights

from headwatch import HeadWatchCallback, RunFolder, UserError
from headwatch.adapters import ms_swift
from headwatch.adapters.axolotl import HeadWatchPlugin

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = {"probes": "addition", "n_pairs": 8, "every": 2, "evidence": {"q": 0.05}}


class DictDefault(dict[str, Any]):
    """Axolotl's configuration: a missing name is None, nested mappings are of the same class."""

    def __missing__(self, key: str) -> None:
        return None

    __getattr__ = dict.__getitem__


def load_plugin(plugin_name: str) -> Any:
    """axolotl.integrations.base.load_plugin."""
    module_name, class_name = plugin_name.rsplit(".", 1)
    return getattr(importlib.import_module(module_name), class_name)()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_axolotl_plugin_in_a_training(model: Path, tmp_path: Path) -> None:
    """What Axolotl does with a plugin: load, register, create the trainer, add the callbacks, train."""
    plugin = load_plugin("headwatch.adapters.axolotl.HeadWatchPlugin")
    accepted = plugin.get_input_args()
    module, _, name = accepted.rpartition(".")
    fields = getattr(importlib.import_module(module), name)(headwatch=OPTIONS, plugins=[])
    cfg = DictDefault(fields.model_dump(), plugins=["headwatch.adapters.axolotl.HeadWatchPlugin"])
    plugin.register(cfg)
    trainer = sft_trainer(model, tmp_path / "watched")
    for callback in plugin.add_callbacks_post_trainer(cfg, trainer):
        trainer.add_callback(callback)
    trainer.train()
    plain = sft_trainer(model, tmp_path / "plain")
    plain.train()
    assert same_weights(trained_weights(trainer), trained_weights(plain))
    run = RunFolder.open(tmp_path / "watched")
    assert run.steps == [0, 2, 4, 5]
    assert run.manifest["settings"]["evidence"]["q"] == 0.05


def test_axolotl_plugin_without_options_and_with_wrong_ones() -> None:
    plugin = HeadWatchPlugin()
    (callback,) = plugin.add_callbacks_post_trainer(DictDefault(), SimpleNamespace(processing_class=None))
    assert callback.settings == HeadWatchCallback().settings
    with pytest.raises(UserError, match=r"headwatch.evry: no such option; the nearest is headwatch.every"):
        plugin.register(DictDefault(headwatch=DictDefault(evry=5)))


def test_ms_swift_registration_in_a_training(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ms-swift does: run the plugin file, then `callbacks_map[name](args, trainer)` for each of --callbacks."""
    swift, callbacks = ModuleType("swift"), ModuleType("swift.callbacks")
    callbacks.callbacks_map = {"early_stop": object}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "swift", swift)
    monkeypatch.setitem(sys.modules, "swift.callbacks", callbacks)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(f"from headwatch.adapters.ms_swift import register\nregister(**{OPTIONS!r})\n")
    runpy.run_path(str(plugin))
    trainer = sft_trainer(model, tmp_path / "out")
    template = SimpleNamespace(template=SimpleNamespace(tokenizer=trainer.processing_class))
    trainer.add_callback(callbacks.callbacks_map["headwatch"](trainer.args, template))  # type: ignore[attr-defined]
    trainer.train()
    assert RunFolder.open(tmp_path / "out").steps == [0, 2, 4, 5]


def test_ms_swift_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"headwatch.every=0"):
        ms_swift.register(callbacks_map={}, every=0)
    monkeypatch.setitem(sys.modules, "swift", None)
    with pytest.raises(UserError, match="needs ms-swift"):
        ms_swift.register()


def test_llama_factory_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def run_exp(args: dict[str, Any] | None = None, callbacks: list[Any] | None = None) -> None:
        given.extend(callbacks or [])

    tuner = ModuleType("llamafactory.train.tuner")
    tuner.run_exp = run_exp  # type: ignore[attr-defined]
    for name in ("llamafactory", "llamafactory.train"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "llamafactory.train.tuner", tuner)
    runpy.run_path(str(EXAMPLES / "llama_factory.py"), run_name="__main__")
    assert [type(callback) for callback in given] == [HeadWatchCallback]
