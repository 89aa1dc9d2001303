"""When trees are synced. The schedule is pure: time is an argument."""

from hypothesis import example, given
from hypothesis import strategies as st

from asyncsync.planning.schedule import Schedule


def started(schedule: Schedule[str], now: float) -> list[str]:
    names = []
    while (due := schedule.pop_due(now)) is not None:
        names.append(due[0])
    return names


def test_the_first_sync_is_at_once() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 100.0, period=300)
    assert started(schedule, 100.0) == ["a"]


def test_periods_run_start_to_start() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=300)
    started(schedule, 0.0)
    schedule.finished("a", 250.0, ok=True)
    assert schedule.next_time() == 300.0


def test_a_sync_longer_than_its_period_is_followed_at_once_by_the_next() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=10)
    started(schedule, 0.0)
    schedule.finished("a", 25.0, ok=True)
    assert started(schedule, 25.0) == ["a"]


def test_one_sync_at_a_time() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=1)
    started(schedule, 0.0)
    schedule.request("a", 5.0, force=True)
    assert started(schedule, 5.0) == []


def test_a_hundred_requests_during_a_sync_give_one_more() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=300, periodic=False)
    schedule.request("a", 0.0, force=True)
    started(schedule, 0.0)
    for index in range(100):
        schedule.request("a", 1.0 + index / 1000, force=index % 2 == 0)
    schedule.finished("a", 2.0, ok=True)
    assert started(schedule, 2.0) == ["a"]
    schedule.finished("a", 3.0, ok=True)
    assert schedule.next_time() is None


def test_an_unforced_request_waits_for_its_period() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=300, periodic=False)
    schedule.request("a", 0.0)
    started(schedule, 0.0)
    schedule.finished("a", 1.0, ok=True)
    schedule.request("a", 2.0)
    assert schedule.next_time() == 300.0


def test_a_forced_sync_does_not_wait_but_counts() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=300)
    started(schedule, 0.0)
    schedule.finished("a", 1.0, ok=True)
    schedule.request("a", 100.0, force=True)
    assert schedule.pop_due(100.0) == ("a", True)
    schedule.finished("a", 101.0, ok=True)
    assert schedule.next_time() == 400.0


def test_a_failed_sync_does_not_cost_a_whole_period() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=300)
    waits = []
    now = 0.0
    for _ in range(8):
        assert started(schedule, now) == ["a"]
        schedule.finished("a", now, ok=False)
        when = schedule.next_time()
        assert when is not None
        waits.append(when - now)
        now = when
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_success_ends_the_backoff() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=300)
    started(schedule, 0.0)
    schedule.finished("a", 0.0, ok=False)
    started(schedule, 1.0)
    schedule.finished("a", 1.0, ok=True)
    assert schedule.next_time() == 301.0


def test_period_zero_still_syncs_one_at_a_time() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=0, periodic=False)
    schedule.request("a", 0.0)
    started(schedule, 0.0)
    schedule.finished("a", 0.5, ok=True)
    schedule.request("a", 0.5)
    assert started(schedule, 0.5) == ["a"]


def test_a_removed_tree_is_never_started() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=1)
    schedule.remove("a")
    assert started(schedule, 10.0) == []
    schedule.finished("a", 11.0, ok=True)


def test_trees_start_in_the_order_in_which_they_are_due() -> None:
    schedule: Schedule[str] = Schedule()
    for name, now in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        schedule.add(name, now, period=100)
    assert started(schedule, 3.0) == ["b", "c", "a"]


@example([("ask", 0.0), ("ask", 0.0), ("fail", 0.0), ("ask", 1.0)])
@given(st.lists(st.tuples(st.sampled_from(["ask", "force", "step", "end", "fail"]), st.floats(0, 20)), max_size=60))
def test_unforced_starts_keep_their_distance_and_no_request_is_lost(steps: list[tuple[str, float]]) -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0.0, period=10, periodic=False)
    now, last, running, wanted = 0.0, float("-inf"), False, False
    failures, again = 0, float("inf")  # how many in a row, and from when on a failed one may be tried again
    for verb, wait in steps:
        now += wait
        if verb in ("ask", "force"):
            schedule.request("a", now, force=verb == "force")
            wanted = True
        elif verb in ("end", "fail") and running:
            schedule.finished("a", now, ok=verb == "end")
            running = False
            failures = failures + 1 if verb == "fail" else 0
            again = now + min(2.0 ** (failures - 1), 60) if failures else float("inf")
        due = schedule.pop_due(now)
        if due is not None:
            assert not running
            assert wanted
            assert due[1] or now - last >= 10 - 1e-9 or now >= again - 1e-9
            last, running, wanted = now, True, False
    if running:
        schedule.finished("a", now, ok=True)
    assert (schedule.next_time() is not None) == wanted


def test_forgiving_failures_names_the_waiting_trees_so_they_can_hasten() -> None:
    schedule: Schedule[str] = Schedule()
    for key in ("waits", "runs", "well"):
        schedule.add(key, 0.0, period=1000)
    for now in range(0, 70, 1):
        for key in started(schedule, float(now)):
            if key != "runs" or now < 20:
                schedule.finished(key, float(now), ok=key == "well")
    assert schedule.is_running("runs")
    assert schedule.next_time() > 80
    assert schedule.failed == 2
    assert schedule.forgive(10) == ["waits"]
    assert schedule.failed == 0
    schedule.hasten("waits", 71.5)
    assert schedule.next_time() == 71.5
    schedule.hasten("waits", 300.0)
    assert schedule.next_time() == 71.5
    schedule.finished("runs", 70.0, ok=False)  # it began before: its failure does not count
    assert schedule.backoff("runs") == 1.0
    assert schedule.next_time() == 71.0


def test_failures_are_forgiven_in_portions() -> None:
    schedule: Schedule[int] = Schedule()
    for key in range(5):
        schedule.add(key, 0.0, period=1000)
        schedule.pop_due(0.0)
        schedule.finished(key, 0.0, ok=False)
    schedule.remove(1)
    assert schedule.forgive(2) == [0, 2]
    assert schedule.forgive(2) == [3, 4]
    assert schedule.forgive(2) == []
