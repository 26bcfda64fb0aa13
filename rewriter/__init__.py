"""Rewrites a model in stages: capture, measure, plan, emit, run, verify and report."""
