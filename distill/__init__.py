"""Backbones, out-of-fold teachers, distilled students and prediction."""
