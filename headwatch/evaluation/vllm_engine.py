"""Answers by vLLM, where it is installed. Heads are scaled in the weights, because vLLM runs no hooks of ours."""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from headwatch.errors import UserError
from headwatch.evaluation.sampling import Completion, Request, SamplingSettings


def require_vllm() -> None:
    """Refuse the engine where vLLM is not installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("vllm") is None:
        raise UserError("--engine vllm, but vLLM is not installed: pip install vllm, or leave it out")


class VllmEngine:
    """Samples batches of answers with vLLM.

    Args:
        model: a model folder or a name on the Hub.
        tokenizer: its tokenizer.
        settings: of the sampling.

    Raises:
        UserError: vLLM is not installed.
    """

    name = "vllm"

    def __init__(self, model: str, tokenizer: Any, settings: SamplingSettings) -> None:
        require_vllm()
        from vllm import LLM

        self._settings = settings
        self._llm = LLM(model=model, generation_config="vllm", seed=settings.seed)
        context = self._llm.llm_engine.model_config.max_model_len
        self._longest = min(settings.max_tokens, context)
        end = tokenizer.convert_tokens_to_ids("<|im_end|>") if "<|im_end|>" in tokenizer.get_vocab() else None
        self._ends = [] if end is None else [end]

    def sample(self, requests: Sequence[Request]) -> list[Completion]:
        """One answer per request."""
        from vllm import SamplingParams

        settings = self._settings
        parameters = [
            SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k or -1,
                max_tokens=max(1, self._longest - len(request.ids)),
                stop_token_ids=self._ends,
                seed=int(hashlib.sha256(request.seed.encode()).hexdigest()[:8], 16),
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": list(request.ids)} for request in requests]
        outputs = [output.outputs[0] for output in self._llm.generate(prompts, parameters, use_tqdm=False)]
        return [Completion(out.text, len(out.token_ids), out.finish_reason == "stop") for out in outputs]
