"""Honest scores: nested cross-fitting, paired bootstrap, slices, and what each member adds."""
