"""Results of commands in a run folder: a circuit of 150 edges, roles, an ablation, benchmarks and components."""

from typing import Any

import numpy as np

from headwatch.record.after import keep_result
from headwatch.record.run_folder import RunFolder

SIZES = (0.001, 0.01, 0.1, 0.5, 1.0)


def keep_results(run: RunFolder, families: tuple[str, ...]) -> None:
    """Keep made-up results of every kind; "base" and "post" have circuits."""
    shape = run.manifest["model"]
    n_layers, n_heads = shape["n_layers"], shape["n_heads"]
    rng = np.random.default_rng(0)
    for place, model in enumerate(("base", "post")):
        circuits = [circuit(family, n_layers, n_heads, np.random.default_rng(place)) for family in families]
        for each in circuits:
            each["signal"] = "insufficient signal" if place == 0 else "ok"
        keep_result(run, "circuits", {"model": model, "families": circuits})
    heads = [f"L{layer}.H{head}" for layer in range(n_layers) for head in range(n_heads)]
    columns = ("entropy", "previous_token", "first_token", "distance", "induction", "write", "weight_change")
    rows = [{"head": head, "receiver_kurtosis": None, **dict.fromkeys(columns, float(rng.random()))} for head in heads]
    tokens = ["Compute", " 4", "7", "+", "8", "5", "."]
    pattern = [[100 // (row + 1)] * (row + 1) for row in range(len(tokens))]
    event = run.events()[0]
    patterns = [
        {"head": f"L{event.layer}.H{event.head}", "family": family, "tokens": tokens, "rows": pattern}
        for family in families
    ]
    keep_result(run, "roles", {"model": "post", "base": "base", "prompts": 16, "heads": rows, "patterns": patterns})
    keep_result(run, "ablation", {"model": "post", "groups": {"emerged": heads[:3]}, "suites": {"sums": suite(heads)}})
    passed = {"1": interval(0.6), "4": interval(0.8)}
    keep_result(
        run, "evaluation", {"model": "post", "suites": {"gsm8k": {"problems": 100, "samples": 4, "pass": passed}}}
    )
    parts = {name: {"before": [0.1] * n_layers, "now": [0.11] * n_layers} for name in ("attention", "mlp", "input")}
    keep_result(run, "components", {"model": "post", "families": dict.fromkeys(families, parts)})


def circuit(family: str, n_layers: int, n_heads: int, rng: np.random.Generator) -> dict[str, Any]:
    """A circuit whose 150 strongest edges connect random nodes."""
    edges: dict[tuple[str, str], float] = {}
    while len(edges) < 150:
        a, b = sorted(int(layer) for layer in rng.integers(-1, n_layers + 1, size=2))
        if a in (b, n_layers):
            continue
        source = "input" if a < 0 else f"m{a}" if rng.random() < 0.3 else f"a{a}.h{rng.integers(n_heads)}"
        kind = "qkv"[rng.integers(3)]
        to = "logits" if b == n_layers else f"m{b}" if rng.random() < 0.3 else f"a{b}.h{rng.integers(n_heads)}.{kind}"
        edges[source, to] = float(rng.random() ** 4)
    ordered = sorted(edges.items(), key=lambda edge: -edge[1])
    curve = [
        {
            **{"size": size, "edges": round(5000 * size), "heads": round(100 * size)},
            **{"faithfulness": size**0.3, "lower": size**0.3 - 0.1, "upper": size**0.3 + 0.1},
            "random": [size, size**2],
        }
        for size in SIZES
    ]
    return {
        **{"family": family, "edges": 500, "real_edges": 5000, "evaluated_on": 32, "curve": curve},
        "heads": [{"head": "L0.H0", "importance": 0.5}],
        "strongest": [{"source": s, "target": t, "score": score} for (s, t), score in ordered],
        **{"cpr": 0.9, "cmd": 0.1, "random_cpr": [0.4, 0.5], "random_cmd": [0.5, 0.6]},
    }


def suite(heads: list[str]) -> dict[str, Any]:
    """None, three heads off, and two random sets."""
    change = {
        "difference": interval(-0.2),
        "p_value": 0.001,
        "newly_right": [1],
        "newly_wrong": [2, 3],
        "mcnemar_p": 1.0,
    }
    arms = [
        {
            "arm": "none",
            "group": "",
            "factor": 1.0,
            "random": None,
            "heads": [],
            "problems": 100,
            "pass1": interval(0.7),
        }
    ]
    for number in (None, 1, 2):
        name = "emerged-x0" + ("" if number is None else f"-random{number}")
        arms.append(
            {"arm": name, "group": "emerged", "factor": 0.0, "random": number, "heads": heads[:3], "problems": 100}
            | {"pass1": interval(0.5), "against_none": change}
        )
    against = {
        "arm": "emerged-x0",
        "sets": 2,
        "random_mean": interval(0.5),
        "random_lowest": 0.4,
        "random_highest": 0.6,
    }
    against |= {"difference": interval(0.0), "p_value": 1.0, "rank_p": 0.67}
    return {"arms": arms, "against_random": [against]}


def interval(value: float) -> dict[str, float]:
    """An interval of 0.1 to both sides."""
    return {"value": value, "low": value - 0.1, "high": value + 0.1}
