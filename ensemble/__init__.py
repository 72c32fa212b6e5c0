"""Blending, stacking, calibration and honest evaluation of prediction sets; needs no torch."""
