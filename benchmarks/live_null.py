"""False positives of coupling and alerts under the null: `python benchmarks/live_null.py` (one core, minutes).

Coupling: share of p values at or below each level, for independent series. Alerts: share of runs of 30 probes with at
least one "reward up while probes fall", where the reward rises and every pair's answer is drawn afresh at each probe
with the same chance of being right (far noisier than a model that does not change).
"""

import argparse

import numpy as np

from headwatch.monitor.alert_rules import reward_up_probes_down
from headwatch.stats.lagged_correlation import lagged_correlation

LEVELS = (0.01, 0.05, 0.1, 0.5)


def ar1(coefficient: float, n: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(n + 60)
    series = np.zeros(n + 60)
    for t in range(1, n + 60):
        series[t] = coefficient * series[t - 1] + noise[t]
    return series[60:]


def series(coefficient: float, n: int, change: bool, rng: np.random.Generator) -> np.ndarray:
    return np.diff(ar1(coefficient, n + 1, rng)) if change else ar1(coefficient, n, rng)


def coupling(repeats: int) -> None:
    print("| series | entries | " + " | ".join(f"p <= {level:g}" for level in LEVELS) + " |")
    for name, coefficient, change in [
        ("changes of a random walk", 0.0, False),
        ("changes of white noise", 0.0, True),
        ("changes of AR(0.7)", 0.7, True),
        ("AR(0.5)", 0.5, False),
        ("AR(0.7)", 0.7, False),
        ("AR(0.9)", 0.9, False),
    ]:
        for n in (11, 23, 47):
            rng = np.random.default_rng(7)
            p = np.array(
                [
                    lagged_correlation(*(series(coefficient, n, change, rng) for _ in range(2))).p_value
                    for _ in range(repeats)
                ]
            )
            print(
                f"| {name} | {n} | " + " | ".join(f"{(p <= level).mean():.3f}" for level in LEVELS) + " |", flush=True
            )


def power(repeats: int) -> None:
    print("\nchanges one probe later with a correlation of r: found at p <= 0.05, and at the right lag")
    for n in (11, 23, 47):
        for r in (0.5, 0.7, 0.9):
            rng = np.random.default_rng(9)
            hits = right = 0
            for _ in range(repeats):
                x = rng.standard_normal(n + 1)
                y = r * x[:-1] + np.sqrt(1 - r * r) * rng.standard_normal(n)
                found = lagged_correlation(x[1:], y)
                hits += found.p_value <= 0.05
                right += found.best_lag == 1
            print(f"| {n} | {r} | {hits / repeats:.2f} | {right / repeats:.2f} |", flush=True)


def alerts(runs: int) -> None:
    rng = np.random.default_rng(3)
    steps = list(range(0, 300, 10))
    rows = [{"step": step + 5, "reward": step / 300} for step in steps]
    for n_pairs in (32, 64, 128):
        fired = 0
        for _ in range(runs):
            correct = [rng.random(n_pairs) < 0.6 for _ in steps]
            fired += any(
                reward_up_probes_down("f", steps[:n], correct[:n], rows[: n - 1]) is not None for n in range(2, 31)
            )
        print(f"alerts, {n_pairs} pairs: {fired} of {runs} runs", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=400)
    repeats = parser.parse_args().repeats
    alerts(repeats)
    coupling(repeats)
    power(repeats)
