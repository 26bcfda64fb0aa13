"""Model in, model out: capture, measure, plan, emit, run, verify, report."""
