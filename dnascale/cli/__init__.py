"""The command line: one thin function a command. Nothing heavy is imported before a command needs it."""

from dnascale.cli.app import main

__all__ = ["main"]
