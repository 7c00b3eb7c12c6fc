"""When frames leave: with a clock that only the test moves, and a host that runs what it is told when the test says."""

import heapq
import random
import threading

import pytest

from widgets.player.feed import Feed
from widgets.player.frames import Frame, Scene, decode


class Host:
    """A loop and a clock by hand. `sent` lists (kind, step, seq) in the order delivered."""

    def __init__(self, **options):
        self.now, self.queue, self.timers, self.sent = 0.0, [], [], []
        self.feed = Feed(self.deliver, self.queue.append, self.later, clock=lambda: self.now, **options)

    def deliver(self, scene, frame):
        for message in filter(None, (scene, frame)):
            header = decode(message)[0]
            self.sent.append((header["kind"], header.get("step"), header["seq"]))

    def later(self, seconds, call):
        heapq.heappush(self.timers, (self.now + seconds, len(self.timers), call))

    def run(self):
        while self.queue:
            self.queue.pop(0)()

    def advance(self, seconds):
        end = self.now + seconds
        self.run()
        while self.timers and self.timers[0][0] <= end:
            self.now, _, call = heapq.heappop(self.timers)
            call()
            self.run()
        self.now = end

    def show(self, step):
        self.feed.show(frame=Frame(step))
        self.run()

    @property
    def steps(self):
        return [step for kind, step, _ in self.sent if kind == "frame"]


@pytest.fixture
def host():
    host = Host()
    host.feed.ready("a")
    return host


def test_two_frames_are_in_flight_and_the_newest_replaces_what_waits(host):
    for step in range(1, 8):
        host.show(step)
    assert host.steps == [1, 2]
    host.feed.acknowledge("a", 1)
    host.run()
    assert host.steps == [1, 2, 7]
    assert host.feed.counts.replaced == 4


def test_an_acknowledgement_covers_all_before_it(host):
    host.show(1)
    host.show(2)
    host.feed.acknowledge("a", 2)
    host.show(3)
    host.show(4)
    host.show(5)
    assert host.steps == [1, 2, 3, 4]


def test_idle_says_whether_a_frame_would_leave_at_once(host):
    assert host.feed.idle
    host.show(1)
    host.show(2)
    assert not host.feed.idle
    host.feed.acknowledge("a", 1)
    assert host.feed.idle
    assert host.feed.drawn == 1


def test_lost_acknowledgements_never_freeze_and_the_last_frame_arrives(host):
    for step in range(1, 6):
        host.show(step)
    host.advance(0.9)
    assert host.steps == [1, 2]
    host.advance(0.2)
    assert host.steps == [1, 2, 5]
    assert host.feed.counts.silent >= 1
    host.feed.acknowledge("a", 3)
    for step in (6, 7, 8):
        host.show(step)
    assert host.steps == [1, 2, 5, 6, 7]


def test_a_silent_browser_gets_one_frame_a_time_out(host):
    for step in range(1000):
        host.show(step)
        host.advance(0.01)
    assert 2 + 8 <= len(host.steps) <= 2 + 10


def test_without_a_view_frames_trickle_and_a_view_that_appears_gets_the_latest():
    host = Host()
    host.feed.show(scene=Scene(title="s"))
    host.run()
    for step in range(5):
        host.show(step)
    assert host.sent == [("scene", None, 1)]
    host.feed.ready("late", seen=0)
    host.run()
    assert host.sent[1:] == [("scene", None, 2), ("frame", 4, 2)]


def test_a_kernel_that_hears_nothing_still_plays_and_one_that_nobody_watches_goes_slowly():
    host = Host(quick=0.1)
    for step in range(200):
        host.show(step)
        host.advance(0.01)
    assert 19 <= len(host.steps) <= 21
    host.feed.ready("a", seen=host.sent[-1][2])
    host.feed.gone("a")
    before = len(host.steps)
    for step in range(200, 400):
        host.show(step)
        host.advance(0.01)
    assert len(host.steps) - before <= 3


def test_a_slow_network_is_not_flooded():
    host, answers = Host(quick=0.1), []
    host.feed.ready("a")
    for step in range(1000):
        host.show(step)
        while len(answers) < len(host.sent):
            answers.append((max(host.now, answers[-1][0] if answers else 0) + 0.3, host.sent[len(answers)][2]))
        for _, seq in [a for a in answers if host.now - 0.01 < a[0] <= host.now]:
            host.feed.acknowledge("a", seq)
        host.advance(0.01)
        waiting = sum(at > host.now for at, _ in answers)
        assert waiting <= 5, "the line fills up"
    assert len(host.steps) >= 25, "the line is used"


def test_a_view_that_has_seen_the_latest_is_sent_nothing_again():
    host = Host()
    host.show(1)
    host.feed.ready("a", seen=1)
    host.run()
    assert host.steps == [1]


def test_the_slowest_of_two_views_sets_the_pace_until_it_falls_silent(host):
    host.feed.ready("b")
    for step in range(1, 5):
        host.show(step)
        host.feed.acknowledge("a", step)
        host.run()
    assert host.steps == [1, 2]
    host.advance(1.1)
    assert host.steps == [1, 2, 4]
    host.feed.acknowledge("a", 3)
    host.show(5)
    host.feed.acknowledge("a", 4)
    host.show(6)
    assert host.steps == [1, 2, 4, 5, 6], "a silent view must not hold the other back"


def test_a_view_that_is_gone_holds_nothing_back(host):
    host.feed.ready("b")
    for step in (1, 2, 3):
        host.show(step)
    host.feed.acknowledge("a", 2)
    host.feed.gone("b")
    host.run()
    assert host.steps == [1, 2, 3]


def test_closed_feeds_send_nothing(host):
    host.show(1)
    host.feed.close()
    host.show(2)
    host.advance(5)
    assert host.steps == [1]


def test_flush_sends_what_waits_without_room(host):
    for step in (1, 2, 3):
        host.show(step)
    host.feed.flush()
    assert host.steps == [1, 2, 3]


def test_a_call_that_went_with_its_page_is_asked_for_again(host):
    host.feed.show(frame=Frame(1))
    host.queue.clear()
    host.show(2)
    assert host.steps == []
    host.feed.resume()
    host.run()
    assert host.steps == [2]


def test_a_timer_that_went_with_its_page_is_set_again(host):
    for step in (1, 2, 3):
        host.show(step)
    host.timers.clear()
    host.advance(5)
    assert host.steps == [1, 2]
    host.feed.resume()
    host.advance(5)
    assert host.steps == [1, 2, 3]


def test_a_lying_browser_cannot_acknowledge_the_future(host):
    host.feed.acknowledge("a", 10**9)
    host.show(1)
    host.show(2)
    host.show(3)
    assert host.steps == [1, 2]


def test_random_traffic_never_has_more_than_two_in_flight_and_always_ends_with_the_last():
    rng = random.Random(0)
    for _ in range(50):
        host, acked, step = Host(), 0, 0
        host.feed.ready("a")
        for _ in range(60):
            step += 1
            host.show(step)
            if rng.random() < 0.5 and host.sent:
                acked = rng.randint(acked, host.sent[-1][2])
                host.feed.acknowledge("a", acked)
                host.run()
            host.advance(0.001)
            assert host.sent[-1][2] - acked <= 2
        host.advance(3)
        assert host.steps[-1] == step
        assert host.steps == sorted(set(host.steps))


def test_many_threads_deliver_in_order_and_end_with_the_newest():
    seqs, steps, busy = [], [], threading.Lock()

    def deliver(scene, frame):
        assert busy.acquire(blocking=False), "two deliveries at once"
        header = decode(frame)[0]
        seqs.append(header["seq"])
        steps.append(header["step"])
        busy.release()

    feed = Feed(deliver, lambda call: call(), lambda seconds, call: None, in_flight=10**9)
    feed.ready("a")
    threads = [threading.Thread(target=lambda: [feed.show(frame=Frame(s)) for s in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    feed.show(frame=Frame(-1))
    assert seqs == sorted(set(seqs))
    assert steps[-1] == -1


def test_the_answer_to_a_turn_leaves_though_two_frames_are_on_their_way_and_only_it(host):
    for step in range(1, 5):
        host.show(step)
    host.feed.show(frame=Frame(5, number=1))
    host.run()
    assert host.steps == [1, 2, 5]
    host.feed.show(frame=Frame(6, number=1))
    host.feed.show(frame=Frame(7, number=2))
    host.run()
    assert host.steps == [1, 2, 5]
    host.feed.acknowledge("a", 1)
    host.run()
    assert host.steps == [1, 2, 5, 7]
