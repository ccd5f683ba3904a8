"""`accelerate launch -m dnascale.train CONFIG key=value…`: the same program as `dnascale train`, one process of many."""

from dnascale.cli import main

if __name__ == "__main__":
    import sys

    main(["train", *sys.argv[1:]])
