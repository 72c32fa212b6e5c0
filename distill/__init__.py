"""Backbones, out-of-fold teachers, distilled students and prediction.

``from distill import cross_fit`` and what else ``__all__`` names: see ``__init__.pyi``. Names differ from
those of the modules beside this file (``distill.student`` and ``distill.doctor`` are commands), as an
attribute cannot be both.
"""

import distill.quiet  # noqa: F401  (before any library that it quiets)
from distillstack import face

__all__, __getattr__, __dir__ = face(__name__, __file__)
