"""`python -m dnascale`."""

from dnascale.cli import main

if __name__ == "__main__":
    main()
