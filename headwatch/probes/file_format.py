"""Probe sets on disk: frozen sets (.safetensors, .json) and users' own pairs (.jsonl); see docs/reference/probes.md."""

import json
import os
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.probes.families import Candidate
from headwatch.probes.generate import from_pairs
from headwatch.probes.pair_set import TENSORS, ProbeSet, Provenance
from headwatch.probes.tokenization import AlignedPair, MisalignedError, PairTokenizer, shorten

FORMAT = 1
METADATA_KEY = "headwatch_probes"
TEXT_KEYS = ("clean", "corrupted", "clean_answer", "corrupted_answer")
ID_KEYS = ("clean_ids", "corrupted_ids", "clean_answer_id", "corrupted_answer_id")
SHOWN_LINES = 5  # invalid lines listed in an error


def save(probes: ProbeSet, path: str | os.PathLike[str]) -> None:
    """Write the set to a file; ``load`` returns it with the same fingerprint. Public as `ProbeSet.save`.

    Args:
        probes: the set.
        path: a .safetensors or .json file.

    Raises:
        UserError: another file type, or the file cannot be written.
    """
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
            f"{path}: a probe set is saved as .safetensors or .json, not {path.suffix or 'without a file extension'}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def load(path: str | os.PathLike[str], tokenizer: Any = None) -> ProbeSet:
    """Read a frozen set, or a user's own pairs. Public as `ProbeSet.load`.

    Args:
        path: a .safetensors or .json file written by ``save``, or a .jsonl file (see docs/reference/probes.md).
        tokenizer: needed for pairs given as text. With a frozen set, checked to give the same tokens.

    Raises:
        UserError: the file is missing, damaged or of another type; a line of a .jsonl is invalid (with its number, the
            reason and the text); or the tokenizer gives other tokens.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".json", ".jsonl"):
        raise UserError(
            f"{path}: unknown file type; probes are read from .safetensors or .json (written by ProbeSet.save) or "
            ".jsonl (your own pairs)"
        )
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
    """Check that a tokenizer gives the set's token ids; warn where the set has no texts to check.

    Nothing is checked without a tokenizer, or for a set whose tokenizer is unknown.

    Args:
        probes: the set.
        tokenizer: a Hugging Face tokenizer, or None.
        where: start of the message.

    Raises:
        UserError: it gives other token ids for a prompt.
    """
    if tokenizer is None or not (probes.vocabulary or probes.tokenizer_name):
        return
    own = PairTokenizer(tokenizer)
    if own.vocabulary == probes.vocabulary:
        return
    # Another vocabulary may still give the same ids, for example one with an added padding token.
    checked = 0
    for i in range(len(probes)):
        for text, ids in zip(probes.texts[i], (probes.clean[i], probes.corrupted[i]), strict=True):
            if not text:
                continue
            checked += 1
            if own.encode_prompt(text) != ids[probes.attention_mask[i].bool()].tolist():
                raise UserError(
                    f"{where}this probe set was made with tokenizer {probes.tokenizer_name!r}, and tokenizer "
                    f"{own.name!r} gives other tokens for its pair {i} ({shorten(text)!r}): use the tokenizer it was "
                    "made with, or generate the probes again"
                )
    if checked == 0 and (probes.vocabulary or own.name != probes.tokenizer_name):
        warnings.warn(
            f"{where}this probe set was made with tokenizer {probes.tokenizer_name!r} and is used with {own.name!r}; "
            "it has no texts, so whether the tokenizers agree cannot be checked",
            stacklevel=3,
        )


def _parse_frozen(path: Path, data: bytes) -> ProbeSet:
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Any] = safetensors.torch.load(data)
            # safetensors.torch.load drops the metadata. It is in the header, which follows its length (8 bytes).
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            metadata = json.loads(header["__metadata__"][METADATA_KEY])
        else:
            content = json.loads(data)
            tensors, metadata = content["tensors"], content[METADATA_KEY]
        version = metadata["format"]
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: not a frozen probe set of headwatch (your own pairs go into a .jsonl)") from error
    if version != FORMAT:
        raise UserError(f"{path}: probe file format {version}; this version of headwatch reads format {FORMAT}")
    damaged = f"{path}: the frozen probe set was damaged or edited"
    try:
        probes = ProbeSet.from_token_ids(
            **{name: tensors[name] for name in TENSORS},
            families=metadata["families"],
            provenance=Provenance(**{field.name: metadata[field.name] for field in fields(Provenance)}),
        )
        fingerprint = metadata["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{damaged} ({error}); generate it again") from error
    if probes.fingerprint != fingerprint:
        raise UserError(
            f"{damaged}: its fingerprint is {probes.fingerprint} and should be {str(fingerprint)[:40]}; "
            "generate it again, or write your own pairs into a .jsonl"
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
                    f"{path}: line {number} is text, so ProbeSet.load needs the tokenizer: load(path, tokenizer)"
                )
            pairs.append(_align_row(row, pair_tokenizer))
            families.append(row.get("family", "custom"))
        except (_BadLineError, MisalignedError) as error:
            problems.append(f"line {number}: {error}: {shorten(line, 100)}")
    if problems:
        raise UserError(f"{path}: {_summary(problems, len(numbered))}")
    if not pairs:
        raise UserError(f"{path}: no pairs in this file; give one JSON object per line with {', '.join(TEXT_KEYS)}")
    return from_pairs(pairs, families, pair_tokenizer)


def _summary(problems: list[str], n_lines: int) -> str:
    """One problem on one line, several as a list that ends after SHOWN_LINES."""
    if len(problems) == 1:
        return problems[0]
    more = f"\n  and {len(problems) - SHOWN_LINES} more" if len(problems) > SHOWN_LINES else ""
    shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN_LINES])
    return f"{len(problems)} of {n_lines} lines refused:{shown}{more}"


class _BadLineError(Exception):
    """A line of a user's file is not a valid pair."""


def _parse_row(line: str) -> dict[str, Any]:
    """The validated object of a line: either TEXT_KEYS or ID_KEYS, and optionally a family."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise _BadLineError("not a JSON object")
    texts, ids = [key for key in TEXT_KEYS if key in row], [key for key in ID_KEYS if key in row]
    if texts and ids:
        raise _BadLineError(f"has both text ({texts[0]}) and token ids ({ids[0]}); give one of them")
    required = ID_KEYS if ids else TEXT_KEYS
    missing = [key for key in required if key not in row]
    if missing:
        raise _BadLineError(f"{', '.join(missing)} missing")
    for key in required:
        if key in TEXT_KEYS and not (isinstance(row[key], str) and row[key]):
            raise _BadLineError(f"{key} is {json.dumps(row[key])}, not a text in quotes")
        if key.endswith("_ids") and not (isinstance(row[key], list) and row[key] and all(map(_is_id, row[key]))):
            raise _BadLineError(f"{key} is not a list of token ids")
        if key.endswith("_id") and not _is_id(row[key]):
            raise _BadLineError(f"{key} is {json.dumps(row[key])}, not a token id")
    family = row.get("family", "custom")
    if not isinstance(family, str) or not family:
        raise _BadLineError(f"family is {json.dumps(family)}, not a name in quotes")
    return row


def _align_row(row: dict[str, Any], tokenizer: PairTokenizer | None) -> AlignedPair:
    """The pair of a validated row."""
    if "clean" in row:
        assert tokenizer is not None  # _parse_lines refuses text without one
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
            raise _BadLineError(f"token id {largest} is outside the tokenizer's {len(tokenizer.tokenizer)} tokens")
    return AlignedPair(clean, corrupted, (clean_answer, corrupted_answer), ("", ""))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
