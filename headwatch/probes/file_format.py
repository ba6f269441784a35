"""Probe sets on disk: the frozen format (.safetensors, .json) and your own pairs (.jsonl); docs/reference/probes.md."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.probes.families import Candidate
from headwatch.probes.generate import pad
from headwatch.probes.pair_set import TENSORS, ProbeSet
from headwatch.probes.tokenization import AlignedPair, MisalignedError, PairTokenizer, shorten

FORMAT = 1
METADATA_KEY = "headwatch_probes"
TEXT_KEYS = ("clean", "corrupted", "clean_answer", "corrupted_answer")
ID_KEYS = ("clean_ids", "corrupted_ids", "clean_answer_id", "corrupted_answer_id")
SHOWN_LINES = 5


def save(probes: ProbeSet, path: str | os.PathLike[str]) -> None:
    """Freeze the set in a file (.safetensors or .json); ``load`` gives it back with the same fingerprint."""
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "fingerprint": probes.fingerprint,
        "tokenizer_name": probes.tokenizer_name,
        "vocabulary": probes.vocabulary,
        "families": probes.families,
        "texts": probes.texts,
        "rejected": probes.rejected,
    }
    tensors = {name: getattr(probes, name).contiguous() for name in TENSORS}
    if path.suffix == ".safetensors":
        data = safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(metadata)})
    elif path.suffix == ".json":
        lists = {name: tensor.tolist() for name, tensor in tensors.items()}
        data = json.dumps({METADATA_KEY: metadata, "tensors": lists}).encode()
    else:
        raise UserError(
            f"{path}: a probe set is saved as .safetensors or .json, not {path.suffix or 'without an ending'}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def load(path: str | os.PathLike[str], tokenizer: Any = None) -> ProbeSet:
    """A frozen set (.safetensors or .json, from ``save``) or your own pairs (.jsonl; text needs the tokenizer).

    A tokenizer given with a frozen set must read its prompts as the tokens that were frozen.

    Raises:
        UserError: the file is missing, damaged or of another kind, or a line of a JSONL is bad (with its number, what
            is wrong and the text). The formats are in docs/reference/probes.md.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".json", ".jsonl"):
        kinds = ".safetensors or .json (saved by ProbeSet.save) or .jsonl (your own pairs)"
        raise UserError(f"{path}: cannot tell what this file holds; probes are read from {kinds}")
    try:
        data = path.read_bytes()
    except OSError as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {problem}; give the path of a probe file") from error
    if path.suffix == ".jsonl":
        return _parse_lines(path, data, tokenizer)
    probes = _parse_frozen(path, data)
    if tokenizer is not None:
        check_tokenizer(probes, tokenizer, where=f"{path}: ")
    return probes


def check_tokenizer(probes: ProbeSet, tokenizer: Any, where: str = "") -> None:
    """UserError if the tokenizer reads the set's prompts as other tokens; a warning where that cannot be told.

    A set whose tokenizer is unknown (token ids of your own) is taken at its word, and so is a missing tokenizer.
    """
    if tokenizer is None or not (probes.vocabulary or probes.tokenizer_name):
        return
    own = PairTokenizer(tokenizer)
    if own.vocabulary == probes.vocabulary:
        return
    # Another vocabulary may still read these prompts alike, for example one with an added padding token.
    checked = 0
    for i in range(len(probes)):
        for text, ids in zip(probes.texts[i], (probes.clean[i], probes.corrupted[i]), strict=True):
            if not text:
                continue
            checked += 1
            if own.encode_prompt(text) != ids[probes.attention_mask[i].bool()].tolist():
                raise UserError(
                    f"{where}this probe set was frozen with tokenizer {probes.tokenizer_name!r}, and tokenizer "
                    f"{own.name!r} reads its pair {i} ({shorten(text)!r}) as other tokens: give the tokenizer it was "
                    "made with, or generate the probes anew"
                )
    if checked == 0 and (probes.vocabulary or own.name != probes.tokenizer_name):
        warnings.warn(
            f"{where}this probe set was frozen with tokenizer {probes.tokenizer_name!r} and is used with {own.name!r}; "
            "it has no texts, so whether they agree cannot be checked",
            stacklevel=3,
        )


def _parse_frozen(path: Path, data: bytes) -> ProbeSet:
    stranger = UserError(f"{path}: not a frozen probe set of headwatch (your own pairs go into a .jsonl)")
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Any] = safetensors.torch.load(data)
            # safetensors.torch.load drops the metadata: it stands in the header, behind its length in 8 bytes.
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            metadata = json.loads(header["__metadata__"][METADATA_KEY])
        else:
            content = json.loads(data)
            tensors, metadata = content["tensors"], content[METADATA_KEY]
        version = metadata["format"]
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise stranger from error
    if version != FORMAT:
        raise UserError(f"{path}: probe file format {version}; this version of headwatch reads format {FORMAT}")
    damaged = f"{path}: the frozen probe set was damaged or edited"
    try:
        probes = ProbeSet.from_token_ids(
            **{name: tensors[name] for name in TENSORS},
            **{name: metadata[name] for name in ("families", "texts", "tokenizer_name", "vocabulary", "rejected")},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{damaged} ({error}); generate it anew") from error
    if probes.fingerprint != metadata["fingerprint"]:
        raise UserError(
            f"{damaged}: its fingerprint is {probes.fingerprint} and should be {metadata['fingerprint']}; "
            "generate it anew, or write your own pairs into a .jsonl"
        )
    return probes


def _parse_lines(path: Path, data: bytes, tokenizer: Any) -> ProbeSet:
    try:
        lines = data.decode("utf-8-sig").split("\n")  # not splitlines: a prompt may hold other line separators
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    pair_tokenizer = None if tokenizer is None else PairTokenizer(tokenizer)
    pairs: list[AlignedPair] = []
    families: list[str] = []
    problems: list[str] = []
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, line in numbered:
        try:
            row = _parse_row(line)
            if "clean" in row and pair_tokenizer is None:
                raise UserError(
                    f"{path}: line {number} holds text, so ProbeSet.load needs the tokenizer: load(path, tokenizer)"
                )
            pairs.append(_align_row(row, pair_tokenizer))
            families.append(row.get("family", "custom"))
        except (_BadLineError, MisalignedError) as error:
            problems.append(f"line {number}: {error}: {shorten(line, 100)}")
    if problems:
        more = f"\n  and {len(problems) - SHOWN_LINES} more" if len(problems) > SHOWN_LINES else ""
        if len(problems) == 1:
            raise UserError(f"{path}: {problems[0]}")
        shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN_LINES])
        raise UserError(f"{path}: {len(problems)} of {len(numbered)} lines refused:{shown}{more}")
    if not pairs:
        raise UserError(f"{path}: no pairs in this file; give one JSON object a line with {', '.join(TEXT_KEYS)}")
    return pad(pairs, families, pair_tokenizer)


class _BadLineError(Exception):
    """A line of a user's file that is no pair."""


def _parse_row(line: str) -> dict[str, Any]:
    """The line as a checked object that holds either TEXT_KEYS or ID_KEYS, and maybe a family."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _BadLineError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise _BadLineError("not a JSON object")
    texts, ids = [key for key in TEXT_KEYS if key in row], [key for key in ID_KEYS if key in row]
    if texts and ids:
        raise _BadLineError(f"holds both text ({texts[0]}) and token ids ({ids[0]}); give one of them")
    wanted = ID_KEYS if ids else TEXT_KEYS
    missing = [key for key in wanted if key not in row]
    if missing:
        raise _BadLineError(f"{', '.join(missing)} missing")
    for key in wanted:
        if key in TEXT_KEYS and not (isinstance(row[key], str) and row[key]):
            raise _BadLineError(f"{key} is {json.dumps(row[key])}, not text in quotes")
        if key.endswith("_ids") and not (isinstance(row[key], list) and row[key] and all(map(_is_id, row[key]))):
            raise _BadLineError(f"{key} is not a list of token ids")
        if key.endswith("_id") and not _is_id(row[key]):
            raise _BadLineError(f"{key} is {json.dumps(row[key])}, not a token id")
    family = row.get("family", "custom")
    if not isinstance(family, str) or not family:
        raise _BadLineError(f"family is {json.dumps(family)}, not a name in quotes")
    return row


def _align_row(row: dict[str, Any], tokenizer: PairTokenizer | None) -> AlignedPair:
    if "clean" in row:
        assert tokenizer is not None  # the caller refuses text without one
        return tokenizer.align(Candidate(*(row[key] for key in TEXT_KEYS)))
    clean, corrupted, clean_answer, corrupted_answer = (row[key] for key in ID_KEYS)
    if len(clean) != len(corrupted):
        raise _BadLineError(f"clean_ids has {len(clean)} tokens and corrupted_ids {len(corrupted)}")
    if clean == corrupted:
        raise _BadLineError("clean_ids and corrupted_ids are the same")
    if clean_answer == corrupted_answer:
        raise _BadLineError("clean_answer_id and corrupted_answer_id are the same")
    if tokenizer is not None:
        largest = max(*clean, *corrupted, clean_answer, corrupted_answer)
        if largest >= len(tokenizer.tokenizer):
            raise _BadLineError(f"token id {largest} is beyond the tokenizer's {len(tokenizer.tokenizer)} tokens")
    return AlignedPair(clean, corrupted, (clean_answer, corrupted_answer), ("", ""))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
