"""Passes over FX graphs, the step graph, and building the scheduling problem from it."""
