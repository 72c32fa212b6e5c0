"""The frame of a page that stands alone: its templates, its script, and how numbers are written there.

Templates hold the markup and Python what it shows. jinja2 escapes whatever is put into a template, so text
from rows, files and members never becomes markup; the page's policy lets only its own script run.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ensemble.scoring.bootstrap import Interval

HERE = Path(__file__).parent
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
SCRIPT_HASH = "sha256-" + b64encode(sha256(SCRIPT.encode()).digest()).decode("ascii")
"""The policy lets this one script run: none that text from rows or files could ever bring in."""


def render(template: str, *folders: Path, **values: Any) -> str:
    """Fill in a template.

    Parameters
    ----------
    template : str
        Its file name.
    *folders : Path
        Where to look for it before the report's own templates.
    **values
        What it shows. A name that the template uses and nobody gives is an error.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, HERE / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"fixed": fixed, "signed": signed, "span": span, "shorten": shorten}
    return environment.get_template(template).render(values)


def fixed(value: float, digits: int = 4) -> str:
    """A number with so many digits after the point."""
    return f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.4f}"


def span(interval: Interval, sign: str = "") -> str:
    """An interval as text."""
    return f"[{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def shorten(name: str, length: int = 22) -> str:
    """Cut a name to ``length`` characters."""
    return name if len(name) <= length else name[: length - 1] + "…"
