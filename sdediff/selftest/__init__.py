"""The self-test: exact problems against this installation, or against somebody else's sampler, likelihood or bound.

``CHECKS`` lists what is tested: a new check is one file and one line there.
"""

from sdediff.selftest.result import Row, SelfTest
from sdediff.selftest.running import CHECKS, ROLES, run
from sdediff.selftest.targets import BoundsItems, DrawsSamples, ScoresItems

__all__ = ["CHECKS", "ROLES", "BoundsItems", "DrawsSamples", "Row", "ScoresItems", "SelfTest", "run"]
