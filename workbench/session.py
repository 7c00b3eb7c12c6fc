"""One live routine: play, pause, step, back, seek to any step, turn hyperparameters while it moves, branch, script.

Exact: going back restores the nearest earlier snapshot and replays with the edit log, to the same bits.
"""

import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench import record as records
from workbench.rollout import Collector, advance, as_key, pick_probes, runs_of
from workbench.routine import Key, Routine, status, unknown, whole
from workbench.script import session_lines, write_script
from workbench.timeline import Edit, Snapshots, Timeline
from workbench.tree import own

BUDGET = 256 * 2**20
SLICE = 0.008
"""Seconds a playing session works before it lets others speak and tells its listeners."""
LATE = 0.25
"""Seconds a playing session may fall behind its speed and catch up; what is beyond that is let go."""

_log = logging.getLogger(__name__)
_threads: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()
_leaving = threading.Event()


@atexit.register
def _leave() -> None:
    """End what still plays before the interpreter goes: a thread inside torch would abort the process."""
    _leaving.set()
    for thread in list(_threads):
        thread.join(5)


class Session:
    """One live routine.

    Args:
        routine: what moves.
        seed: one whole number, or one a run.
        start: where it begins; the problem's own start when None. A leading run axis gives several runs.
        hyper: first values by name; one with a leading run axis gives several runs.
        probes: further measurements for `record`, by name or as `Probe`.
        budget: bytes of snapshots; older ones thin out, and every step can still be reached.
        device: where it runs; the routine's own when None.

    Raises:
        ValueError: on unknown or out-of-range hyperparameters, or runs that disagree.
    """

    def __init__(
        self,
        routine: Routine,
        *,
        seed: int | Sequence[int] = 0,
        start: Any = None,
        hyper: Mapping[str, Any] | None = None,
        probes: Sequence[Any] = (),
        budget: int = BUDGET,
        device: Any = None,
    ) -> None:
        self.routine: Any = routine.to(device)
        self._key = as_key(seed)
        self.seed, self.start, self.probes = self._key.seed, own(start), pick_probes(routine, probes)
        self.first = own(dict(hyper or {}))
        self.budget = budget
        runs = runs_of(start, hyper, self.seed, routine.start_dims)
        state = self.routine.init(self._key.stream("init"), start=self.start, runs=runs)
        self._runs = self.routine.runs(state)
        self.routine.normalise(self.first, runs=self._runs)
        self._now = (0, state)
        self._timeline = Timeline(Snapshots(budget))
        self._timeline.snapshots.put(0, state)
        self.others: list[Timeline] = []
        self._set_up()

    def _set_up(self) -> None:
        self._lock, self._counting, self._waiting = threading.RLock(), threading.Lock(), 0
        self._thread: threading.Thread | None = None
        self._playing = False
        self._speed: float | None = None
        self._until: int | None = None
        self._listeners: list[Callable[[Session], None]] = []
        self._ready: tuple[int, int, dict] | None = None
        self.last_info: dict = {}
        self.closed = False
        self.stopped = ""
        self.seconds_per_step = 0.0

    # ---- what is

    @property
    def index(self) -> int:
        """Steps made up to where the session stands."""
        return self._now[0]

    @property
    def state(self) -> Any:
        """The state where the session stands; immutable."""
        return self._now[1]

    @property
    def now(self) -> tuple[int, Any]:
        """(index, state), taken together: a consistent pair even while it plays."""
        return self._now

    @property
    def key(self) -> Key:
        """The key all of its randomness comes from."""
        return self._key

    @property
    def head(self) -> int:
        """The furthest step this line of time has reached."""
        return self._timeline.head

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edit log of this line of time, by step."""
        return tuple(self._timeline.edits)

    @property
    def hyper(self) -> dict[str, Any]:
        """Hyperparameters in force for the next step."""
        return self._given(self.index)

    @property
    def playing(self) -> bool:
        """Whether it moves by itself now."""
        return self._playing

    @property
    def status(self) -> list[str]:
        """Each run's status in words: "ok" or "diverged at step k"."""
        return [status(int(step)) for step in self.state.diverged.tolist()]

    def trace(self, since: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(steps, {name: (steps, runs)}): what each step from `since` on measured, of this line of time to its head."""
        with self._turn():
            return self._timeline.trace.since(since) if since else self._timeline.trace.arrays()

    def kept(self, since: int = 0) -> list[tuple[int, Any]]:
        """(step, state) of the snapshots of this line of time from step `since` on; older ones have thinned out."""
        with self._turn():
            return self._timeline.snapshots.since(since)

    def worst_seek(self) -> float:
        """Seconds the slowest seek would take: the widest gap between snapshots times the time of a step."""
        with self._turn():
            return self._timeline.snapshots.widest_gap() * self.seconds_per_step

    # ---- moving

    def step(self, n: int = 1) -> "Session":
        """Make n steps forward (replaying what was lived before, to the same bits)."""
        with self._turn():
            self._check_open()
            self._run(whole("n", n))
        return self

    def back(self, n: int = 1) -> "Session":
        """Go n steps back, at most to step 0."""
        with self._turn():
            return self.seek(max(0, self.index - whole("n", n)))

    def seek(self, step: int) -> "Session":
        """Go to any step: back to one already lived, or forward by making the steps in between."""
        with self._turn():
            self._check_open()
            target = whole("step", step)
            if target != self.index:
                at, state = self._timeline.snapshots.nearest(target)
                if not at <= self.index <= target:
                    self._now = (at, state)
                self._run(target - self.index)
        return self

    def set(self, **hyper: Any) -> "Session":
        """Turn hyperparameters from the next step on. In the past this branches: the old future is kept in `others`.

        Raises:
            ValueError: on an unknown or out-of-range hyperparameter; nothing changes then.
        """
        with self._turn():
            self._check_open()
            checked = {name: self._checked(name, value) for name, value in hyper.items()}
            changed = {name: hyper[name] for name, value in checked.items() if not _equal(value, self.hyper[name])}
            self.routine.normalise({**self.hyper, **changed}, runs=self._runs)
            if not changed:
                return self
            if self.index < self.head:
                self.others.append(self._timeline.shelved())
                self._timeline = self._timeline.upto(self.index)
            for name, value in changed.items():
                self._timeline.edit(Edit(self.index, name, records.plain(value)))
            self._ready = None
        return self

    def branch(self) -> "Session":
        """A new session that shares this one's past up to here, and from here on goes its own way."""
        with self._turn():
            self._check_open()
            twin = object.__new__(type(self))
            for name in ("routine", "seed", "start", "probes", "first", "budget", "_key", "_runs", "_now"):
                setattr(twin, name, getattr(self, name))
            twin._timeline, twin.others = self._timeline.upto(self.index), []
            twin._set_up()
            return twin

    # ---- playing

    def play(self, speed: float | None = None, *, until: int | None = None) -> "Session":
        """Move by itself on a daemon thread, at `speed` steps a second (as fast as it goes when None), up to `until`.

        It stops by itself when every run has diverged or a step fails; `stopped` then says why.
        """
        if speed is not None and not speed > 0:
            raise ValueError(f"expected speed to be above 0 steps a second, got {speed!r}")
        with self._turn():
            self._check_open()
            self._speed, self._until, self.stopped = speed, None if until is None else whole("until", until), ""
            if not self._playing:
                self._playing = True
                self._thread = threading.Thread(target=_play, args=(weakref.ref(self),), daemon=True, name="session")
                _threads.add(self._thread)
                self._thread.start()
        return self

    def pause(self) -> "Session":
        """Stop moving; returns once the step under way is finished."""
        self._playing = False
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        return self

    def listen(self, callback: Callable[["Session"], None]) -> Callable[[], None]:
        """Call `callback(session)` from the playing thread after each slice of work; returns what ends that.

        A callback that raises is logged and not called again.
        """
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback) if callback in self._listeners else None

    def close(self) -> None:
        """Stop and let go of everything held; the state stays readable."""
        self.pause()
        with self._turn():
            self.closed = True
            self._listeners.clear()
            self.others.clear()
            self._timeline = Timeline(Snapshots(self.budget), list(self._timeline.edits), self.index)
            self._timeline.snapshots.put(self.index, self.state)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- keeping

    def record(self, *, every: int = 1, watch: Callable[[float], None] | None = None) -> xr.Dataset:
        """The run from step 0 to here as a record, by replaying it with its edits.

        Args:
            every: one frame in so many steps is kept.
            watch: called before each step with the share replayed, 0 to 1; what it raises ends the replay.
        """
        with self._turn():
            collected = Collector(self.routine, self.probes, every)
            state = self.routine.init(self._key.stream("init"), start=self.start, runs=self._runs)
            line, end = self._timeline.upto(self.index), self.index
        hyper_at = _cached(lambda k: self.routine.normalise({**self.first, **line.in_force(k)}), line)

        def watched(k: int) -> dict:
            if watch is not None:
                watch(k / end)
            return hyper_at(k)

        final = collected.run(state, watched, self._key, 0, end)
        given = {"seed": self.seed, "start": self.start, "hyper": self.first, "edits": line.edits}
        return records.build(self.routine, collected, final, {**given, "steps": end, "mode": "eager"})

    def script(self) -> str:
        """A short plain-Python script that makes this run again, edits included, to the same bits."""
        with self._turn():
            return write_script(self.routine, *self._given_at_first(), self._timeline.edits, self.index)

    def lines(self, routine: str, name: str, *, end: int) -> str:
        """The part of `script` that makes the routine and the session, up to step `end`, for scripts that go on."""
        with self._turn():
            given = self._given_at_first()
            made = session_lines(routine, name, self.routine, *given, self._timeline.edits, end)
            return "\n".join(line for line in (self.routine.setup(), *made) if line)

    def _given_at_first(self) -> tuple[Any, Any, dict]:
        return self.seed, self.start, self.first

    # ---- inside

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the session; a playing one lets go at its next step."""
        with self._counting:
            self._waiting += 1
        try:
            self._lock.acquire()
        finally:
            with self._counting:
                self._waiting -= 1
        try:
            yield
        finally:
            self._lock.release()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("expected an open session, got one that was closed; make a new one")

    def _run(self, n: int) -> None:
        began = time.perf_counter()
        for _ in range(n):
            if self._arrived():
                break
            self._forward()
        if n:
            self.seconds_per_step = (time.perf_counter() - began) / n

    def _given(self, k: int) -> dict[str, Any]:
        return {**records.defaults(self.routine), **self.first, **self._timeline.in_force(k)}

    def _hyper_at(self, k: int) -> dict[str, Any]:
        """Normalised hyperparameters of the step from k, kept until the next edit's step."""
        if self._ready is None or not self._ready[0] <= k < self._ready[1]:
            steps = sorted({0, *(edit.step for edit in self._timeline.edits)})
            since = max(step for step in steps if step <= k)
            until = min((step for step in steps if step > k), default=2**62)
            self._ready = (since, until, self.routine.normalise(self._given(k), runs=self._runs))
        return self._ready[2]

    def _forward(self) -> None:
        k, state = self._now
        state, info = advance(self.routine, state, self._hyper_at(k), self._key, k)
        line = self._timeline
        line.trace.put(k, self.routine.measure(info))
        line.snapshots.put(k + 1, state)
        line.head = max(line.head, k + 1)
        self.last_info, self._now = info, (k + 1, state)

    def _checked(self, name: str, value: Any) -> Any:
        if name not in self.routine.hypers:
            raise unknown("a hyperparameter", name, self.routine.hypers)
        return self.routine.hypers[name].check(value)

    def _arrived(self) -> bool:
        """Whether every run of the routine has come to its own end: no further step changes anything."""
        done = self.routine.done(self.state)
        return done is not None and bool(done.all())

    def _slice(self, began: float, made: int) -> int:
        """Work for one slice of time; returns the number of steps made."""
        start, n = time.perf_counter(), 0
        while self._playing and not self._waiting:
            if self._until is not None and self.index >= self._until:
                self._playing, self.stopped = False, f"reached step {self._until}"
                break
            if self._arrived():
                self._playing, self.stopped = False, f"arrived at step {self.index}"
                break
            now = time.perf_counter()
            if now - start > SLICE or (self._speed and made + n >= (now - began) * self._speed):
                break
            self._forward()
            n += 1
        if n:
            self.seconds_per_step = (time.perf_counter() - start) / n
            if self._playing and bool((self.state.diverged >= 0).all()):
                last = int(self.state.diverged.max())
                words = status(last) if self._runs == 1 else f"every run diverged, the last at step {last}"
                self._playing, self.stopped = False, f"stopped: {words}"
        return n

    def _tell(self) -> None:
        for callback in list(self._listeners):
            try:
                callback(self)
            except Exception:  # noqa: BLE001 - a view that fails must not stop what it looks at
                _log.exception("a listener of a session failed and is not called again")
                with contextlib.suppress(ValueError):
                    self._listeners.remove(callback)


def _play(reference: "weakref.ref[Session]") -> None:
    """The playing thread: holds the session only while it works, so that a forgotten one can go."""
    began, made, speed = time.perf_counter(), 0, None
    while True:
        session = reference()
        if session is None or session._thread is not threading.current_thread() or _leaving.is_set():
            return
        if not session._playing:
            session._tell()
            return
        if session._waiting:
            time.sleep(0.0002)
            continue
        n = 0
        with session._lock:
            now = time.perf_counter()
            if session._speed != speed or (speed and (now - began) * speed > made + 1 + LATE * speed):
                began, made, speed = now, 0, session._speed
            try:
                n = session._slice(began, made)
            except Exception as error:  # noqa: BLE001 - whatever somebody's own model raises, the reason is said
                _log.warning("a playing session stopped", exc_info=True)
                session._playing, session.stopped = False, f"stopped: {type(error).__name__}: {error}"
        made += n
        if n:
            session._tell()
        del session
        time.sleep(0 if n else _rest(began, made, speed))


def _rest(began: float, made: int, speed: float | None) -> float:
    """Seconds until the next step is due, 1 to 5 ms: looking more often takes time from other threads."""
    due = (made + 1) / speed - (time.perf_counter() - began) if speed else 0.0
    return min(max(due, 0.001), 0.005)


def _cached(make: Callable[[int], dict], line: Timeline) -> Callable[[int], dict]:
    """`make(k)`, computed once for each stretch between two edits."""
    known: dict[int, dict] = {}

    def at(k: int) -> dict:
        since = max((edit.step for edit in line.edits if edit.step <= k), default=0)
        if since not in known:
            known[since] = make(k)
        return known[since]

    return at


def _equal(value: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(value), np.asarray(other)))
