"""`dnascale doctor`: what this machine can do, tried and not only asked, and how to mend what does not work."""

from dnascale.launch.doctor.examine import Options, checks, run_check
from dnascale.launch.doctor.finding import Finding, Verdict

__all__ = ["Finding", "Options", "Verdict", "checks", "run_check"]
