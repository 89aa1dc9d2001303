"""The limit in bytes per second: a token bucket with a queue. Times are ``loop.time()``, so a virtual clock works."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush

BURST_SECONDS = 0.125
"""Seconds of bandwidth that an idle bucket saves up; 1.25 % over 10 s."""

PAID_STEP = 1 << 18
"""Bytes of a file that are paid for in one step."""
_BEGUN_RANK = -1
"""Rank of a body that has started: before every lane."""

MIN_TIMER_SECONDS = 0.002
"""Shortest timer in seconds: one serves many small bodies."""


class _Payment:
    __slots__ = ("future", "need")

    def __init__(self, future: asyncio.Future[None], need: float) -> None:
        self.future = future
        self.need = need


class Bandwidth:
    """A token bucket with a queue: started bodies first, then by lane, then in order.

    Bodies are paid for one after the other, not all a little at a time. That keeps the wire evenly busy and no request
    stalls for long: a store cuts stalled requests (S3 after 20 s).
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = 0.0
        self._filled: float | None = None
        self._heap: list[tuple[int, int, _Payment]] = []
        self._order = 0
        self._timer: asyncio.TimerHandle | None = None

    def turn(self) -> int:
        """A place in the queue."""
        self._order += 1
        return self._order

    async def pay(self, nbytes: int, rank: int, turn: int) -> None:
        loop = asyncio.get_running_loop()
        self._fill(loop.time())
        payment = _Payment(loop.create_future(), nbytes)
        heappush(self._heap, (rank, turn, payment))
        self._serve(loop)
        try:
            await payment.future
        except BaseException:
            self._refund(payment, nbytes, loop)
            raise

    def _refund(self, payment: _Payment, nbytes: int, loop: asyncio.AbstractEventLoop) -> None:
        """A cancelled payment returns its tokens; nothing of its body was sent."""
        self._tokens += nbytes - max(payment.need, 0.0)
        payment.need = 0.0
        self._serve(loop)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        self._fill(loop.time())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap:
            payment = self._heap[0][2]
            if not payment.future.done():
                used = min(self._tokens, payment.need)
                self._tokens -= used
                payment.need -= used
                if payment.need > 1e-6:
                    self._timer = loop.call_later(max(payment.need / self._rate, MIN_TIMER_SECONDS), self._serve, loop)
                    return
                payment.need = 0.0
                payment.future.set_result(None)
            heappop(self._heap)

    def _fill(self, now: float) -> None:
        if self._filled is None:
            self._filled = now
        earned = (now - self._filled) * self._rate
        self._filled = now
        # Only an idle bucket is capped: a waiting payment may need more than a burst.
        self._tokens = self._tokens + earned if self._heap else min(self._tokens + earned, self._rate * BURST_SECONDS)


class Payer:
    """Pays for one body step by step, so that a large one keeps the limit too. A started body precedes all that have
    not started, whatever their lane. ``prepaid``: bytes that were paid for before its request."""

    __slots__ = ("_bandwidth", "_prepaid", "_turn")

    def __init__(self, bandwidth: Bandwidth | None, prepaid: int) -> None:
        self._bandwidth, self._prepaid = bandwidth, prepaid
        self._turn = 0

    async def pay(self, nbytes: int) -> None:
        """Wait until the next ``nbytes`` may be moved."""
        free = min(self._prepaid, nbytes)
        self._prepaid -= free
        if self._bandwidth is not None and nbytes > free:
            self._turn = self._turn or self._bandwidth.turn()
            await self._bandwidth.pay(nbytes - free, _BEGUN_RANK, self._turn)
