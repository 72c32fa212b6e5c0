"""What a machine without a network needs to install and run the project: ``python -m docs.kaggle``.

Leaves ``dist/kaggle/``: the project's own wheel, the wheels of everything that it needs at the versions of
the environment that this runs in, for Python 3.11 and 3.12 on Linux x86-64, and the notebook. PyTorch is left
out with all that only it needs: the image has a CUDA build, which alone is larger than all the rest.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "dist" / "kaggle"
NOTEBOOK = ROOT / "notebooks" / "kaggle.ipynb"
PYTHONS = ("3.11", "3.12")
LEFT_OUT = {"torch"}
EXTRAS = ("train",)
MOST_MIB = 400
GLIBC = range(35, 16, -1)
"""Minor versions of the manylinux tags that the image's C library, 2.35, runs."""


def needed(python: str, name: str = "distillstack", extras: tuple[str, ...] = EXTRAS) -> dict[str, str]:
    """Return what a package needs under a Python version, names and installed versions, but for PyTorch.

    What is not installed, as only the other Python needs it, has an empty version.
    """
    found: dict[str, str] = {}
    waiting = [(name, extras)]
    while waiting:
        name, extras = waiting.pop()
        try:
            asked = metadata(name).get_all("Requires-Dist") or []
        except PackageNotFoundError:
            continue
        for line in asked:
            requirement = Requirement(line)
            key = canonicalize_name(requirement.name)
            here = {"python_version": python, "python_full_version": f"{python}.0"}
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate({**here, "extra": extra}) for extra in ("", *extras)
            )
            if not wanted or key in found or key in LEFT_OUT:
                continue
            try:
                found[key] = version(key)
            except PackageNotFoundError:
                found[key] = ""
            waiting.append((key, tuple(requirement.extras)))
    return found


def pip(*arguments: str) -> None:
    """Run this environment's pip, and end with its words where it fails."""
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def fetch(python: str, into: Path) -> None:
    """Download the wheels for a Python version."""
    pins = [f"{name}=={pin}" if pin else name for name, pin in sorted(needed(python).items())]
    tag = f"cp{python.replace('.', '')}"
    abis = [f"--abi={abi}" for abi in (tag, "abi3", "none")]
    tags = [*(f"manylinux_2_{minor}" for minor in GLIBC), "manylinux2014", "linux"]
    platforms = [f"--platform={name}_x86_64" for name in tags]
    target = [f"--python-version={python}", "--implementation=cp", *abis, *platforms, "-d", str(into)]
    pip("download", "-q", "--no-deps", "--only-binary=:all:", *target, *pins)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.kaggle", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="versions to bundle for")
    args = parser.parse_args(argv)
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(args.out), str(ROOT))
    for python in args.python:
        fetch(python, args.out)
    shutil.copy(NOTEBOOK, args.out)
    size = sum(path.stat().st_size for path in args.out.iterdir()) / 2**20
    print(f"{args.out}: {len(list(args.out.glob('*.whl')))} wheels, {size:.0f} MiB")
    if size > MOST_MIB:
        raise SystemExit(f"more than {MOST_MIB} MiB")


if __name__ == "__main__":
    main()
