"""Work that the pass skips: repeated runs, unread logits and MLP columns; batches within the memory budget."""

import itertools
import math
import sys

import pytest
import torch
from helpers.tiny_models import largest_error, random_openers, random_pairs, tiny_model
from peft import LoraConfig, get_peft_model

from headwatch import Anatomy, ProbeSet, UserError, score_edges, score_heads
from headwatch.attribution import ScoringSettings
from headwatch.attribution import tensor_pool as pool_module
from headwatch.attribution.batch_size import batch_sizes, default_budget_gb, free_bytes
from headwatch.attribution.batching import Span, batches, cheapest_groups
from headwatch.attribution.naive import naive_edges
from headwatch.attribution.run_layout import should_pack
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.tensor_pool import TensorPool, pieces

M = 3
CPU = torch.device("cpu")
ROWS = {  # rows per pair: points with gradient, plus endpoints that are not points
    ("logit_diff", "midpoint"): M + 2,
    ("logit_diff", "right"): M + 1,
    ("logit_diff", "left"): M + 1,
    ("logit_diff", "clean"): 2,
    ("kl", "right"): (M - 1) + 2,
    ("kl", "left"): M + 1,
    ("logit_diff", "ends"): 2,
    ("kl", "ends"): 2,
}


@pytest.mark.parametrize(("metric", "alphas"), list(ROWS))
@pytest.mark.parametrize("how", [{}, {"memory_budget_gb": 5e-5}])
def test_no_run_is_repeated(metric: str, alphas: str, how: dict[str, float]) -> None:
    model, probes = tiny_model("llama"), random_pairs(4, side="none")
    rows = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    # Every row has the columns after the first difference; the prefix runs once, and counts once.
    edges = score_pairs(model, probes, ScoringSettings(metric, M, alphas, **how), reuse_prefix=False)
    handle.remove()
    repeated = bool(how) and (metric, alphas) == (
        "logit_diff",
        "ends",
    )  # one point at a time: its second is an endpoint
    assert sum(rows) == (ROWS[metric, alphas] + repeated) * len(probes)
    assert not how or max(rows) <= 2  # a small budget does them a few at a time
    assert largest_error(edges.per_pair, naive_edges(model, probes, metric, M, alphas)) < 1e-9


def test_logits_are_computed_where_they_are_read() -> None:
    model = tiny_model("gemma3", torch.float32)  # whose logits are capped afterwards
    probes = random_pairs(4, side="none").select([1, 2, 3])  # the first differs from the first token on
    shapes = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    score_heads(model, probes, steps=M, batch_size=3)
    handle.remove()
    prefix, ends, points = shapes[:3]
    assert prefix[-1] == 0
    assert ends == (6, 1, 40)
    assert points == (9, 1, 2)
    assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("name", ["llama", "gemma3", "olmo2", "gpt2", "mixtral"])
def test_the_last_mlp_runs_where_logits_are_read(name: str) -> None:
    model, probes = tiny_model(name), random_pairs(4, side="none").select([1, 2, 3])
    anatomy = Anatomy.of(model)
    mlps = [layer.mlp_adds[0] for layer in anatomy.layers]
    seen: list[list[int]] = [[], []]
    handles = [
        mlp.register_forward_hook(lambda module, args, output, place=place: seen[place].append(args[0].shape[1]))
        for place, mlp in ((0, mlps[0]), (1, mlps[-1]))
    ]
    edges = score_edges(model, probes, steps=M, batch_size=3)
    for handle in handles:
        handle.remove()
    assert set(seen[1]) == {1}  # one read position: the last
    assert max(seen[0]) > 1
    assert largest_error(edges.per_pair, naive_edges(model, probes, steps=M)) < 1e-9
    assert not mlps[-1]._forward_hooks
    assert not anatomy.layers[-1].mlp_reads._forward_pre_hooks


def test_the_last_mlp_is_complete_if_its_router_logits_are_collected() -> None:
    """The model matches all layers' router logits with the padding mask of all columns."""
    model, probes = tiny_model("mixtral", torch.float32), random_pairs(4, side="left")
    expected = score_edges(model, probes, steps=M).per_pair
    model.config.output_router_logits = True
    assert largest_error(score_edges(model, probes, steps=M).per_pair, expected) < 1e-5


@pytest.mark.parametrize("how", ["own forward", "adapter"])
def test_only_a_plain_output_matrix_is_replaced(how: str) -> None:
    """GRPOTrainer's cast_lm_head_to_fp32 puts a forward of its own on it, PEFT puts an adapter around it."""
    model, probes = tiny_model("qwen2"), random_pairs(3)
    if how == "adapter":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
        torch.nn.init.normal_(model.lm_head.lora_B["default"].weight)
        own = None
    else:
        plain = model.lm_head.forward

        def own(x: torch.Tensor) -> torch.Tensor:
            return 2 * plain(x)

        model.lm_head.forward = own
    expected = naive_edges(model, probes, steps=2)
    assert largest_error(score_edges(model, probes, steps=2).per_pair, expected) < 1e-9
    assert vars(model.get_output_embeddings()).get("forward") is own


def test_the_default_budget_is_the_size_of_the_gradients() -> None:
    model = tiny_model("llama")
    assert default_budget_gb(model) == 2.0
    bytes_each = next(model.parameters()).element_size()
    model.large = torch.nn.Parameter(torch.empty(3 * 2**29, dtype=torch.float16), requires_grad=False)
    assert default_budget_gb(model) == 2.0
    model.large.requires_grad_()
    rest = sum(p.numel() for name, p in model.named_parameters() if name != "large") * bytes_each
    assert default_budget_gb(model) == pytest.approx(3.0 + rest / 2**30, rel=1e-12)


def test_on_cuda_the_budget_follows_free_memory() -> None:
    """Half of what is free beyond the gradients and moments that a training will allocate; never below the default."""
    model = tiny_model("llama")
    trainable = sum(p.nbytes for p in model.parameters())
    assert default_budget_gb(model, 40 * 2**30) == pytest.approx(0.5 * (40 - 3 * trainable / 2**30), rel=1e-12)
    assert default_budget_gb(model, 2**30) == 2.0
    assert free_bytes(CPU) is None


def test_the_vocabulary_counts_in_the_budget() -> None:
    model, probes = tiny_model("llama"), random_pairs(12, reads=2)
    anatomy = Anatomy.of(model)
    model.config.vocab_size = 4000
    answers, every = (batch_sizes(anatomy, probes, 5, None, 3e-3, True, whole)[0] for whole in (False, True))
    assert every < answers <= 12
    model.config.vocab_size = 400_000
    assert batch_sizes(anatomy, probes, 5, None, 3e-3)[0] < answers


def test_a_larger_budget_allows_more_pairs_per_batch() -> None:
    anatomy, probes = Anatomy.of(tiny_model("llama")), random_pairs(5)
    sizes = [batch_sizes(anatomy, probes, 5, None, budget) for budget in (1e-4, 5e-4, 1e-3, None)]
    assert sizes == sorted(sizes)
    assert sizes[0][0] < sizes[2][0] <= sizes[3][0] == len(probes)


def test_a_shared_prefix_counts_once_in_the_budget() -> None:
    model, probes = tiny_model("llama", attention="sdpa"), random_openers(12, prefix=30, suffix=2)
    assert should_pack(26, 3, 5)
    shared, _ = batch_sizes(Anatomy.of(model), probes, 5, None, 1e-3)
    model.config._attn_implementation = "flash_attention_2"
    copied, _ = batch_sizes(Anatomy.of(model), probes, 5, None, 1e-3)
    assert copied < shared < 12


def test_the_budget_counts_padding() -> None:
    """A batch is padded to the longest suffix of one shape and the longest length of another."""
    clean = torch.ones(20, 30, dtype=torch.long)
    corrupted, mask = clean.clone(), torch.ones_like(clean)
    corrupted[:10, -1] = 2  # 29 shared, one differs
    corrupted[10:, -10:], mask[10:, :-10] = 2, 0  # none shared, ten differ
    probes = ProbeSet.from_token_ids(
        clean, corrupted, attention_mask=mask, answers=torch.tensor([[3, 4]]).repeat(20, 1)
    )
    anatomy = Anatomy.of(tiny_model("llama"))
    halves = [probes.select(list(rows)) for rows in (range(10), range(10, 20))]
    both, long, short = (batch_sizes(anatomy, some, 5, None, 2e-3)[0] for some in (probes, *halves))
    assert 1 < both < min(long, short)


def test_batches_are_even() -> None:
    probes = random_openers(24, suffix=1).select(list(range(0, 24, 2)))  # twelve of the same shape
    assert [batch.size for batch in batches(probes, 11, CPU)] == [6, 6]
    assert [batch.size for batch in batches(probes, 5, CPU)] == [4, 4, 4]
    assert [batch.size for batch in batches(probes, 12, CPU)] == [12]


@pytest.mark.parametrize(("many", "sizes"), [(4, [8]), (34, [68]), (36, [36, 36])])
def test_pairs_are_padded_if_another_batch_would_cost_as_much(many: int, sizes: list[int]) -> None:
    """Half of the pairs differ in 2 of 4 tokens, half in all: padding costs 2 - 2/12 tokens each, another batch 64."""
    clean = torch.ones(2 * many, 4, dtype=torch.long)
    corrupted = clean.clone()
    corrupted[:, 2:] = 2
    corrupted[::2, :2] = 2
    probes = ProbeSet.from_token_ids(clean, corrupted, answers=torch.tensor([[3, 4]]).repeat(2 * many, 1))
    found = list(batches(probes, 1000, CPU))
    assert [batch.size for batch in found] == sizes
    assert [batch.cut for batch in found] == [2, 0][-len(sizes) :]
    assert sorted(torch.cat([batch.pairs for batch in found]).tolist()) == list(range(2 * many))
    assert len(list(batches(probes, 1000, torch.device("meta")))) == 1  # another batch costs more there


def test_groups_are_the_cheapest() -> None:
    """Compared with all ways to divide six shapes into groups."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        sizes = [tuple(torch.randint(1, 60, (3,), generator=generator).tolist()) for _ in range(6)]
        spans = [[Span(0, 0, suffix + prefix, prefix)] * many for suffix, prefix, many in sorted(sizes)]

        def cost(groups: list[list[Span]]) -> float:
            total = 0.0
            for group in groups:
                suffix, length = max(s.suffix for s in group), max(s.length for s in group)
                total += 64 * math.ceil(len(group) / 40) + len(group) * (suffix + (length - suffix) / 12)
            return total

        ways = []
        for cuts in itertools.product([False, True], repeat=5):
            groups = [list(spans[0])]
            for cut, same in zip(cuts, spans[1:], strict=True):
                if cut:
                    groups.append([])
                groups[-1] += same
            ways.append(cost(groups))
        assert cost(cheapest_groups(spans, 40, CPU)) == pytest.approx(min(ways))
        assert min(ways) < max(ways)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from Linux's /proc")
def test_peak_memory_grows_with_the_batch() -> None:
    small, large = (
        score_edges(tiny_model("llama", torch.float32), random_pairs(n, length=60, side="none"), batch_size=n)
        for n in (2, 300)
    )
    assert small.heads.peak_memory_mb is not None
    assert large.heads.peak_memory_mb > small.heads.peak_memory_mb + 20


def test_released_storage_is_reused() -> None:
    pool, like = TensorPool(), torch.zeros(1)
    first, second = pool.allocate(like, (3, 4)), pool.allocate(like, (2, 2), capacity=20)
    places = first.data_ptr(), second.data_ptr()
    assert first.shape == (3, 4)
    assert len(set(places)) == 2
    pool.release(first, second)
    again, large = pool.allocate(like, (2, 5)), pool.allocate(like, (4, 5))  # the smallest that is large enough
    assert (again.data_ptr(), large.data_ptr()) == places
    assert pool.allocate(like, (1,)).data_ptr() not in places  # everything released is in use again
    assert (again.shape, large.shape) == ((2, 5), (4, 5))
    wide = torch.zeros(1, dtype=torch.float64)
    pool.release(again)
    assert pool.allocate(wide, (2, 5)).data_ptr() != places[0]  # twice as many bytes
    assert pool.allocate(wide, (2, 3)).dtype == torch.float64


@pytest.mark.parametrize("pairs", [1, 3, 8])
@pytest.mark.parametrize("length", [1, 2, 7, 12, 64])
@pytest.mark.parametrize("most", [1, 5, 12, 40, 1000])
def test_pieces_cover_all_tokens_in_order_within_the_limit(
    pairs: int, length: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MAX_BYTES", most * 100)
    cut = pieces(pairs, length, 100, torch.device("cpu"))
    pair_of = torch.arange(pairs).repeat_interleave(length)
    found = torch.cat([torch.arange(pairs * length)[piece.tokens] for piece in cut])
    assert found.tolist() == list(range(pairs * length))
    for piece in cut:
        mine = pair_of[piece.tokens]
        assert 0 < len(mine) <= most
        assert mine.unique().tolist() == list(range(pairs)[piece.pairs])
        assert piece.n_pairs == len(mine.unique())
        assert piece.n_pairs == 1 or len(mine) == piece.n_pairs * length
    assert len(cut) <= pairs * length / max(1, most / 2) + pairs  # no more than needed
    assert len(pieces(pairs, length, 100, torch.device("cuda"))) == 1


def test_kl_at_the_clean_run_alone_is_refused() -> None:
    with pytest.raises(UserError, match="steps=1"):
        score_heads(tiny_model("llama"), random_pairs(1), "kl", 1, "right")
