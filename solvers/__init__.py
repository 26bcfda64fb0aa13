"""Solvers take a problem and return a schedule; they do not use torch."""
