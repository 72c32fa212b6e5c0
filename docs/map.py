"""The map of the house: which room imports which, read from the code; draws ``docs/map.svg``.

A room is a folder of a package; a file that lies straight in the package is a room of its own. Every import
counts, those inside functions and under ``TYPE_CHECKING`` too. ``python -m docs.map`` draws the picture anew
and prints, a room a line, its files, its lines and what it imports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data", "ensemble", "distill")
PICTURE = Path(__file__).with_name("map.svg")

Graph = dict[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its dotted name; a package's ``__init__`` goes by the package's name."""
    files = (file for package in PACKAGES for file in sorted((root / package).rglob("*.py")))
    dotted = {".".join(file.relative_to(root).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in dotted.items()}


def imported(file: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it they stand; relative imports are not used here."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{file}:{node.lineno}: a relative import")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def file_graph(root: Path = ROOT) -> Graph:
    """Module to the modules of ours that it imports, without packages' ``__init__``."""
    known = modules(root)
    inner = {name for name, file in known.items() if file.name != "__init__.py"}

    def target(name: str) -> str:
        while name and name not in inner:
            name = name.rpartition(".")[0]
        return name

    return {name: {target(n) for n in imported(known[name])} - {name, ""} for name in sorted(inner)}


def room_of(module: str) -> str:
    """The room of a module: its folder, or the file itself where it lies straight in its package."""
    return ".".join(module.split(".")[:2])


def contracted(graph: Mapping[str, Iterable[str]], place: Mapping[str, str]) -> Graph:
    """The graph of the places that the nodes of ``graph`` stand in."""
    result: Graph = {place[name]: set() for name in graph}
    for name, needs in graph.items():
        result[place[name]].update(place[need] for need in needs)
    return {name: needs - {name} for name, needs in result.items()}


def room_graph(root: Path = ROOT) -> Graph:
    """Room to the rooms that it imports."""
    graph = file_graph(root)
    return contracted(graph, {name: room_of(name) for name in graph})


def circles(graph: Mapping[str, set[str]]) -> set[str]:
    """Every node that can be reached from itself; empty where imports run one way."""

    def reached(name: str) -> set[str]:
        found, waiting = set(), list(graph[name])
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting.extend(graph[node])
        return found

    return {name for name in graph if name in reached(name)}


def depths(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """How many rooms stand in the longest chain from each room down to the ground, itself counted."""
    found: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((depth(need) for need in graph.get(name, ())), default=0)
        return found[name]

    for name in graph:
        depth(name)
    return found


def drawn_graph(root: Path = ROOT) -> Graph:
    """Rooms for the picture: a package's own files are one box below its rooms and one above them."""
    graph = room_graph(root)
    place: dict[str, str] = {}
    folders = {name for name in graph if (root / name.replace(".", "/")).is_dir()}

    def over_rooms(name: str, package: str, seen: set[str]) -> bool:
        return name in folders or any(
            need.startswith(package + ".") and need not in seen and over_rooms(need, package, seen | {need})
            for need in graph[name]
        )

    for name in graph:
        package = name.split(".")[0]
        above = over_rooms(name, package, {name})
        place[name] = name if name in folders else f"{package}: {'commands' if above else 'ground'}"
    return contracted(graph, place)


def without_shortcuts(graph: Mapping[str, set[str]]) -> Graph:
    """The graph without arrows that a longer way says already."""

    def reach(name: str) -> set[str]:
        return set().union(*({need} | reach(need) for need in graph[name])) if graph[name] else set()

    return {
        name: {need for need in needs if not any(need in reach(other) for other in needs - {need})}
        for name, needs in graph.items()
    }


def docstring(root: Path, room: str) -> str:
    """What a room's own docstring says, in its first line."""
    file = root / room.replace(".", "/") / "__init__.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.exists() else ""
    return (text or "").split("\n")[0]


def draw(root: Path = ROOT) -> str:
    """The picture: floors from the ground up, every arrow pointing down to what is imported."""
    graph = drawn_graph(root)
    level = depths(graph)
    floors: dict[int, list[str]] = {}
    for name in sorted(graph, key=lambda n: (level[n], PACKAGES.index(n.split(".")[0].split(":")[0]), n)):
        floors.setdefault(level[name], []).append(name)
    wide, tall, gap, edge = 176, 44, 34, 16
    most = max(map(len, floors.values()))
    width, height = most * (wide + 20) + 2 * edge, len(floors) * (tall + gap) + 2 * edge
    centre: dict[str, tuple[float, float]] = {}
    for floor, names in floors.items():
        left = (width - len(names) * (wide + 20) + 20) / 2
        for place, name in enumerate(names):
            centre[name] = (left + place * (wide + 20) + wide / 2, height - edge - floor * (tall + gap) + gap)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13"><rect width="100%" height="100%" fill="#fff"/><defs><marker id="a" '
        'markerWidth="7" markerHeight="7" refX="6" refY="3.5" orient="auto"><path d="M0 0L7 3.5L0 7z" '
        'fill="#667"/></marker></defs>'
    ]
    for name, needs in without_shortcuts(graph).items():
        for need in sorted(needs):
            (x, y), (u, v) = centre[name], centre[need]
            y, v = y + tall / 2, v - tall / 2
            parts.append(
                f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {y + gap:.0f} {u:.0f} {v - gap:.0f} {u:.0f} {v:.0f}" '
                'fill="none" stroke="#889" marker-end="url(#a)"/>'
            )
    colours = {"data": "#e3f1e6", "ensemble": "#e4ecf9", "distill": "#fbeedd"}
    for name, (x, y) in centre.items():
        package = name.split(".")[0].split(":")[0]
        title = docstring(root, name) if "." in name else "files straight in the package"
        parts.append(
            f'<g><title>{escape(title)}</title><rect x="{x - wide / 2:.0f}" y="{y - tall / 2:.0f}" '
            f'width="{wide}" height="{tall}" rx="6" fill="{colours[package]}" stroke="#667"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{escape(name.replace(".", "/"))}</text>'
            "</g>"
        )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Draw the picture and print the table of rooms."""
    known, graph = modules(), file_graph()
    for room, needs in sorted(room_graph().items()):
        files = [known[name] for name in graph if room_of(name) == room]
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        print(f"{room:28} {len(files):3} files {lines:6} lines  imports {', '.join(sorted(needs)) or '-'}")
    found = sorted(circles(graph) | circles(room_graph()))
    if found:
        raise SystemExit(f"imports run in circles among {', '.join(found)}")
    depth, room = max((depth, room) for room, depth in depths(room_graph()).items())
    print(f"no circles; the deepest room is {room}, {depth} rooms from the ground")
    PICTURE.write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
