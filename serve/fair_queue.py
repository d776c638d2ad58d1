"""Start-time fair queueing: callers that all wait get shares by weight, whoever asks for most.

After Goyal, Vin and Cheng, "Start-time Fair Queuing: A Scheduling Algorithm for Integrated
Services Packet Switching Networks" (SIGCOMM 1996). A flow is all that waits of one turn; an item
of weight w lasts 1/w in virtual time v. The item j of flow f begins at the tag

    S(j) = max(v(arrival of j), S(j - 1) + 1/w),        v = the least tag that waits         (eq. 4)

and the least tag is taken first. So over any time in which two flows wait, the virtual time that
each has had differs by at most one item of each (theorem 1): nobody starves, and who was
away has saved up nothing. Tags are counted in eighths, 1/w is 1 or 8: they are exact.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serve.turn import Priority, Turn

T = TypeVar("T", bound=Hashable)

STRIDES: dict[Priority, int] = {"interactive": 1, "batch": 8}  # 1/w of one item


@dataclass
class _Flow(Generic[T]):
    """What waits of one turn, oldest first, with its numbers of arrival.

    `start` is the tag of the oldest; of a flow that is empty, the least that the next may have.
    """

    stride: int
    start: int
    items: OrderedDict[T, int] = field(default_factory=OrderedDict)

    def rank(self) -> tuple[int, int, int]:
        """That of its oldest item: the tag, then the weight, then who came first."""
        return self.start, self.stride, next(iter(self.items.values()))

    def tagged(self) -> Iterator[tuple[int, int, int, T]]:
        """Its items, each with its rank."""
        for place, (item, number) in enumerate(self.items.items()):
            yield self.start + place * self.stride, self.stride, number, item

    def before(self, start: int, stride: int) -> int:
        """How many of its items come before one that arrives now and has this tag."""
        first_behind = start + (1 if self.stride <= stride else 0)  # at equal tags
        return min(len(self.items), max(0, -((self.start - first_behind) // self.stride)))


class FairQueue(Generic[T]):
    """A queue of hashable items, no two equal. Iteration is in the order in which they leave."""

    def __init__(self) -> None:
        self._flows: dict[Turn, _Flow[T]] = {}
        self._turns: dict[T, Turn] = {}
        self._numbers = itertools.count()
        self._now = 0  # virtual time

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, item: T) -> bool:
        return item in self._turns

    def __iter__(self) -> Iterator[T]:
        for *_, item in heapq.merge(*(flow.tagged() for flow in self._flows.values())):
            yield item

    def put(self, item: T, turn: Turn) -> None:
        """Queue it, behind what waits of its turn."""
        assert item not in self._turns, f"{item!r} waits already"
        flow = self._flows.setdefault(turn, _Flow(STRIDES[turn.priority], self._now))
        if not flow.items:
            flow.start = max(flow.start, self._now)
        flow.items[item] = next(self._numbers)
        self._turns[item] = turn

    def pop(self) -> T | None:
        """The next item, taken; None where nothing waits."""
        flow = min(self._busy(), key=_Flow.rank, default=None)
        if flow is None:
            return None
        item = next(iter(flow.items))
        self.take(item)
        return item

    def take(self, item: T) -> None:
        """Take any item, as served: its caller pays for it as for its oldest."""
        self._now = max(self._now, min(flow.start for flow in self._busy()))
        flow = self._flows[self._turns[item]]
        flow.start += flow.stride
        self.remove(item)

    def remove(self, item: T) -> None:
        """Let an item go that is not served; it costs its caller nothing. Else, no effect."""
        turn = self._turns.pop(item, None)
        if turn is None:
            return
        flow = self._flows[turn]
        del flow.items[item]
        if not self._turns:  # all that wait from now on begin equal
            self._now = max(self._now, *(flow.start for flow in self._flows.values()))
            self._flows.clear()
        elif not flow.items:
            idle = [t for t, f in self._flows.items() if not f.items and f.start <= self._now]
            for each in idle:
                del self._flows[each]

    def ahead(self, turn: Turn, count: int = 1) -> int:
        """How many items would leave before the last of `count` (1 or more) that came now."""
        stride = STRIDES[turn.priority]
        mine = self._flows.get(turn) or _Flow[T](stride, self._now)
        own = len(mine.items) + count - 1
        start = (mine.start if mine.items else max(mine.start, self._now)) + own * stride
        others = (flow for flow in self._flows.values() if flow is not mine)
        return own + sum(flow.before(start, stride) for flow in others)

    def _busy(self) -> list[_Flow[T]]:
        return [flow for flow in self._flows.values() if flow.items]
