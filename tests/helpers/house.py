"""Measure how the house is built: rooms, imports, sizes; a test holds it to the limits of CONTRIBUTING.

    python tests/helpers/house.py [FOLDER]

Prints one line a figure; FOLDER is the checkout, by default this one.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 300, 60, 6
# Rooms in bands from the top; imports go down this list, or stay within a band where no circle comes of it.
BANDS = (
    ("cli", "sweeps"),
    ("pipeline",),
    ("reports", "analysis", "serving"),
    ("stages",),
    ("fitting", "training", "sampling", "evaluation", "planning"),
    ("tokenization", "model", "components"),
    ("objective", "context_noise", "testing"),
    ("recipe", "data", "partial_weights"),
    ("registry", "layers", "weights", "system", "contracts", "errors"),
)
LEVEL = {room: level for level, band in enumerate(BANDS) for room in band}
# Where files share the names of the components and commands that they hold.
NAMESAKES = ("components", "cli", "testing")


def sources(package: Path) -> dict[str, Path]:
    """The modules of a package by their dotted names below it."""
    paths = (path for path in sorted(package.rglob("*.py")) if "templates" not in path.parts)
    names = ((".".join(path.relative_to(package).with_suffix("").parts), path) for path in paths)
    # A room that is imported as a whole is its `__init__`.
    return {name.removesuffix(".__init__"): path for name, path in names}


def imported(path: Path, package: str) -> set[str]:
    """Names below a package that a file imports, wherever in it, for types alone too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}.")}


def arrows(package: Path) -> dict[str, set[str]]:
    """For each module, the modules of the package that it imports."""
    modules = sources(package)
    return {
        name: {other for other in imported(path, package.name) if other in modules} - {name}
        for name, path in modules.items()
    }


def room(module: str) -> str:
    """The folder that a module is in; a module in the root is a room of its own."""
    return module.partition(".")[0]


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that run up the bands."""
    return [
        f"rearkit.{module} imports rearkit.{other}"
        for module, others in graph.items()
        for other in sorted(others)
        if room(module) in LEVEL and room(other) in LEVEL and LEVEL[room(other)] < LEVEL[room(module)]
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules, or rooms, that import one another in a circle (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def by_room(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same arrows between rooms."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, others in graph.items():
        rooms[room(module)] |= {room(other) for other in others} - {room(module)}
    return dict(rooms)


def namesakes(package: Path) -> list[str]:
    """Base names that several modules have, apart from folders where that is meant."""
    paths = [path for name, path in sources(package).items() if room(name) not in NAMESAKES]
    counts = Counter(path.stem for path in paths if path.stem != "__init__")
    return [f"{stem}.py × {count}" for stem, count in counts.items() if count > 1]


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, lines and parameters (self and cls apart) of each function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len(names) - (names[:1] in (["self"], ["cls"])) + bool(given.vararg) + bool(given.kwarg)
            yield f"{path.stem}.{node.name}", (node.end_lineno or 0) - node.lineno + 1, count


def comment_lines(path: Path) -> int:
    """Lines with a comment, whether or not code stands before it."""
    text = path.read_text(encoding="utf-8")
    return len({t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT})


def commands(path: Path) -> bool:
    """True for files of the command line, whose functions have a parameter for each option of a command."""
    return "cli" in path.parts


def main() -> None:
    """Print the figures."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    package = root / "rearkit"
    modules, graph = sources(package), arrows(package)
    every = [found for path in modules.values() for found in functions(path)]
    plain = [found for path in modules.values() if not commands(path) for found in functions(path)]
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules.items()}
    loose = [name for name in modules if "." not in name and not name.startswith("__")]
    comments = sum(map(comment_lines, modules.values()))
    print(f"rooms: {len({room(name) for name in modules if not name.startswith('__')})}")
    print(f"modules in the root: {len(loose)} ({', '.join(loose)})")
    print(f"lines: {sum(lines.values())} in {len(lines)} modules; longest {max((v, k) for k, v in lines.items())}")
    print(f"longest function: {max((size, name) for name, size, _ in every)}")
    print(f"most parameters, options of commands apart: {max((count, name) for name, _, count in plain)}")
    print(f"comments: {comments / sum(lines.values()):.1%} of lines")
    print(f"imports up the bands: {upward(graph) or 'none'}")
    print(f"circles of modules: {circles(graph) or 'none'}")
    print(f"circles of rooms: {circles(by_room(graph)) or 'none'}")
    print(f"base names used twice: {namesakes(package) or 'none'}")


if __name__ == "__main__":
    main()
