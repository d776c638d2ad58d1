"""Threads that compute give way to the one that answers.

The model takes all cores for as long as it runs. At equal priority the event loop would get its
share late: under overload it could not even refuse in time, and what was accepted would be late.
"""

import os
import sys

STEPS = 3  # of niceness: about half of the share of the event loop, where both want more (sched(7))


def give_way() -> None:
    """Lower the priority of this thread, and of those that it starts from now on; Linux only.

    The system's calls are for processes, but on Linux they are obeyed for each thread.
    """
    if sys.platform == "linux":
        os.nice(STEPS)
