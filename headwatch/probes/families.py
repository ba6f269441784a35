r"""The built-in families of probe pairs, as text.

A family draws candidates without a tokenizer; tokenization.py accepts or rejects them. Prompts end in ``\boxed{``: an
answer needs no leading space, and mathematics models expect it. The family for small base models ends in ``=``.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from headwatch.errors import UserError


@dataclass(frozen=True)
class Candidate:
    """A pair as text, not yet tokenised."""

    clean: str
    corrupted: str
    clean_answer: str
    corrupted_answer: str


@dataclass(frozen=True)
class Option:
    """A whole number that sets a family's difficulty: its default and its range."""

    default: int
    lowest: int
    highest: int


@dataclass(frozen=True)
class Family:
    """A named generator of candidates: ``draw(rng, **options)`` returns one, with ``rng`` as only random source."""

    name: str
    draw: Callable[..., Candidate]
    options: Mapping[str, Option] = field(default_factory=dict)

    def settings(self, given: Mapping[str, int]) -> dict[str, int]:
        """All options of this family, with defaults; UserError for a value outside its range."""
        chosen = {name: given.get(name, option.default) for name, option in self.options.items()}
        for name, value in chosen.items():
            option = self.options[name]
            if not isinstance(value, int) or isinstance(value, bool) or not option.lowest <= value <= option.highest:
                raise UserError(
                    f"{name}={value!r}: family {self.name!r} takes a whole number "
                    f"from {option.lowest} to {option.highest}"
                )
        return chosen


def addition(rng: random.Random, *, digits: int) -> Candidate:
    """Add two numbers; corrupted: another second number. Both sums have the same number of digits."""
    while True:
        a, b, other_b = (_number(rng, digits) for _ in range(3))
        if other_b != b and len(str(a + b)) == len(str(a + other_b)):
            return _sum_candidate(a, b, other_b)


def carry(rng: random.Random, *, digits: int) -> Candidate:
    """Addition with a carry from the ones digits; corrupted: another ones digit of b, without a carry.

    The sums differ in their leading digit, so the metric is read where only the carry matters.
    """
    while True:
        a, b = _number(rng, digits), _number(rng, digits)
        if a % 10 + b % 10 < 10:
            continue
        other_b = b - b % 10 + rng.randrange(10 - a % 10)
        total, other_total = str(a + b), str(a + other_b)
        if len(total) == len(other_total) and total[0] != other_total[0]:
            return _sum_candidate(a, b, other_b)


SOLVED = ((3, 5), (12, 7), (9, 4), (16, 2))


def sums(rng: random.Random) -> Candidate:
    """Add two numbers up to 20, after four solved sums, without which small base models rarely add correctly.

    Corrupted: another second number with as many digits and as long a sum. The solved sums are never the question.
    """
    while True:
        a, b, other_b = (rng.randint(1, 20) for _ in range(3))
        equal_lengths = len(str(b)) == len(str(other_b)) and len(str(a + b)) == len(str(a + other_b))
        if b != other_b and equal_lengths and (a, b) not in SOLVED and (a, other_b) not in SOLVED:
            break
    shown = "".join(f"{x}+{y}={x + y}\n" for x, y in SOLVED)
    return Candidate(f"{shown}{a}+{b}=", f"{shown}{a}+{other_b}=", str(a + b), str(a + other_b))


NAMES = (
    "Ava",
    "Ben",
    "Emma",
    "Jack",
    "Kate",
    "Leo",
    "Lily",
    "Lucy",
    "Mark",
    "Mary",
    "Max",
    "Paul",
    "Sam",
    "Sara",
    "Tom",
)
OBJECTS = ("apples", "books", "cards", "coins", "cups", "eggs", "flowers", "pens", "shells", "stamps", "stones", "toys")


def word_problem(rng: random.Random) -> Candidate:
    """A two-step story (has, gets, gives); corrupted: another amount given away. All numbers have two digits."""
    name, receiver = rng.sample(NAMES, 2)
    things = rng.choice(OBJECTS)
    while True:
        has, gets, gives, other_gives = (_number(rng, 2) for _ in range(4))
        left, other_left = has + gets - gives, has + gets - other_gives
        if left != other_left and 10 <= left <= 99 and 10 <= other_left <= 99:
            break

    def story(given: int) -> str:
        return (
            f"{name} has {has} {things}. {name} gets {gets} more {things} and gives {given} {things} to {receiver}. "
            f"How many {things} does {name} have now? Answer: \\boxed{{"
        )

    return Candidate(story(gives), story(other_gives), str(left), str(other_left))


def linear_equation(rng: random.Random) -> Candidate:
    """Solve p x + q = r with x in 2..9; corrupted: another r with as many digits, and a solution in 2..9."""
    while True:
        p, q = rng.randint(2, 9), rng.randint(1, 30)
        x, other_x = rng.sample(range(2, 10), 2)
        r, other_r = p * x + q, p * other_x + q
        if len(str(r)) == len(str(other_r)):
            break

    def equation(right: int) -> str:
        return f"Solve {p}x + {q} = {right} for x. Answer: \\boxed{{"

    return Candidate(equation(r), equation(other_r), str(x), str(other_x))


KEYS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # without I and O, which look like 1 and 0


def recall(rng: random.Random, *, entries: int) -> Candidate:
    """Look up a key in a table: a control without arithmetic. Corrupted: another key."""
    keys = rng.sample(KEYS, entries)
    values = rng.sample(range(10), entries)
    asked, other = rng.sample(range(entries), 2)
    table = "; ".join(f"{key} = {value}" for key, value in zip(keys, values, strict=True))

    def question(key: str) -> str:
        return f"Table: {table}. The value of {key} is \\boxed{{"

    return Candidate(question(keys[asked]), question(keys[other]), str(values[asked]), str(values[other]))


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("addition", addition, {"digits": Option(default=2, lowest=1, highest=6)}),
        Family("carry", carry, {"digits": Option(default=2, lowest=2, highest=4)}),
        Family("sums", sums),
        Family("word_problem", word_problem),
        Family("linear_equation", linear_equation),
        Family("recall", recall, {"entries": Option(default=6, lowest=2, highest=10)}),
    )
}

OPENERS = "openers"  # made from questions, not drawn: see openers.py


def _number(rng: random.Random, digits: int) -> int:
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _sum_candidate(a: int, b: int, other_b: int) -> Candidate:
    def question(second: int) -> str:
        return f"Compute {a}+{second}. Answer: \\boxed{{"

    return Candidate(question(b), question(other_b), str(a + b), str(a + other_b))
