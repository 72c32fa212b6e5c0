"""Whether Python that comes with a checkpoint may be run: by a command's own ``--trust-remote-code`` alone.

A recipe, a run's configuration or a checkpoint is data, and data give no permission to run code. The one
place that does is the command line of the command that loads the checkpoint; workers that a command starts
elsewhere are told by it. Every call that could run a checkpoint's code says what is allowed, since the
library asks on the terminal where it is not told.
"""

from __future__ import annotations

import argparse

OPTION = "--trust-remote-code"
_state = {"allowed": False}


def allow_remote_code(wanted: bool) -> None:
    """Set for this process whether a checkpoint's own Python may be run; not, until this is called."""
    _state["allowed"] = wanted


def remote_code_allowed() -> bool:
    """Whether a checkpoint's own Python may be run in this process."""
    return _state["allowed"]


def add_remote_code_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option; the command hands its value to :func:`allow_remote_code` before it loads anything."""
    parser.add_argument(
        OPTION,
        action="store_true",
        help="run Python that comes with the checkpoints of this command; only for authors whom you trust "
        "with everything that you may do on this machine",
    )


def refused(error: BaseException) -> bool:
    """Whether the library refused a checkpoint because its own Python would have to be run."""
    return "trust_remote_code" in str(error)


def in_words(path: str) -> str:
    """What to say of a checkpoint that was refused."""
    return (
        f"{path}: comes with Python code of its own, which is not run unasked; give {OPTION} if you trust "
        "its authors, or take a checkpoint of an architecture that the library knows"
    )
