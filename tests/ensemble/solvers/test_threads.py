"""Linear algebra is held to one thread, SciPy's too."""

from __future__ import annotations

import subprocess
import sys

from recipes import ROOT

COUNT = """
from threadpoolctl import threadpool_info
from ensemble.solvers.threads import one_blas_thread

with one_blas_thread():
    import scipy.linalg, scipy.optimize
    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert any("scipy" in pool["filepath"] for pool in found), found
    assert {pool["num_threads"] for pool in found} == {1}, found
"""


def test_a_blas_that_scipy_loads_is_held_too() -> None:
    environment = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
