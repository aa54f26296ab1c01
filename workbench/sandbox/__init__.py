"""Where model-written code runs: a process of its own, with limits, without a network, and away from your files.

>>> from workbench.sandbox import Limits, run
>>> run("while True: pass", limits=Limits(seconds=0.5)).status
'timeout'

``docs/sandbox.md`` says what is enforced, how, and what is not.
"""

from workbench.sandbox.ability import protections
from workbench.sandbox.caller import run
from workbench.sandbox.limits import Limits, Report, SandboxUnavailable

__all__ = ["Limits", "Report", "SandboxUnavailable", "protections", "run"]
