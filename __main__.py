"""`python -m lowtide` is the command line."""

from .rewriter.cli.main import main

if __name__ == "__main__":
    main()
