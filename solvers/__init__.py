"""Problem in, schedule out: no torch in here."""
