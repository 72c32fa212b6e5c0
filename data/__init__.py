"""Rows, sources, folds, templates, encoding and the soft-label store; needs no torch.

``from data import prepare_rows`` and what else ``__all__`` names: see ``__init__.pyi``. Names differ from
those of the modules beside this file (``data.prepare`` is the command), as an attribute cannot be both.
"""

from distillstack import face

__all__, __getattr__, __dir__ = face(__name__, __file__)
