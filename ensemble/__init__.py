"""Blending, stacking, calibration and honest evaluation of prediction sets; needs no torch.

``from ensemble import blend`` and what else ``__all__`` names: see ``__init__.pyi``.
"""

from distillstack import face

__all__, __getattr__, __dir__ = face(__name__, __file__)
