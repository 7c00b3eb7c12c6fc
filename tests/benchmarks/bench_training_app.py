"""The Training app with everything measured beside the same training with nothing measured."""

import statistics
import tempfile
import time

import torch

import workbench as wb
from widgets.apps.training import TrainingDesk
from workbench.bench import Figures, benchmark


@benchmark(
    "live-probes",
    what="training steps a second in the Training app, its curves and curvature measured as by default (digits MLP)",
    peer="the same training, played with nothing measured",
    least=0.8,
)
def live_probes(quick):
    """Both play from the start in turn, so that other work on the machine meets both; medians count."""
    torch.set_num_threads(1)  # as the server sets it
    seconds, blocks = (0.3, 1) if quick else (3.0, 7)
    with tempfile.TemporaryDirectory() as runs:
        desk = TrainingDesk(runs=runs, query={"width": "120"})
        desk.wait()
        desk.can_draw = lambda: False  # pictures are for pages; here only what is measured counts
        desk.curved = True
        routine = desk.session.routine
        plain = wb.Session(routine, seed=0)
        rates = ([], [])
        for _ in range(blocks):
            desk.restart()
            desk.wait()
            plain.seek(0)
            rates[0].append(rate(desk.session, seconds))
            desk.wait()
            rates[1].append(rate(plain, seconds))
        marks = len(desk.measures.arrays(desk.session)[0]), len(desk.curvature.arrays(desk.session)[0])
        steps = desk.session.index
        desk.close()
        plain.close()
    note = f"losses at {marks[0]:,} and curvature at {marks[1]:,} of the last {steps:,} steps"
    return Figures(statistics.median(rates[0]), statistics.median(rates[1]), "steps/s", note)


def rate(session, seconds):
    """Steps a second while a session plays; what is measured once it rests holds nobody up."""
    before, began = session.index, time.perf_counter()
    session.play()
    time.sleep(seconds)
    found = (session.index - before) / (time.perf_counter() - began)
    session.pause()
    return found
