"""Data of the page's part "After training": results that commands kept in the run folder, within a budget of values."""

from collections.abc import Mapping, Sequence
from typing import Any

from headwatch.circuits.drawing import HEIGHT, MAX_EDGES, WIDTH, edge_note, geometry, kind_of, node_label
from headwatch.record.after import read_results
from headwatch.record.run_folder import RunFolder
from headwatch.report.figure_data import significant
from headwatch.report.heads_off import against_random, arm_label

MAX_ROLE_VALUES = 20_000  # per model: heads x columns; a larger model keeps its heads with the largest |write|
MAX_PATTERN_VALUES = 30_000  # per model: attention values of pictures
MAX_PATTERN_TOKENS = 64
DRAWING_TOP = 12.0  # pixels above the nodes: the page has its own heading and legend


def after_data(run: RunFolder) -> dict[str, Any]:
    """circuits, roles, ablation, evaluation and components, a list with one entry per model each; [] without any."""
    return {
        "circuits": [_circuits(each) for each in read_results(run, "circuits")],
        "roles": [_roles(each) for each in read_results(run, "roles")],
        "ablation": [_ablation(each) for each in read_results(run, "ablation")],
        "evaluation": read_results(run, "evaluation"),
        "components": [_components(each) for each in read_results(run, "components")],
    }


def _circuits(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of each family: the curve, and the drawing of its strongest edges."""
    families = {}
    for family in result["families"]:
        edges = [(e["source"], e["target"], e["score"]) for e in family["strongest"][:MAX_EDGES]]
        families[family["family"]] = {
            **{key: family[key] for key in ("edges", "real_edges", "evaluated_on")},
            **{key: significant(family[key], 3) for key in ("cpr", "cmd")},
            **{key: [significant(value, 3) for value in family[key]] for key in ("random_cpr", "random_cmd")},
            "heads": len(family["heads"]),
            "signal": family.get("signal"),
            "curve": [
                [
                    *(row[key] for key in ("size", "edges", "heads")),
                    *(significant(row[key], 4) for key in ("faithfulness", "lower", "upper")),
                    [significant(value, 4) for value in row["random"]],
                ]
                for row in family["curve"]
            ],
            "drawing": _drawing(edges),
        }
    return {"model": result["model"], "families": families}


def _drawing(edges: Sequence[tuple[str, str, float]]) -> dict[str, Any] | None:
    if not edges:
        return None
    drawn = geometry(edges, DRAWING_TOP)
    return {
        "size": [round(drawn.width), round(drawn.height)],
        "node": [WIDTH, HEIGHT],
        "nodes": [[node_label(name), *map(round, place)] for name, place in drawn.nodes.items()],
        "edges": [
            [kind_of(target), round(part, 3), path, edge_note(source, target, score)]
            for source, target, score, part, path in drawn.edges
        ],
    }


def _roles(result: Mapping[str, Any]) -> dict[str, Any]:
    """Columns and rows [head, value ...]; patterns of the heads that have one."""
    heads = result["heads"]
    columns = [name for name in (heads[0] if heads else ()) if name != "head"]
    numbers = [name for name in columns if any(isinstance(row.get(name), (int, float)) for row in heads)]
    rows = [[row["head"], *(_number(row.get(name)) for name in numbers)] for row in heads]
    kept = max(1, MAX_ROLE_VALUES // (1 + len(numbers)))
    if len(rows) > kept and "write" in numbers:
        place = 1 + numbers.index("write")
        rows.sort(key=lambda row: -abs(row[place] or 0.0))
    patterns, left = [], MAX_PATTERN_VALUES
    for each in result.get("patterns", ()):
        size = len(each["tokens"])
        fits = size <= MAX_PATTERN_TOKENS and [len(row) for row in each["rows"]] == list(range(1, size + 1))
        left -= size * size // 2 if fits else 0
        if fits and left >= 0:
            patterns.append({key: each[key] for key in ("head", "family", "tokens", "rows")})
    return {
        **{key: result.get(key) for key in ("model", "base", "prompts", "on_texts")},
        "columns": numbers,
        "rows": rows[:kept],
        "omitted": max(0, len(rows) - kept),
        "patterns": patterns,
    }


def _ablation(result: Mapping[str, Any]) -> dict[str, Any]:
    """Arms without the lists of problems that changed, whose numbers are kept."""
    suites = {}
    for suite, found in result["suites"].items():
        arms = []
        for arm in found["arms"]:
            row = {key: arm[key] for key in ("arm", "group", "random", "heads", "pass1")}
            row["factor"], row["label"] = arm.get("factor"), arm_label(arm)
            other = arm.get("against_none")
            if other is not None:
                changed = {key: len(other[key]) for key in ("newly_right", "newly_wrong")}
                row["against_none"] = {key: other[key] for key in ("difference", "p_value", "mcnemar_p")} | changed
            arms.append(row)
        problems = found["arms"][0].get("problems")
        by_name = {arm["arm"]: arm for arm in found["arms"]}
        notes = [against_random(by_name[other["arm"]], other) for other in found["against_random"]]
        suites[suite] = {"arms": arms, "notes": notes, "problems": problems}
    return {"model": result["model"], "groups": result["groups"], "suites": suites}


def _components(result: Mapping[str, Any]) -> dict[str, Any]:
    """Sums over the layers: family -> component -> [before, now]."""
    families = {
        family: {
            name: [significant(sum(value or 0.0 for value in part[end]), 3) for end in ("before", "now")]
            for name, part in parts.items()
        }
        for family, parts in result["families"].items()
    }
    return {"model": result["model"], "families": families}


def _number(value: Any) -> float | None:
    return significant(value, 3) if isinstance(value, (int, float)) else None
