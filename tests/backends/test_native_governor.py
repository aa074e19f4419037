"""The governor: all threads while that is fast, one while other programs are in the way, and back again."""

from __future__ import annotations

from minidl.backends.cpu.native.governor import FEW, MANY, TRIALS_APART, Governor


def played(governor, together, alone, runs):
    """How many of these runs used all threads, each taking so many seconds on all threads or on one."""
    count = 0
    for i in range(runs):
        is_together = governor.wants_threads()
        count += is_together
        governor.note(together(i) if is_together else alone, is_together)
    return count


def test_quiet_machine_uses_all_threads():
    assert played(Governor(), lambda i: 2.0 + 0.1 * (i % 3), 4.0, 1000) == 1000


def test_a_single_slow_run_costs_one_trial():
    governor = Governor()
    assert played(governor, lambda i: 20.0 if i == 200 else 2.0, 4.0, 400) >= 400 - 1 - FEW


def test_threads_that_are_in_each_others_way_are_left_alone():
    governor = Governor()
    played(governor, lambda i: 2.0, 4.0, 100)
    played(governor, lambda i: 9.0 if i % 2 else 3.0, 4.0, 300)  # the mean is more than one thread takes
    assert played(governor, lambda i: 9.0 if i % 2 else 3.0, 4.0, 1000) < 1000 * 3 / FEW


def test_all_threads_return_when_the_others_are_gone():
    governor = Governor()
    played(governor, lambda i: 2.0, 4.0, 100)
    played(governor, lambda i: 9.0, 4.0, 500)
    played(governor, lambda i: 2.0, 4.0, 2 * MANY)
    assert played(governor, lambda i: 2.0, 4.0, 200) == 200


def test_trials_are_rare():
    governor = Governor()
    played(governor, lambda i: 2.0, 4.0, 100)
    # every fourth run is slow, but all threads are faster than one all the same
    assert played(governor, lambda i: 4.5 if i % 4 == 0 else 2.0, 4.0, 1000) >= 1000 - 2 * 1000 // TRIALS_APART
