"""What came of a promise that was checked, and the exit code that tells a shell: one table for all commands.

kept          0   what was asked holds here
broken        1   something does not hold; also every other error
(usage)       2   the command line was not understood
inconclusive  3   nothing is proven: the machine was busy, or an interval lies on both sides of a limit
unmeasured    4   energy cannot be measured as promised here: no counter, other hardware, other tier or boundary
"""

from collections.abc import Iterable
from typing import Literal, get_args

Outcome = Literal["kept", "inconclusive", "unmeasured", "broken"]  # from best to worst
EXIT_CODES: dict[Outcome, int] = {"kept": 0, "broken": 1, "inconclusive": 3, "unmeasured": 4}


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The one that decides. `unmeasured` goes before `inconclusive`: another machine is wanted before another try."""
    order: tuple[Outcome, ...] = get_args(Outcome)
    return max(outcomes, key=order.index, default="kept")
