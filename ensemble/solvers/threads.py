"""How many threads linear algebra takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold every BLAS to one thread: small matrices gain nothing from more, and results do not depend on it.

    SciPy brings a BLAS of its own, and only those already loaded are held.
    """
    import scipy.linalg
    import scipy.optimize  # noqa: F401

    with threadpool_limits(limits=1, user_api="blas"):
        yield
