"""Errors that users meet: one sentence each, with a documented exit code.

A function raises the class that names what is wrong; `cli/app.py` prints the sentence and exits with its code.
"""


class DnascaleError(Exception):
    """Base class. The message is one or two plain sentences: what, where, why it matters, what to do."""

    exit_code = 1
    #: What is printed before the sentence.
    label = "error"
    #: Set when every process of the job raises the same error, so that one of them says it.
    shared = False


class DnascaleWarning(UserWarning):
    """What a user should know of, and what goes on all the same. On the command line a sentence on stderr."""


class UsageError(DnascaleError):
    """A command, an option or a configuration that cannot be carried out."""

    exit_code = 2


class DataError(DnascaleError):
    """Input sequences or shards that are missing, damaged or unusable."""

    exit_code = 3


class CheckpointError(DnascaleError):
    """A checkpoint that is missing, damaged or belongs to something else."""

    exit_code = 4


class SpaceError(DnascaleError):
    """No space left where something must be written."""

    exit_code = 5


class NumericsError(DnascaleError):
    """A loss, gradient or weight that is not finite."""

    exit_code = 6


class PeerError(DnascaleError):
    """A process of the job is lost, late, or not part of the group it should be in."""

    exit_code = 7


class MemoryShortage(DnascaleError):
    """A device, or the host, that has too little memory for the step."""

    exit_code = 8


class Stopped(DnascaleError):
    """A run that was asked to stop, has saved, and is not complete: EX_TEMPFAIL of sysexits.h, which schedulers requeue."""

    exit_code = 75
    label = "stopped"


def kind(error: Exception) -> str:
    """The name of the class of this module that `error` is of, by which another process can raise it."""
    return next((one.__name__ for one in type(error).__mro__ if globals().get(one.__name__) is one), "DnascaleError")


def first_line(error: BaseException) -> str:
    """What a foreign error says, as far as it fits into a sentence: its first line, of 200 characters at most."""
    return str(error).strip().partition("\n")[0][:200]


def printable(text: str) -> str:
    """The same text, in which what moves a terminal's cursor, or is not UTF-8, is escaped."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
