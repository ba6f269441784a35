"""The tokenizers of helpers/tiny_tokenizers.py as fixtures, each made once."""

import pytest
from helpers.tiny_tokenizers import MAKERS
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return MAKERS[request.param]()


@pytest.fixture(scope="session")
def digit_tokenizer() -> PreTrainedTokenizerFast:
    return MAKERS["digit BPE"]()


@pytest.fixture(scope="session")
def triple_tokenizer() -> PreTrainedTokenizerFast:
    return MAKERS["3-digit BPE"]()


@pytest.fixture(scope="session")
def char_tokenizer() -> PreTrainedTokenizerFast:
    return MAKERS["characters"]()
