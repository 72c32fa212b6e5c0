"""Checks that tell, in minutes, whether the plumbing is broken."""
