r"""The opener family: a question in the model's chat template, and the start of a reasoning or of a direct answer.

Both openers follow the same prompt and have equal token length; clean is the reasoning one, corrupted the direct one.
This is the paper's contrast of a post-trained model (arXiv 2509.25758, "Probe prompts"). There the trained model
samples one opener and the base model the other; here, before training, the base model samples both, once with and once
without the system prompt. The openers do not align word by word, so the family has its own metric, "kl" or "nll".
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from headwatch.errors import UserError
from headwatch.probes.families import OPENERS as NAME
from headwatch.probes.padding import pad_left
from headwatch.probes.pair_set import ProbeSet, Provenance
from headwatch.probes.questions import DEFAULT_QUESTIONS, load_questions
from headwatch.probes.system_prompts import OPEN_R1_PROMPT
from headwatch.probes.tokenization import MisalignedError, PairTokenizer, most_common, shorten

SOURCES = ("sampled", "fixed")
READ = {"kl": 1, "nll": 16}  # clean tokens after the openers that the metric reads
LEAST_TOKENS = 4  # of an opener: fewer do not decide how the answer continues
LONGEST_PAIR = 2048  # tokens of a pair, with the question
ROUNDS = 6  # uses of a question, with another opener each time

# The first ones are the paper's examples: "<think>Okay, so I have this problem where ..." and "To solve this problem,
# we'll ...", "We'll use Python to help us ...". The others are similar. `Openers.start` adds <think>.
REASONING = (
    "Okay, so I have this problem where I need to work out what is asked, and I want to be careful about every step.",
    "Alright, let me read this again slowly. First I should write down what is given, and then see what follows.",
    "Hmm, let me think about this. I am not sure yet which way is best, so I will try a small case before anything.",
    "Wait, before I compute anything, let me make sure that I understand what the question is really asking of me.",
    "So, I need to figure this out. Maybe I can start from what is known and check whether each step makes sense.",
)
DIRECT = (
    "To solve this problem, we'll use the given information to set up an equation and then solve it for the unknown.",
    "We'll use Python to help us with the computation. Here is the code that finds the answer to the given question.",
    "The solution is found in three steps. Step 1: write the given quantities. Step 2: apply the formula to these.",
    "Given the conditions of the problem, the answer follows directly from the formula, which we apply to the data.",
    "We are given the quantities above. Substituting them into the formula gives the result, which is stated below.",
)

Sample = Callable[[Sequence[list[int]], Sequence[str], int], list[list[int]]]
"""sample(prompts, seeds, n) -> up to n token ids that continue each prompt; see headwatch.probes.opener_sampling."""


@dataclass(frozen=True)
class Openers:
    r"""Options of the opener family.

    Attributes:
        questions: data sets on the Hub, or .jsonl files with a `problem` or `question` per line. Give as many questions
            as pairs: with fewer, a question is used again with another opener, and such pairs are not independent.
        source: "sampled" from the model when training begins, or "fixed" texts, which need no generation.
        tokens: largest number of tokens of an opener; both are truncated to the shorter one.
        metric: "kl" at the last position (as in the paper), or "nll" of the next 16 clean tokens.
        system_prompt: the training's, which asks the model to reason; both openers follow it. The direct one is sampled
            without it.
        start: text that starts every reasoning opener, because a base model rarely starts with it; "" for none.
        temperature, top_p: of the sampling (from the paper's evaluation).

    Raises:
        UserError: a value is invalid.
    """

    questions: str | Sequence[str] = DEFAULT_QUESTIONS
    source: str = "sampled"
    tokens: int = 16
    metric: str = "kl"
    system_prompt: str = OPEN_R1_PROMPT
    start: str = "<think>\n"
    temperature: float = 0.6
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if not self.sources or not all(isinstance(name, str) and name for name in self.sources):
            raise UserError(f"questions={self.questions!r}: name a data set on the Hub or a .jsonl file, or several")
        if self.source not in SOURCES:
            raise UserError(f"source={self.source!r} of the openers: use one of {', '.join(SOURCES)}")
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or not LEAST_TOKENS <= self.tokens <= 256:
            raise UserError(f"tokens={self.tokens!r} of an opener: give a whole number from {LEAST_TOKENS} to 256")
        if self.metric not in READ:
            raise UserError(f"metric={self.metric!r} of the openers: they have no answers, so use {' or '.join(READ)}")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature={self.temperature!r}, top_p={self.top_p!r} of the openers: give a temperature above 0 "
                "and a top_p above 0 and up to 1"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """`questions` as a tuple."""
        return (self.questions,) if isinstance(self.questions, str) else tuple(self.questions)

    def described(self) -> dict[str, Any]:
        """The options for the manifest; a file is given by its name, without its folder."""
        names = [Path(name).name if name.endswith(".jsonl") else name for name in self.sources]
        return {**vars(self), "questions": names}

    def make(
        self,
        tokenizer: Any,
        n_pairs: int = 64,
        seed: int = 0,
        sample: Sample | None = None,
        longest: int = LONGEST_PAIR,
        sample_direct: Sample | None = None,
    ) -> ProbeSet:
        """Make the pairs, the same for the same seed (and, if sampled, the same model).

        Args:
            tokenizer: with a chat template; it is not changed.
            n_pairs: number of pairs.
            seed: of the order of the questions and of the openers.
            sample: continues prompts; needed for source "sampled".
            longest: largest number of tokens of a pair.
            sample_direct: continues the prompts of the direct openers, where another model samples them, as in the
                paper (the trained model gives the reasoning opener, the base model the direct one).

        Returns:
            n_pairs pairs of the family "openers"; ``rejected`` lists the pairs that could not be made.

        Raises:
            UserError: the questions cannot be read, or too few pairs could be made.
        """
        if self.source == "sampled" and sample is None:
            raise UserError(
                'source="sampled" of the openers needs the model, which HeadWatchCallback has when training begins; '
                'fixed texts need none: Openers(source="fixed")'
            )
        if isinstance(n_pairs, bool) or not isinstance(n_pairs, int) or n_pairs < 1:
            raise UserError(f"n_pairs={n_pairs!r}: give a whole number of pairs of at least 1 (the default is 64)")
        return _Maker(self, PairTokenizer(tokenizer), seed, sample, longest, sample_direct).make(n_pairs)


@dataclass(frozen=True)
class _Asked:
    """A question as token ids.

    Attributes:
        question: its text.
        turn: how often it was used before.
        prompt: with the system prompt; both openers follow it.
        start: start of the reasoning opener.
        direct: the question without the system prompt, from which the direct opener is sampled.
        fixed: the (reasoning, direct) opener, for source "fixed".
    """

    question: str
    turn: int
    prompt: list[int]
    start: list[int]
    direct: list[int]
    fixed: tuple[list[int], list[int]]


@dataclass(frozen=True)
class _Pair:
    """Input token ids of both sides, and the clean tokens that follow at the last positions."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    targets: tuple[int, ...]


class _Maker:
    """Makes the pairs of one set, in batches of questions."""

    def __init__(
        self,
        openers: Openers,
        tokenizer: PairTokenizer,
        seed: int,
        sample: Sample | None,
        longest: int,
        sample_direct: Sample | None = None,
    ) -> None:
        self.openers, self.tokenizer, self.seed = openers, tokenizer, seed
        self.sample, self.sample_direct = sample, sample_direct
        self.read = READ[openers.metric]
        self.longest_prompt = longest - openers.tokens - self.read

    def make(self, n_pairs: int) -> ProbeSet:
        questions, refused = load_questions(self.openers.sources)
        rejected = [f"{NAME}: {line}" for line in refused]
        random.Random(f"headwatch {NAME} {self.seed}").shuffle(questions)
        turns = ((turn, question) for turn in range(ROUNDS) for question in questions)
        kept: dict[tuple[tuple[int, ...], tuple[int, ...]], _Pair] = {}
        reasons: list[str] = []

        def reject(error: MisalignedError, question: str) -> None:
            reasons.append(error.reason)
            rejected.append(f"{NAME}: {error}: {shorten(question, 80)}")

        while len(kept) < n_pairs and (tried := list(islice(turns, n_pairs - len(kept)))):
            asked: list[_Asked] = []
            for turn, question in tried:
                try:
                    asked.append(self._ask(question, turn))
                except MisalignedError as error:
                    reject(error, question)
            for one, (clean, corrupted) in zip(asked, self._openers(asked), strict=True):
                try:
                    pair = self._cut(one, clean, corrupted)
                    if kept.setdefault((pair.clean, pair.corrupted), pair) is not pair:
                        raise MisalignedError("repeated pair")
                except MisalignedError as error:
                    reject(error, one.question)
        if len(kept) < n_pairs:
            why = f"; most common reason: {most_common(reasons)}, e.g. {shorten(rejected[-1], 160)}" if reasons else ""
            raise UserError(
                f"family {NAME!r}: {len(kept)} of {n_pairs} pairs could be made from {len(questions)} questions "
                f"({', '.join(self.openers.sources)}){why}; give more questions, or ask for fewer pairs"
            )
        return self._set(list(kept.values()), rejected)

    # --- questions --------------------------------------------------------------------------------------------------

    def _ask(self, question: str, turn: int) -> _Asked:
        """Tokenise a question; MisalignedError where the prompt is too long or merges with an opener."""
        text = self._chat(question, self.openers.system_prompt)
        direct = self.tokenizer.encode_prompt(self._chat(question, ""))
        # The template of a reasoning model may already end in <think>.
        start = "" if text.rstrip().endswith(self.openers.start.strip()) else self.openers.start
        prompt = self.tokenizer.encode_prompt(text)
        if (length := max(len(prompt), len(direct))) > self.longest_prompt:
            raise MisalignedError("the prompt is too long", f"{length} tokens, and {self.longest_prompt} are allowed")
        fixed: tuple[list[int], list[int]] = ([], [])
        if self.openers.source == "fixed":
            rng = random.Random(self._seed("fixed", turn, question))
            fixed = (self._after(text, start + rng.choice(REASONING)), self._after(text, rng.choice(DIRECT)))
        return _Asked(question, turn, prompt, self._after(text, start), direct, fixed)

    def _seed(self, kind: str, turn: int, question: str) -> str:
        """A seed per question, so that its opener does not depend on the other questions."""
        return f"headwatch {NAME} {self.seed} {turn} {kind} {question}"

    def _chat(self, question: str, system: str) -> str:
        """The question in the model's chat template, up to the start of the answer."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        tokenizer = self.tokenizer.tokenizer
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # jinja's own, or a ValueError where there is no template
            reason = shorten(str(error), 160) or type(error).__name__
            raise UserError(
                f"family {NAME!r}: tokenizer {self.tokenizer.name!r} cannot apply its chat template ({reason}): "
                "give it a chat template, and no system_prompt where the template accepts none"
            ) from error

    def _after(self, text: str, opener: str) -> list[int]:
        """The token ids of an opener after the prompt."""
        prompt, joined = self.tokenizer.encode_prompt(text), self.tokenizer.encode_prompt(text + opener)
        if joined[: len(prompt)] != prompt:
            raise MisalignedError("prompt and opener merge when they are tokenised together", f"opener {opener!r}")
        return joined[len(prompt) :]

    # --- openers ----------------------------------------------------------------------------------------------------

    def _openers(self, asked: Sequence[_Asked]) -> list[tuple[list[int], list[int]]]:
        """(reasoning, direct) opener of each question as token ids, with the tokens after it that the metric reads."""
        if self.openers.source == "fixed":
            return [one.fixed for one in asked]
        if not asked or self.sample is None:
            return []
        prompts = [one.prompt + one.start for one in asked] + [one.direct for one in asked]
        seeds = [self._seed(kind, one.turn, one.question) for kind in ("reasoning", "direct") for one in asked]
        n, length = len(asked), self.openers.tokens + self.read
        if self.sample_direct is None:
            drawn = self.sample(prompts, seeds, length)
        else:
            drawn = self.sample(prompts[:n], seeds[:n], length) + self.sample_direct(prompts[n:], seeds[n:], length)
        found = [self._answer(ids) for ids in drawn]
        clean = [one.start + ids for one, ids in zip(asked, found[: len(asked)], strict=True)]
        return list(zip(clean, found[len(asked) :], strict=True))

    def _answer(self, ids: list[int]) -> list[int]:
        """The ids before the first special token, or the first id that the tokenizer does not have."""
        tokenizer = self.tokenizer.tokenizer
        ends = set(tokenizer.all_special_ids)
        stop = next((i for i, token in enumerate(ids) if token in ends or token >= len(tokenizer)), len(ids))
        return ids[:stop]

    def _cut(self, asked: _Asked, clean: list[int], corrupted: list[int]) -> _Pair:
        """Truncate both openers to the shorter one, and append the clean tokens that the metric reads."""
        length = min(self.openers.tokens, len(corrupted), len(clean) - self.read)
        if length < LEAST_TOKENS:
            raise MisalignedError("an opener is too short", f"reasoning {len(clean)} tokens, direct {len(corrupted)}")
        if clean[:length] == corrupted[:length]:
            raise MisalignedError("both openers are the same")
        targets = clean[length : length + self.read]  # all but the last are input of both sides

        def inputs(opener: list[int]) -> tuple[int, ...]:
            return tuple(asked.prompt + opener[:length] + targets[:-1])

        return _Pair(inputs(clean), inputs(corrupted), tuple(targets))

    # --- the set ----------------------------------------------------------------------------------------------------

    def _set(self, pairs: Sequence[_Pair], rejected: Sequence[str]) -> ProbeSet:
        clean, mask = pad_left([pair.clean for pair in pairs], self.tokenizer.pad_id)
        corrupted, _ = pad_left([pair.corrupted for pair in pairs], self.tokenizer.pad_id)
        width = len(mask[0])
        texts = [self._texts(pair) for pair in pairs]
        return ProbeSet.from_token_ids(
            clean,
            corrupted,
            mask,
            read_positions=[list(range(width - self.read, width))] * len(pairs),
            targets=[list(pair.targets) for pair in pairs],
            families=NAME,
            provenance=Provenance(texts, self.tokenizer.name, self.tokenizer.vocabulary, rejected),
        )

    def _texts(self, pair: _Pair) -> tuple[str, str]:
        """Both inputs as text; ("", "") where the tokenizer gives other ids for the text of sampled tokens."""
        tokenizer = self.tokenizer
        clean, corrupted = (
            str(tokenizer.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
            for ids in (pair.clean, pair.corrupted)
        )
        ids = tuple(tokenizer.encode_prompt(clean)), tuple(tokenizer.encode_prompt(corrupted))
        return (clean, corrupted) if ids == (pair.clean, pair.corrupted) else ("", "")
