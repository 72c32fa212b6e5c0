"""Commands that do what the campaign must notice, and one that is sound: ``careless HOW IN OUT``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from data.files import locked, require_file, sha256_text, sweep, write_text

SLOW = 0.05


def main(argv: Sequence[str]) -> None:
    """Copy a file, which ends in its own hash."""
    how, source, out = argv[0].replace("_", " "), require_file(Path(argv[1])), Path(argv[2])
    *lines, stated = source.read_bytes().decode(errors="replace").split("\n")
    damaged = sha256_text(*lines) != stated
    if damaged and how == "raises":
        raise RuntimeError("a fault")
    if damaged and how == "hangs":
        time.sleep(60)
    if damaged and how == "aborts":
        os.abort()
    if damaged and how == "says nothing":
        raise SystemExit(2)
    if damaged and how == "leaves something":
        Path("scratch").write_text("")
    if damaged and how != "believes":
        raise UserError(f"{source}: is damaged; make it again")
    if how == "in place":
        if not out.exists():
            with open(out, "w") as file:
                for line in lines:
                    print(line, file=file, flush=True)
                    time.sleep(SLOW / 10)
        return
    if how == "leaves its scratch":
        Path(f"scratch-{os.getpid()}").write_text("")
        time.sleep(SLOW)
    if how == "mixes":
        # Half of its files are kept where somebody wrote them before, so two always mix.
        for i, line in enumerate(lines):
            if i % 2 or not Path(f"{out}-{i}").exists():
                write_text(Path(f"{out}-{i}"), line)
                time.sleep(SLOW / 10)
        return
    with locked(out.parent / f".{out.name}.copying"):
        sweep(out.parent, out.name)
        time.sleep(SLOW)
        write_text(out, "\n".join(lines))
    Path(f"scratch-{os.getpid()}").unlink(missing_ok=True)


if __name__ == "__main__":
    from data.console.command import run

    run(main)
