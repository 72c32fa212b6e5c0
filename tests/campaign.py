"""Whatever happens to a command, its files are those of a run that nothing happened to, or it says why not.

``python tests/campaign.py --kills 1000 --mutants 5000`` kills commands at random moments, changes their
inputs at random, fills their disk and starts them in pairs, and prints a table of what came of it; exit
status 1 where anything was lost, changed silently, hung, crashed, left over or shown as a traceback. A fault
keeps its directory; ``--replay DIRECTORY`` plays that round again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "helpers")]
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "USE_HUB_KERNELS": "0",
}

import ray_rounds  # noqa: E402
from rounds import FAULTS, FULL, KILL, MUTANT, PAIR, RAY, Campaign, table  # noqa: E402


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kills", type=int, default=1000, help="commands to kill")
    add("--mutants", type=int, default=5000, help="inputs to change")
    add("--full", type=int, help="commands without disk space (default: a tenth of the kills)")
    add("--pairs", type=int, help="pairs of commands in one place (default: a tenth of the kills)")
    add("--ray", type=int, default=0, help="rounds on a Ray cluster of this machine, half a minute each")
    add("--seed", type=int, default=0)
    add("--minutes", type=float, default=0, help="end after so many (0: when the counts are reached)")
    add("--cases", nargs="+", metavar="NAME", help="only these of the commands")
    add("--home", type=Path, help="where to work (default: a new temporary directory)")
    add("--out", type=Path, help="write the table there, too")
    add("--replay", type=Path, metavar="DIRECTORY", help="play the round again that left this")
    args = parser.parse_args(argv)
    home = (args.home or Path(tempfile.mkdtemp(prefix="campaign-"))).resolve()
    campaign = Campaign(home, args.seed)
    if args.cases:
        campaign.cases = {name: campaign.cases[name] for name in args.cases}
    campaign.make_base()
    if args.replay:
        campaign.cases |= {case.name: case for case in ray_rounds.ON_RAY}
        return replay(campaign, args.replay)
    wanted = {
        KILL: args.kills,
        MUTANT: args.mutants,
        FULL: args.kills // 10 if args.full is None else args.full,
        PAIR: args.kills // 10 if args.pairs is None else args.pairs,
    }
    with suppress(KeyboardInterrupt):  # the figures so far
        if args.ray:
            with ray_rounds.cluster() as campaign.cluster:
                play(campaign, {RAY: args.ray}, args.minutes)
        play(campaign, wanted, args.minutes)
    found = table(campaign.rounds)
    print(found)
    if args.out:
        args.out.write_text(found + "\n")
    wrong = [r for r in campaign.rounds if r.verdict in FAULTS]
    for r in wrong:
        print(f"{r.verdict}: {r.case}, {r.kind} {r.number}: {'; '.join(r.done)}: {r.why}")
    if wrong:
        print(f"seed {args.seed}; --home {home} --replay {campaign.failures}/KIND-NUMBER plays one again")
    return int(bool(wrong))


def play(campaign: Campaign, wanted: dict[str, int], minutes: float) -> None:
    """Play the kinds of rounds in turn, each in its share, until the counts or the time are reached.

    Each is played once, however little time there is.
    """
    begun, played = time.monotonic(), dict.fromkeys(wanted, 0)
    limit = minutes * 60 or float("inf")
    wanted = {kind: n for kind, n in wanted.items() if n}
    while time.monotonic() - begun < limit or any(not played[kind] for kind in wanted):
        left = {kind: played[kind] / n for kind, n in wanted.items() if played[kind] < n}
        if not left:
            return
        kind = min(left, key=lambda k: left[k])
        done = campaign.play(kind, played[kind])
        played[kind] += 1 if kind != KILL else max(1, done.kills)
        if done.verdict in FAULTS:
            told = f"{done.verdict}: {done.case}, {kind} {done.number}: {'; '.join(done.done)}: {done.why}"
            print(told, flush=True)


def replay(campaign: Campaign, place: Path) -> int:
    """Play a round again."""
    kept = json.loads((place / "round.json").read_text())
    campaign.seed = kept["seed"]
    done = campaign.play(kept["kind"], kept["number"], campaign.cases[kept["case"]])
    print(f"{done.verdict}: {'; '.join(done.done)}: {done.why}")
    return int(done.verdict in FAULTS)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets are written in their order, on a cluster's workers too
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    raise SystemExit(main(sys.argv[1:]))
