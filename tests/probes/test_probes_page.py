"""The examples in docs/reference/probes.md."""

import re
from pathlib import Path

from headwatch.probes import FAMILIES, ProbeSet

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "probes.md").read_text(encoding="utf-8")


def test_examples_are_the_first_pairs_of_seed_0(char_tokenizer):
    (block,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    lines = block.splitlines()
    assert lines[::3] == list(FAMILIES)
    for family, clean, corrupted in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        probes = ProbeSet.generate(family, char_tokenizer, n_pairs=1)
        for side, line in enumerate((clean, corrupted)):
            prompt, answer = re.fullmatch(r"  (.*[{=]) +(\d+)", line).groups()
            prompt = prompt.replace("\\n", "\n")
            text = probes.texts[0][side]
            assert text == prompt + answer[: len(text) - len(prompt)]
            assert char_tokenizer.decode(probes.answers[0, [side]]) == answer[len(text) - len(prompt)]


def test_options_are_those_of_the_families():
    for family, described in re.findall(r"^\| `(\w+)` \| (.*?) ?\|", PAGE, re.MULTILINE):
        options = {f"`{k}` ({o.default}; {o.lowest} to {o.highest})" for k, o in FAMILIES[family].options.items()}
        assert {described} - {""} == options


def test_the_file_example_loads(tmp_path, digit_tokenizer):
    (block,) = re.findall(r"```jsonl\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "own.jsonl").write_text(block, encoding="utf-8")
    assert ProbeSet.load(tmp_path / "own.jsonl", digit_tokenizer).families == ("subtraction", "custom")
