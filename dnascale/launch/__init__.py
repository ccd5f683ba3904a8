"""Starting a run on the machine at hand, and saying what that machine can do."""
