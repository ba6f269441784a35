"""A model whose weights are written by hand: two layers of attention that complete "... a b ... a" by "b".

GPT-2 with one-hot embeddings. The residual stream holds the token (V entries), the token before it (V), the prediction
(V) and the position (P).
  L0.H0  attends to the position before and copies its token into "the token before": a previous-token head.
  L1.H0  attends where "the token before" is the current token, and copies that token into "the prediction": induction.
All other heads and both MLPs have small random weights. The output matrix reads "the prediction".
"""

from typing import Any

import torch
import transformers

from headwatch import ProbeSet

V, P, HEADS, HEAD_DIM = 12, 12, 4, 12
WIDTH = 3 * V + P
TOKEN, BEFORE, PREDICTION, POSITION = (slice(i * V, (i + 1) * V) for i in range(4))
PREVIOUS, INDUCTION = (0, 0), (1, 0)
SHARP = 4.0  # attention scores of the two heads, before the softmax, are about SHARP squared


def induction_model(noise: float = 0.02, seed: int = 0) -> Any:
    """The model, float64."""
    config = transformers.GPT2Config(
        vocab_size=V,
        n_positions=P,
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        n_inner=WIDTH,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                parameter.copy_(noise * torch.randn(parameter.shape, generator=generator))
        eye = torch.eye(V, dtype=torch.float64)
        body = model.transformer
        body.wte.weight.zero_()[:, TOKEN] = eye
        body.wpe.weight.zero_()[:, POSITION] = eye
        model.lm_head.weight.zero_()[:, PREDICTION] = 3.0 * eye
        first, second = body.h[0].attn, body.h[1].attn
        query, key, value = (slice(i * WIDTH, i * WIDTH + HEAD_DIM) for i in range(3))  # of head 0 in c_attn's columns
        for attention in (first, second):
            for columns in (query, key, value):
                attention.c_attn.weight[:, columns] = 0.0
            attention.c_proj.weight[:HEAD_DIM] = 0.0
        # Position i asks for position i - 1.
        first.c_attn.weight[POSITION, query] = SHARP * torch.roll(eye, -1, 1)
        first.c_attn.weight[POSITION, key] = SHARP * eye
        first.c_attn.weight[TOKEN, value] = eye
        first.c_proj.weight[:HEAD_DIM, BEFORE] = eye
        second.c_attn.weight[TOKEN, query] = SHARP * eye
        second.c_attn.weight[BEFORE, key] = SHARP * eye
        second.c_attn.weight[TOKEN, value] = eye
        second.c_proj.weight[:HEAD_DIM, PREDICTION] = eye
    return model


def induction_probes(n: int = 16, seed: int = 0) -> ProbeSet:
    """Pairs "x a b y a": the answer is b; the corrupted prompt has another token for b."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted, answers = [], [], []
    for _ in range(n):
        a, b, other, *fill = torch.randperm(V, generator=generator).tolist()
        prompt = [fill[0], fill[1], a, b, fill[2], fill[3], a]
        clean.append(prompt)
        corrupted.append([other if token == b else token for token in prompt])
        answers.append([b, other])
    return ProbeSet.from_token_ids(clean, corrupted, answers=answers, families="induction")
