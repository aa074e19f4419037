"""Whether the next run of a program should use all threads: not while other programs want the processors.

A thread that is interrupted in the middle of a chunk holds up all others for a time slice of the system, longer than
most runs take. So a run that took far longer than usual is followed by one on the calling thread alone; if that was
faster than the latest runs on all threads, so are the following ones, ever more of them, before all threads get another
chance. Results do not depend on it.
"""

from __future__ import annotations

SLOW = 1.5  # times the usual time: something was in the way
FEW, MANY = 8, 128  # runs alone before all threads are tried again
TRIALS_APART = 32  # runs between two trials on one thread


class Governor:
    """Keeps the times of a program's runs, on all threads and on one."""

    def __init__(self) -> None:
        self._usual = float("inf")  # on all threads, nothing in the way
        self._together = 0.0  # on all threads, lately
        self._alone = 0.0  # on one
        self._runs_alone, self._patience, self._since_trial = 0, FEW, TRIALS_APART

    def wants_threads(self) -> bool:
        """Whether the next run is to use all threads."""
        return self._runs_alone == 0

    def note(self, seconds: float, is_together: bool) -> None:
        """A run took so long."""
        if not is_together:
            self._alone = seconds if not self._alone else self._alone + 0.25 * (seconds - self._alone)
            self._runs_alone -= 1
            if self._runs_alone == 0 and self._together > self._alone:
                if self._since_trial == 0:  # the trial itself: stay alone for a while
                    self._runs_alone, self._since_trial = self._patience, 1
                else:
                    self._together = 0.0  # another chance, judged by its own time
            return
        self._since_trial += 1
        self._usual = min(self._usual * 1.001, seconds)
        self._together = seconds if not self._together else self._together + 0.25 * (seconds - self._together)
        if self._alone and self._together > self._alone:
            self._patience = min(2 * self._patience, MANY)
            self._runs_alone = self._patience
        elif seconds > SLOW * self._usual and self._since_trial > TRIALS_APART:
            self._runs_alone, self._since_trial = 1, 0
        elif seconds < SLOW * self._usual:
            self._patience = FEW
