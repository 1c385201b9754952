"""Contract tests for methods, exit structures and networks from outside; each raises AssertionError with a reason.

In a test file of one's own:

>>> from offramp.testing import check_backbone, check_branch, check_method
>>> check_method(my_method.build)
>>> check_branch(my_branch.build)
>>> check_backbone(lambda: my_net.build("mynet", classes=10))
"""

from offramp.testing.data import SilentReporter, patterns, small_backbone
from offramp.testing.methods import METHOD_CHECKS, check_method
from offramp.testing.networks import NETWORK_CHECKS, check_backbone, check_branch, check_network

__all__ = [
    "METHOD_CHECKS",
    "NETWORK_CHECKS",
    "SilentReporter",
    "check_backbone",
    "check_branch",
    "check_method",
    "check_network",
    "patterns",
    "small_backbone",
]
