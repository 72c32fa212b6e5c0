"""``python -m distill.doctor``: find, or rule out, the faults that make one backbone look worse than another.

Takes checkpoints, adapters, recipes, runs and data directories; prints every check with what was seen, what
the fault costs and how to mend it. Exits with 1 if a check failed or could not be run. Model checks run on a
copy of few layers, on the CPU, in seconds; ``--deep`` takes every layer and adds the slow checks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from data.console.command import format_table, parser_of, run
from data.errors import UserError
from distill.arguments import access_of, add_access_arguments

if TYPE_CHECKING:
    from distill.doctor.finding import Result

MARKS = {"pass": "ok", "warn": "warn", "fail": "FAIL", "error": "ERROR"}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of("distill.doctor", __doc__, "distill.doctor runs/demo/llama --data runs/demo")
    parser.add_argument(
        "target",
        nargs="+",
        help="checkpoint (directory or cached hub name), adapter, recipe, run, or data directory",
    )
    parser.add_argument("--deep", action="store_true", help="every layer, and the slow checks")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="judge what plain transformers code gets by its defaults, not what this toolkit does",
    )
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared rows to check the target against")
    parser.add_argument(
        "--ids", type=Path, metavar="FILE", help="token ids your own training feeds, JSON lines"
    )
    parser.add_argument("--predict-ids", type=Path, metavar="FILE", help="the same of your own prediction")
    parser.add_argument(
        "--cost",
        action="store_true",
        help="train short paired runs with and without each fault found, and report its effect on log-loss",
    )
    add_access_arguments(parser, accept=False)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = arguments(argv)
    access = access_of(args)
    from distill.doctor.examine import diagnose
    from distill.doctor.finding import BAD
    from distill.quiet import quiet_transformers

    results: list[Result] = []
    if args.predict_ids is not None and args.ids is None:
        raise UserError("--predict-ids needs --ids: the two are compared")
    if args.cost and args.data is not None:
        from data.classes import refuse_candidates
        from data.dataset import load_prepared

        classes = load_prepared(args.data)[0].classes
        refuse_candidates(classes, f"{args.data}: --cost", "without --data it is that of the simulated arena")
    options = {key: getattr(args, key) for key in ("deep", "plain", "data", "ids", "predict_ids")}
    for target in args.target:
        results += diagnose(target, backbone=access.backbone, **options)
    with tempfile.TemporaryDirectory(prefix="distill-doctor-") as scratch, quiet_transformers():
        costs = _measure(results, args, Path(scratch)) if args.cost else {}
    if args.json:
        listed = [asdict(r) | ({"measured": costs[r.check]} if r.check in costs else {}) for r in results]
        print(json.dumps(listed, indent=2, ensure_ascii=False))
    else:
        _print(results, costs)
    return 1 if any(r.status in BAD for r in results) else 0


def _measure(results: list[Result], args: argparse.Namespace, scratch: Path) -> dict[str, str]:
    from distill.doctor.cost import measure_check
    from distill.doctor.faults import FAULTS
    from distill.doctor.finding import FAIL, WARN

    found = [r.check for r in results if r.status in (WARN, FAIL)]
    faulty = dict.fromkeys(name for name in found if name in FAULTS.values())
    return {name: measure_check(name, args.data, scratch / "cost") for name in faulty}


def _print(results: list[Result], costs: dict[str, str]) -> None:
    """Print a table a subject, then what to do about whatever is not well."""
    for name in dict.fromkeys(r.subject for r in results):
        own = [r for r in results if r.subject == name]
        print(f"\n{name}")
        lines = [[r.check.replace("_", " "), MARKS[r.status], r.seen] for r in own]
        wide = max(len(line[2]) for line in lines)
        print(format_table(["check", "", "seen".ljust(wide)], [[a, b, c.ljust(wide)] for a, b, c in lines]))
    for r in results:
        if r.status != "pass":
            print(f"\n{MARKS[r.status]}: {r.check.replace('_', ' ')} ({r.subject})")
            for label, text in (
                ("seen", r.seen),
                ("cost", r.cost),
                ("here", costs.get(r.check)),
                ("fix", r.fix),
            ):
                if text:
                    print(fill(text, 108, initial_indent=f"  {label}: ", subsequent_indent="        "))
    counts = {status: sum(r.status == status for r in results) for status in MARKS}
    unknown = f", {counts['error']} could not be run" if counts["error"] else ""
    print(f"\n{counts['pass']} passed, {counts['warn']} to know, {counts['fail']} failed{unknown}")


if __name__ == "__main__":
    run(main)
