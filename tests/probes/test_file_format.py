"""Frozen sets, users' own pairs, and the values of a ``probes`` argument."""

import json

import pytest
import torch
from helpers.tiny_tokenizers import MAKERS
from safetensors.torch import save_file

from headwatch.errors import UserError
from headwatch.probes import FAMILIES, ProbeSet, Provenance

GOOD = {
    "clean": "Compute 2+3. Answer: ",
    "corrupted": "Compute 2+5. Answer: ",
    "clean_answer": "5",
    "corrupted_answer": "7",
}
IDS = {"clean_ids": [1, 2, 3], "corrupted_ids": [1, 9, 3], "clean_answer_id": 4, "corrupted_answer_id": 5}


def write(path, *lines) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def generated(char_tokenizer) -> ProbeSet:
    return ProbeSet.generate(["addition", "recall"], char_tokenizer, n_pairs=6)


@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_a_saved_set_loads_unchanged(ending, generated, char_tokenizer, tmp_path):
    path = tmp_path / "new" / f"probes.{ending}"
    generated.save(path)
    for loaded in (ProbeSet.load(path), ProbeSet.load(str(path), char_tokenizer)):
        assert loaded.fingerprint == generated.fingerprint
        assert loaded.texts == generated.texts
        assert loaded.tokenizer_name == generated.tokenizer_name
        assert torch.equal(loaded.read_positions, generated.read_positions)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_rejected_candidates_and_read_positions_are_saved(tmp_path):
    probes = ProbeSet.from_token_ids(
        [[1, 2, 3]],
        [[1, 4, 3]],
        read_positions=[[1, 2]],
        provenance=Provenance(tokenizer_name="x", rejected=["addition: why"]),
    )
    probes.save(tmp_path / "p.safetensors")
    loaded = ProbeSet.load(tmp_path / "p.safetensors")
    assert loaded.rejected == ("addition: why",)
    assert loaded.read_positions.tolist() == [[1, 2]]
    assert loaded.fingerprint == probes.fingerprint


def test_same_set_gives_the_same_bytes(generated, tmp_path):
    generated.save(tmp_path / "a.safetensors")
    ProbeSet.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_an_edited_set_is_refused(generated, tmp_path):
    path = tmp_path / "p.json"
    generated.save(path)
    content = json.loads(path.read_text())
    content["tensors"]["answers"][0][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"damaged or edited.*fingerprint"):
        ProbeSet.load(path)
    content["tensors"]["answers"] = content["tensors"]["answers"][1:]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"damaged or edited.*answers: shape"):
        ProbeSet.load(path)


def test_other_files_are_refused_in_one_line(generated, tmp_path):
    save_file({"clean": torch.ones(2, 2)}, tmp_path / "weights.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\x00\x00")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "probes.csv").write_text("a,b")
    (tmp_path / "latin.jsonl").write_bytes(b'{"clean": "\xe9"}')
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "folder.jsonl").mkdir()
    generated.save(tmp_path / "new.json")
    newer = json.loads((tmp_path / "new.json").read_text())
    newer["headwatch_probes"]["format"] = 2
    (tmp_path / "new.json").write_text(json.dumps(newer))
    expected = {
        "weights.safetensors": "not a frozen probe set",
        "torn.safetensors": "not a frozen probe set",
        "other.json": "not a frozen probe set",
        "list.json": "not a frozen probe set",
        "probes.csv": "unknown file type.*jsonl",
        "latin.jsonl": "not UTF-8",
        "empty.jsonl": "no pairs in this file",
        "folder.jsonl": "cannot be read",
        "missing.jsonl": "no such file",
        "new.json": "format 2; this version of headwatch reads format 1",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message) as caught:
            ProbeSet.load(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"saved as \.safetensors or \.json, not \.pt"):
        generated.save(tmp_path / "p.pt")


def test_frozen_set_with_another_tokenizer(generated, digit_tokenizer, char_tokenizer, tmp_path):
    path = tmp_path / "p.safetensors"
    generated.save(path)
    with pytest.raises(UserError, match=r"other tokens for its pair 0 \('Compute ") as caught:
        ProbeSet.load(path, digit_tokenizer)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="gives other tokens"):
        ProbeSet.resolve(generated, digit_tokenizer)
    extended = MAKERS["characters"]()
    extended.add_tokens(["<one more>"])  # another vocabulary that gives the same ids for these prompts
    assert ProbeSet.load(path, extended).fingerprint == generated.fingerprint


def test_frozen_ids_without_texts_warn_with_another_tokenizer(char_tokenizer):
    probes = ProbeSet.from_token_ids([[1, 2]], [[1, 3]], provenance=Provenance(tokenizer_name="elsewhere"))
    with pytest.warns(UserWarning, match="'elsewhere'.*cannot be checked"):
        assert ProbeSet.resolve(probes, char_tokenizer) is probes


def test_own_text_pairs_are_aligned_like_the_families(tmp_path, char_tokenizer, generated):
    lines = [
        {
            "clean": clean, "corrupted": corrupted, "family": family,
            "clean_answer": char_tokenizer.decode([a]), "corrupted_answer": char_tokenizer.decode([b]),
        }
        for (clean, corrupted), (a, b), family in zip(
            generated.texts, generated.answers.tolist(), generated.families, strict=True
        )
    ]  # fmt: skip
    loaded = ProbeSet.load(write(tmp_path / "own.jsonl", *lines), char_tokenizer)
    assert loaded.fingerprint == generated.fingerprint


def test_shared_answer_start_is_input_of_both_sides(tmp_path, char_tokenizer):
    row = {**GOOD, "clean_answer": "157", "corrupted_answer": "158"}
    probes = ProbeSet.load(write(tmp_path / "own.jsonl", row, "", GOOD), char_tokenizer)
    assert probes.texts[0] == (GOOD["clean"] + "15", GOOD["corrupted"] + "15")
    assert char_tokenizer.convert_ids_to_tokens(probes.answers[0].tolist()) == ["7", "8"]
    assert probes.families == ("custom", "custom")
    assert probes.attention_mask.sum(1).tolist() == [23, 21]


def test_shared_start_of_several_digits_in_one_token(tmp_path, triple_tokenizer):
    row = {**GOOD, "clean_answer": "12745", "corrupted_answer": "12799"}
    probes = ProbeSet.load(write(tmp_path / "own.jsonl", row), triple_tokenizer)
    assert probes.texts[0] == (GOOD["clean"] + "127", GOOD["corrupted"] + "127")
    assert triple_tokenizer.convert_ids_to_tokens([*probes.clean[0, -1:].tolist(), *probes.answers[0].tolist()]) == [
        "127", "45", "99",
    ]  # fmt: skip


def test_start_token_written_by_a_chat_template_is_not_doubled(tmp_path, triple_tokenizer):
    start = triple_tokenizer.bos_token
    row = {**GOOD, "clean": start + GOOD["clean"] + "{", "corrupted": start + GOOD["corrupted"] + "{"}
    plain = {**GOOD, "clean": GOOD["clean"] + "{", "corrupted": GOOD["corrupted"] + "{"}
    probes = ProbeSet.load(write(tmp_path / "own.jsonl", row, plain), triple_tokenizer)
    assert probes.clean[0].tolist() == probes.clean[1].tolist()
    assert probes.clean[0, 0] == triple_tokenizer.bos_token_id


def test_token_ids_need_no_tokenizer(tmp_path):
    path = write(tmp_path / "ids.jsonl", IDS, {**IDS, "clean_ids": [1, 2], "corrupted_ids": [3, 2], "family": "mine"})
    probes = ProbeSet.load(path)
    assert probes.clean.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert probes.attention_mask.tolist() == [[1, 1, 1], [0, 1, 1]]
    assert probes.answers.tolist() == [[4, 5], [4, 5]]
    assert probes.families == ("custom", "mine")


def test_text_needs_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"line 1 is text, so ProbeSet.load needs the tokenizer") as caught:
        ProbeSet.load(write(tmp_path / "own.jsonl", GOOD, GOOD))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"clean": ', "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ({"clean": "a", "corupted": "b"}, "corrupted, clean_answer, corrupted_answer missing"),
        ({**GOOD, "clean_answer": 5}, "clean_answer is 5, not a text in quotes"),
        ({**GOOD, "clean": ""}, 'clean is "", not a text'),
        ({**GOOD, **IDS}, r"has both text \(clean\) and token ids \(clean_ids\)"),
        ({**GOOD, "family": 3}, "family is 3, not a name"),
        (
            {**GOOD, "corrupted": GOOD["corrupted"] + "?"},
            r"the prompts differ in token length \(clean 21, corrupted 22\)",
        ),
        ({**GOOD, "corrupted_answer": "12"}, r"the answers differ in token length \(clean 1, corrupted 2\)"),
        ({**GOOD, "corrupted_answer": "5"}, "clean and corrupted answer are the same"),
        ({**GOOD, "corrupted": GOOD["clean"]}, "clean and corrupted prompt are the same"),
        ({**IDS, "clean_ids": [1, 2]}, "clean_ids has 2 tokens and corrupted_ids 3"),
        ({**IDS, "clean_ids": [1, "x", 3]}, "clean_ids is not a list of token ids"),
        ({**IDS, "clean_ids": IDS["corrupted_ids"]}, "clean_ids and corrupted_ids are the same"),
        ({**IDS, "clean_answer_id": 5}, "clean_answer_id and corrupted_answer_id are the same"),
        ({**IDS, "clean_answer_id": True}, "clean_answer_id is true, not a token id"),
        ({**IDS, "clean_answer_id": 99999}, "token id 99999 is outside the tokenizer's"),
    ],
    ids=lambda value: value[:35] if isinstance(value, str) else "",
)
def test_a_bad_line_is_refused_with_number_reason_and_text(line, message, tmp_path, char_tokenizer):
    path = write(tmp_path / "own.jsonl", GOOD, "", line)
    with pytest.raises(UserError, match=f"own.jsonl: line 3: {message}") as caught:
        ProbeSet.load(path, char_tokenizer)
    assert "\n" not in str(caught.value)
    text = line if isinstance(line, str) else json.dumps(line)
    assert text.strip()[:40] in str(caught.value)


def test_several_bad_lines_are_reported_together(tmp_path, char_tokenizer):
    long = {**GOOD, "clean": "x" * 500}
    path = write(tmp_path / "own.jsonl", GOOD, *["no"] * 3, GOOD, *[long] * 4)
    with pytest.raises(UserError, match="7 of 9 lines refused") as caught:
        ProbeSet.load(path, char_tokenizer)
    message = str(caught.value)
    assert [f"line {number}:" in message for number in range(1, 10)] == [False] + [True] * 3 + [
        False,
        True,
        True,
        False,
        False,
    ]
    assert "and 2 more" in message
    assert max(map(len, message.splitlines())) < 250


@pytest.mark.parametrize("probes", [None, "carry", ["carry", "recall"]])
def test_resolve_families(probes, char_tokenizer):
    families = {None: ["addition", "recall"], "carry": ["carry"]}.get(
        probes if not isinstance(probes, list) else "", probes
    )
    resolved = ProbeSet.resolve(probes, char_tokenizer, n_pairs=5, seed=2)
    assert resolved.fingerprint == ProbeSet.generate(families, char_tokenizer, n_pairs=5, seed=2).fingerprint


def test_resolve_files_and_sets(generated, char_tokenizer, tmp_path):
    path = tmp_path / "p.safetensors"
    generated.save(path)
    for probes in (path, str(path), generated):
        assert ProbeSet.resolve(probes, char_tokenizer).fingerprint == generated.fingerprint
    assert ProbeSet.resolve(generated, None) is generated


def test_resolve_suggests_the_nearest_name(char_tokenizer, tmp_path):
    with pytest.raises(UserError) as caught:
        ProbeSet.resolve("additon", char_tokenizer)
    for part in ("'additon'", "neither a family", "nor a file", "did you mean 'addition'?", *FAMILIES):
        assert part in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        ProbeSet.resolve(tmp_path / "none.jsonl", char_tokenizer)
    with pytest.raises(UserError, match="probes=3: give a ProbeSet, a family name"):
        ProbeSet.resolve(3, char_tokenizer)
    with pytest.raises(UserError, match="family 'additon' is unknown"):
        ProbeSet.resolve(["additon"], char_tokenizer)
