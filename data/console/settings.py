"""YAML files that a user wrote or a run left: read as data, which decide nothing beyond themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data.errors import UserError, brief
from data.files import require_file

DEEPEST = 50
"""Levels of a YAML file."""
_RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)


def load_yaml(path: Path, what: str) -> Any:
    """Read a YAML file into an OmegaConf container, in which no resolver is called.

    ``${data.seed}`` names another value of the file and is fine; ``${oc.env:TOKEN}`` would print a secret of
    whoever runs a recipe that somebody else wrote.

    Raises
    ------
    UserError
        The file is missing, nested too deeply, or calls a resolver.
    omegaconf.errors.OmegaConfBaseException, yaml.YAMLError, ValueError, OSError, RecursionError
        It is damaged; the caller knows how to say that.
    """
    from omegaconf import OmegaConf

    _refuse_depth(require_file(path, what))
    found = OmegaConf.load(path)
    refuse_resolvers(found, str(path))
    return found


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file into plain Python; a missing, damaged or cyclic one is a user's mistake."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return OmegaConf.to_container(load_yaml(path, what), resolve=True)
    except (YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: not a readable YAML file ({brief(reason)})") from error


def _refuse_depth(path: Path) -> None:
    """Refuse nesting that the library's parser, written in C, would overflow the stack with."""
    import yaml

    depth = 0
    with open(path, encoding="utf-8") as file:
        for event in yaml.parse(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError(f"{path}: is nested more than {DEEPEST} levels deep; make it flatter")


def refuse_resolvers(container: Any, where: str) -> None:
    """Raise :class:`UserError`, naming the key but not the value, where a text calls a resolver."""
    from omegaconf import OmegaConf

    left: list[tuple[str, Any]] = [("", OmegaConf.to_container(container, resolve=False))]
    while left:
        at, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{at}.{key!s}".lstrip("."), part) for key, part in value.items()]
            left += [(at, key) for key in value]
        elif isinstance(value, list):
            left += [(f"{at}[{number}]", part) for number, part in enumerate(value)]
        elif isinstance(value, str) and _RESOLVER.search(value):
            raise UserError(f"{where}: {at} calls a resolver (${{name:...}}); write the value itself")
