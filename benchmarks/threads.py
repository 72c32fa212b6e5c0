"""What SciPy's own threads cost: ``python -m benchmarks.threads DIR``.

Two processes fit the logit on the first twelve members of a directory of prediction sets with labels. One
limits BLAS to one thread before SciPy is imported, as the stack did once, so that SciPy's own BLAS keeps
every core; the other loads it first. Printed are seconds of one fit at one penalty and of the whole method,
by the clock and of CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ensemble.solvers.threads import one_blas_thread

MEMBERS, PENALTY = 12, 30.0
BEFORE, AFTER = "limited before SciPy is loaded", "limited after"


def measure(way: str, folder: Path) -> None:
    """Print the line of one way; in a process that has not imported SciPy."""
    with ExitStack() as limited:
        assert "scipy.linalg" not in sys.modules
        limited.enter_context(
            one_blas_thread() if way == AFTER else threadpool_limits(limits=1, user_api="blas")
        )
        from benchmarks.ensemble import problem_of
        from ensemble.methods.logit import MultinomialLogit
        from ensemble.solvers.newton import minimise
        from ensemble.solvers.numbers import PROB_FLOOR

        known = problem_of(folder)
        P, n = known.P[:, :MEMBERS], len(known)
        problem, _ = MultinomialLogit()._problem(P, known.y, np.full(n, 1 / n), "log", PROB_FLOOR, False)
        problem = replace(problem, ridge=np.full_like(problem.ridge, PENALTY / n))
        cells, parameters = [], len(problem.centre)
        for fit in (
            lambda: minimise(problem, problem.centre),
            lambda: MultinomialLogit().fit(P, known.y),
        ):
            clock, busy = time.perf_counter(), time.process_time()
            fit()
            cells += [f"{time.perf_counter() - clock:.2f}", f"{time.process_time() - busy:.2f}"]
    print(f"| {way} | {parameters} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--way", choices=(BEFORE, AFTER), help="one of them, in this process")
    args = parser.parse_args()
    if args.way:
        measure(args.way, args.folder)
        return
    print(f"On {os.cpu_count()} cores.\n")
    print("| one thread | parameters | one fit, s | of CPU | the whole logit, s | of CPU |")
    print("|---|---|---|---|---|---|", flush=True)
    names = [name for name in os.environ if not name.endswith("_NUM_THREADS")]
    for way in (BEFORE, AFTER):
        command = [sys.executable, "-m", "benchmarks.threads", str(args.folder), "--way", way]
        subprocess.run(command, check=True, env={name: os.environ[name] for name in names})


if __name__ == "__main__":
    main()
