"""Files kept for later processes of the same user, and the reading of files that anyone may have made."""
