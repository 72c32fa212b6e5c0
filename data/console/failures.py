"""What a command says of an error that no place of its own foresaw: one line, and where the rest stands.

What the system or a library refuses because of what was given (a name too long, a full disk, no memory) is
the user's to mend, exit status 2. Everything else is a fault of ours until shown otherwise: exit status 70,
and its traceback in a file that can be sent, so that it stays visible and does not fill the terminal.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback

from data.console.lacking import wanting
from data.errors import brief, is_disk_full, printable, without_credentials

FAULT = 70
"""Exit status of a fault of this package, as ``sysexits.h`` has it."""
DEBUG = "DISTILLSTACK_DEBUG"
"""Environment variable that shows tracebacks, as ``--debug`` does."""
_NO_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|std::bad_alloc", re.IGNORECASE)


def explained(error: Exception) -> str:
    """Say in one line what the user can mend; empty where the error is none of theirs."""
    if is_disk_full(error):
        return f"the disk is full ({brief(error)}); make room, and the same command continues"
    if lack := wanting(error):
        return lack
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory{_said(error)}; give the command more, or less to do at once"
    if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
        return f"out of memory{_said(error)}; give the command more, or less to do at once"
    if isinstance(error, RecursionError):
        return "something that was given is nested too deeply to be read; make it flatter"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"a name or text that was given is not UTF-8 ({brief(error, 120)}); rename or convert it"
    if isinstance(error, UnicodeError):
        return f"a file that was given is not UTF-8 ({brief(error, 120)}); convert it"
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename if isinstance(error.filename, str | bytes) else None
        where = f"{brief(os.fsdecode(name))}: " if name else ""
        remedy = REMEDIES.get(error.errno, "")
        return without_credentials(f"{where}{error.strerror or type(error).__name__}{remedy}")
    return ""


REMEDIES = {
    errno.ENAMETOOLONG: "; a name has at most 255 bytes on most file systems, so choose a shorter one",
    errno.EACCES: "; grant this user the right to read and write there, or choose another place",
    errno.EPERM: "; grant this user the right to read and write there, or choose another place",
    errno.EROFS: "; choose a place that can be written to",
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
    errno.ELOOP: "; the links there lead round in a circle",
    errno.ENOMEM: "; give the command more memory",
}
"""What to do about the system's refusals, behind its own words."""


def _said(error: Exception) -> str:
    return f" ({brief(error, 120)})" if str(error) else ""


def recorded(error: Exception) -> str:
    """Say that an error is a fault, where it was raised, and in which file its traceback now stands."""
    text = without_credentials("".join(traceback.format_exception(error)))
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if f"{os.sep}site-packages{os.sep}" not in frame.filename
    ]
    at = f" at {os.path.relpath(ours[-1].filename)} line {ours[-1].lineno}" if ours else ""
    what = f"{type(error).__name__}{at}: {without_credentials(brief(error))}"
    try:
        handle, path = tempfile.mkstemp(prefix="distillstack-fault-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{printable(without_credentials(' '.join(sys.argv)))}\n{text}")
    except OSError:
        path = "run again with --debug for the traceback"
    else:
        path = f"the traceback is in {path}, and --debug shows it"
    return f"{what}; this is a fault of distillstack, or a damaged file that it does not recognise: {path}"
