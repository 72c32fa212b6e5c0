"""Blends, stackers and calibrations: public estimators over log-probabilities of members."""
