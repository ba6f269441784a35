"""Seeded mutations of JSON values, texts and bytes."""

import copy
import json
import random
from typing import Any

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**70, -(2**63), 1e308, -1e308, 0.5, float("nan"), float("inf")),
    *("", "x", "0", "nan", "a\nb", "\x00", "\ud800", "é" * 300, "../../etc/passwd", "<script>alert(1)</script>"),
    *([], {}, [[]], [None], [1, "a"], {"step": 1}, {"": None}, [[1, 2], [3]], ["addition"] * 3),
]
FRAGMENTS = [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b"]", b'"', b",", b"\n", b"null", b"NaN", b"1e999"]


def mutated_json(value: Any, rng: random.Random) -> bytes:
    """A JSON document with a few of its values replaced, removed, repeated or renamed; at times broken as text too."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _mutate(value, rng)
    text = json.dumps(value)
    chance = rng.random()
    if chance < 0.04:
        text = text.replace("0", "9" * 5000, 1)
    elif chance < 0.08:
        text = text.replace("[", "[" * 3000, 1) + "]" * 3000
    data = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(data, rng) if rng.random() < 0.25 else data


def mutated_lines(rows: list[Any], rng: random.Random) -> bytes:
    """JSON lines with some of them mutated, doubled, moved or cut."""
    lines = [json.dumps(row).encode() for row in rows]
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(lines))
        kind = rng.random()
        if kind < 0.6:
            lines[place] = mutated_json(rows[place % len(rows)], rng)
        elif kind < 0.7:
            lines.insert(rng.randrange(len(lines) + 1), lines[place])
        elif kind < 0.8:
            lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
        elif kind < 0.9:
            rng.shuffle(lines)
        else:
            lines[place] = mutated_bytes(lines[place], rng)
    return b"\n".join(lines) + (b"\n" if rng.random() < 0.7 else b"")


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some of them changed, cut, inserted or repeated."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(changed) + 1)
        kind = rng.random()
        if kind < 0.3 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind < 0.5:
            del changed[place : place + rng.choice((1, 4, 50))]
        elif kind < 0.6:
            del changed[place:]
        elif kind < 0.85:
            changed[place:place] = rng.choice(FRAGMENTS)
        else:
            changed[place:place] = changed[max(place - 20, 0) : place]
    return bytes(changed)


def mutated_words(words: list[str], pool: list[str], rng: random.Random) -> list[str]:
    """A command line with words replaced, removed, inserted, doubled or damaged."""
    words = list(words)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(words) + 1)
        kind = rng.random()
        if kind < 0.3:
            words[place:place] = [rng.choice(pool)]
        elif kind < 0.5 and place < len(words):
            words[place] = rng.choice(pool)
        elif kind < 0.7:
            del words[place : place + 1]
        elif kind < 0.8 and place < len(words):
            words[place:place] = [words[place]]
        elif place < len(words):
            damaged = mutated_bytes(words[place].encode("utf-8", "surrogatepass"), rng)
            words[place] = damaged.decode("utf-8", "surrogateescape")
    return words


def _mutate(value: Any, rng: random.Random) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        return rng.choice(VALUES)
    parent, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.65:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind < 0.8:
        del parent[key]
    elif kind < 0.9:
        other, name = rng.choice(places)
        parent[key] = copy.deepcopy(other[name]) if not _contains(other[name], parent) else None
    elif isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    else:
        parent.insert(key, copy.deepcopy(rng.choice(VALUES)))
    return value


def _places(value: Any) -> Any:
    """(container, key) of every value inside."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(entries):
        yield value, key
        yield from _places(entry)


def _contains(value: Any, container: Any) -> bool:
    return value is container or any(_contains(entry[key], container) for entry, key in _places(value))
