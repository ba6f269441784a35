"""The package's layout: imports go one way, from higher floors to lower ones, and nothing imports in a circle."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "headwatch"
TOP = {"__init__", "__main__", "callback", "cli", "errors", "version"}

# Rooms from the lowest floor up. A file may import files of its own room and of lower floors.
FLOORS = (
    {"errors", "version", "io"},
    {"model", "stats", "grading"},
    {"probes", "kernels"},
    {"attribution"},
    {"circuits", "lives"},
    {"record"},
    {"analysis"},
    {"report", "sinks"},
    {"monitor"},
    {"callback"},
    {"adapters", "checkpoints", "evaluation"},
    {"demo"},
    {"training"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Packages that a user may not have, or that take seconds to import: only these are imported inside a function.
OPTIONAL = {
    *(
        "accelerate",
        "bitsandbytes",
        "datasets",
        "latex2sympy2_extended",
        "lm_eval",
        "math_verify",
        "matplotlib",
        "deepspeed",
        "peft",
        "plotly",
        "tensorboard",
    ),
    *("trackio", "transformers", "trl", "wandb", "wandb_workspaces", "scipy", "pandas", "torch", "swift", "vllm"),
}


def modules(package: Path) -> dict[str, Path]:
    """Dotted name (without "headwatch.") -> file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """(imported module, inside a function), for every import of a file; "" stands for the package root."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}, line {node.lineno}: relative import"
            base = node.module or ""
            # `from headwatch.report import svg` imports the module svg; `from headwatch.report.svg import draw` a name.
            names = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}".removeprefix("headwatch.") in known else base
                for alias in node.names
            ]
        else:
            continue
        for name in names:
            yield name, id(node) in inside


def faults(package: Path) -> list[str]:
    """Everything that the layout forbids, one line each."""
    known, found = modules(package), []
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        room = name.split(".")[0]
        if room not in FLOOR and name != "__init__":
            found.append(f"{name}: no floor has the room {room!r}")
            continue
        graph[name] = set()
        for imported, local in imports(path, known):
            root, _, rest = imported.partition(".")
            if root != "headwatch":
                if local and root not in OPTIONAL:
                    found.append(f"{name}: imports {imported} inside a function")
                continue
            if not rest:
                found.append(f"{name}: imports the package root")
                continue
            if local and room != "commands":
                found.append(f"{name}: imports {imported} inside a function")
            if name == "__init__":
                continue  # for type checkers alone: at run time it imports on first use
            other = rest.split(".")[0]
            graph[name].add(rest)
            if other != room and FLOOR[other] >= FLOOR[room]:
                found.append(f"{name} (floor {FLOOR[room]}) imports {imported} (floor {FLOOR[other]})")
    return found + circles(graph)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Circles among modules. A package's __init__ is imported with each of its modules, but is not waited for."""
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            found.append("circle: " + " -> ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    return found


def test_imports_go_one_way() -> None:
    assert faults(PACKAGE) == []


def test_the_top_of_the_package_holds_these_modules_only() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP


# What must not be written, in which file, and the fault that it is.
FORBIDDEN = (
    ("stats/shares.py", "from headwatch.lives.states import HeadState", "stats.shares (floor 1) imports"),
    ("probes/pair_set.py", "from headwatch.probes.generate import generate", "circle: probes.generate -> probes."),
    ("probes/families.py", "def f():\n    from headwatch.errors import UserError", "inside a function"),
    ("model/anatomy.py", "import headwatch", "imports the package root"),
    ("lives/events.py", "from headwatch.circuits import circuit", "lives.events (floor 4) imports"),
)


def test_forbidden_imports_are_found(tmp_path: Path) -> None:
    copy = tmp_path / "headwatch"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file, line, _ in FORBIDDEN:
        with (copy / file).open("a", encoding="utf-8") as text:
            text.write(f"\n{line}\n")
    found = faults(copy)
    for _, line, fault in FORBIDDEN:
        assert any(fault in each for each in found), (line, found)
