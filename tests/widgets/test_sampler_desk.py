"""The Sampler app without a page: solvers on the same noise, one evaluation at a time, budgets, errors, links."""

import json

import numpy as np
import pytest
import torch

import workbench as wb
from tests.widgets.desks import done, until
from widgets.apps.sampler import SamplerDesk, new_label
from widgets.apps.sampler_measures import Reference, rms
from widgets.player import Images, Points, encode_frame, encode_scene
from workbench.flows.store import shipped
from workbench.tree import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make(open_desk):
    """`make(query, **options)`: a desk."""
    return lambda query=None, **options: open_desk(SamplerDesk, query=query, **options)


def beside(*names, **more):
    rows = [{"solver": name, **more} for name in names]
    return {"samplers": json.dumps(rows), "samples": "64"}


def test_every_solver_starts_from_the_same_noise(make):
    desk = make(beside("euler", "heun", "rk4"))
    first, *others = [part.x for part in desk.session.state.parts]
    assert all(torch.equal(first, other) for other in others)
    assert list(desk.parts) == ["euler", "heun", "rk4"]
    assert new_label("euler", ["euler", "euler2"]) == "euler3"


def test_it_stops_where_the_samples_arrive_and_goes_back_to_the_same_bits(make):
    desk = make(beside("euler", "heun", steps=5))
    done(desk, lambda: desk.step(3))
    state = desk.session.state
    done(desk, lambda: desk.step(20))
    assert desk.session.index == 5
    assert float(desk.session.state.parts[0].t.min()) == 1.0
    done(desk, lambda: desk.back(2))
    assert same_bits(desk.session.state, state)


def test_one_evaluation_after_the_other_leads_through_the_step_and_back(make):
    desk = make(beside("euler", "heun", steps=4))
    start = desk.session.state.parts[1].x[0]
    done(desk, desk.evaluate)
    assert (desk.stage, desk.session.index) == (1, 0)
    euler, heun = desk.stages()
    assert (len(euler), len(heun)) == (1, 2)
    assert torch.equal(heun[0][0], start)
    velocity = desk.parts["heun"].field(start, torch.tensor(0.0)).velocity
    torch.testing.assert_close(heun[1][0], start + 0.25 * velocity)
    assert "evaluation 1 of the next step" in desk.frame().caption
    done(desk, desk.evaluate, desk.evaluate)
    assert (desk.stage, desk.session.index) == (0, 1)
    done(desk, desk.evaluate, desk.back)
    assert (desk.stage, desk.session.index) == (0, 1)
    done(desk, desk.back)
    assert desk.session.index == 0


def test_looking_at_evaluations_changes_nothing_and_counts_nothing(make):
    desk = make(beside("heun", steps=4))
    done(desk, lambda: desk.step(1))
    before = desk.session.state
    done(desk, desk.evaluate)
    assert same_bits(desk.session.state, before)
    assert int(desk.session.state.parts[0].nfe.max()) == 2


@pytest.mark.parametrize("evaluations", [4, 8, 16])
def test_a_budget_gives_every_solver_the_steps_that_so_many_evaluations_allow(evaluations, make):
    """Wherever the run before has come to, and of solvers whose first steps cost more or less than the rest."""
    desk = make(beside("euler", "heun", "rk4", "accelerated-ddim", steps=3))
    for _ in range(2):
        done(desk, lambda: desk.budget(evaluations))
        done(desk, lambda: desk.step(20))
        spent = [int(part.nfe.max()) for part in desk.session.state.parts]
        assert spent == [evaluations] * 3 + [evaluations - 1]


def test_the_reference_is_the_exact_solution(make):
    desk = make(beside("euler", steps=4))
    part = desk.parts["euler"]
    x0 = desk.session.state.parts[0].x[0]
    fine = wb.Session(wb.sampling(part.field, "rk4", steps=400, samples=64), start=x0).step(400).state.x[0]
    assert rms(fine - torch.from_numpy(desk.reference.at(torch.tensor([1.0])))) < 2e-3
    half = wb.Session(wb.sampling(part.field, "rk4", steps=400, samples=64), start=x0).step(200).state.x[0]
    assert rms(half - torch.from_numpy(desk.reference.at(torch.tensor([0.5])))) < 2e-3


def test_a_reference_at_times_of_each_sample_is_each_one_s_own(make):
    desk = make(beside("euler"))
    reference = Reference(desk.parts["euler"].field, desk.session.state.parts[0].x[0], desk.parts["euler"])
    times = torch.linspace(0, 1, 64)
    rows = reference.at(times)
    for i in (0, 17, 63):
        np.testing.assert_allclose(rows[i], reference.at(times[i : i + 1])[i], atol=1e-6)


def test_errors_fall_with_evaluations_at_the_rate_of_each_solver(make):
    desk = make({**beside("euler", "heun"), "target": "two-modes"})
    done(desk, desk.draw_errors)
    until(lambda: desk.errors.job is not None and all(len(rows) == 7 for rows in desk.errors.job.found.values()))
    found = {label: np.array(rows) for label, rows in desk.errors.job.found.items()}
    assert found["euler"][:, 0].tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert found["heun"][:, 0].tolist() == [2, 4, 8, 16, 32, 64, 128]
    for label, order in (("euler", 1), ("heun", 2)):
        halvings = -np.log2(found[label][-3:, 1] / found[label][-4:-1, 1])
        assert abs(halvings.mean() - order) < 0.4, label


def test_measures_count_evaluations_and_tell_local_from_global_error(make):
    desk = make(beside("euler", "heun", steps=8))
    done(desk, lambda: desk.step(1))
    _, (euler, heun) = desk.measures.newest(desk.session)
    assert (euler.nfe, heun.nfe) == (1, 2)
    assert euler.error == pytest.approx(euler.local, rel=0.05)
    assert heun.error < euler.error
    done(desk, lambda: desk.step(7))
    _, (euler, heun) = desk.measures.newest(desk.session)
    assert euler.time == heun.time == 1.0
    assert euler.bent >= 1
    assert heun.w2 < 1.6


def test_frames_hold_samples_trails_rings_and_arrows(make):
    desk = make(beside("euler", "heun"))
    done(desk, lambda: desk.step(3))
    frame = desk.frame()
    assert sum(isinstance(layer, Points) for layer in frame.layers) == 4
    done(desk, lambda: desk.show_only(["samples"]))
    assert len(desk.frame().layers) == 2
    assert len(encode_frame(frame)) < 100_000
    assert encode_scene(desk.scene())


def test_the_shipped_net_makes_pictures_of_the_asked_digit(make):
    desk = make({**beside("heun", steps=8), "field": "shipped", "asked": "3"})
    done(desk, lambda: desk.step(8))
    (images,) = desk.frame().layers
    assert isinstance(images, Images)
    assert set(images.labels) == {"3"}
    grey = images.tiles.astype(float)
    assert grey.std() > 60
    assert shipped("digits.safetensors").stat().st_size < 2 * 2**20


def test_a_field_of_one_s_own_is_stepped_and_one_that_is_wrong_is_one_sentence(make, tmp_path):
    desk = make(beside("heun", steps=4), field=lambda x, t: -x)
    done(desk, lambda: desk.step(4))
    x = desk.session.state.parts[0].x
    assert float(x.abs().mean()) < 0.5
    with pytest.raises(ValueError, match=r"expected the field to return shape .* as its points have, got"):
        SamplerDesk(runs=tmp_path, field=lambda x, t: x[..., :1])


def test_a_link_opens_the_same_run_and_a_field_that_is_gone_is_said(make):
    desk = make({**beside("euler", "heun", steps=6), "target": "two-modes"})
    done(desk, lambda: desk.step(2), lambda: desk.turn("heun.steps", 3), lambda: desk.step(1))
    twin = make(desk.query())
    until(lambda: twin.session.index == 3)
    assert same_bits(twin.session.state, desk.session.state)
    lost = make({"field": "saved:nothing"})
    assert any("found no file" in text for text in lost.opening_errors)


def test_going_from_data_back_to_noise_ends_at_the_source(make):
    desk = make({**beside("rk4", steps=40), "reverse": "true"})
    done(desk, lambda: desk.step(40))
    x = desk.session.state.parts[0].x[0]
    assert float(desk.session.state.parts[0].t.max()) == 0.0
    assert abs(float(x.std()) - 1) < 0.25


def test_solvers_are_added_removed_and_given_other_grids(make):
    desk = make(beside("euler"))
    done(desk, lambda: desk.add("rk4"), lambda: desk.set_grid(1, "quadratic-grid"))
    assert [part.grid.name for part in desk.parts.values()] == ["uniform-grid", "quadratic-grid"]
    done(desk, lambda: desk.remove(0))
    assert list(desk.parts) == ["rk4"]
    session = desk.session
    done(desk, lambda: desk.add("no-such"))
    assert desk.session is session
    assert any("expected a solver to be one of" in text for _, text in desk.said)


def test_adaptive_solvers_step_beside_the_others(make):
    desk = make(beside("euler", "dormand-prince"))
    done(desk, lambda: desk.step(40))
    adaptive = desk.session.state.parts[1]
    assert float(adaptive.t.min()) == 1.0
    _, rows = desk.measures.newest(desk.session)
    assert rows[1].error < 1e-2
    assert rows[1].nfe > 6


@pytest.mark.parametrize("row", [row.name for row in wb.catalogue("solvers")])
def test_every_solver_keeps_to_a_budget_and_is_drawn(row, make):
    desk = make(beside(row, steps=3))
    done(desk, lambda: desk.budget(8))
    done(desk, lambda: desk.step(8))
    assert desk.opening_errors == []
    assert desk.session.status == ["ok"]
    if not wb.make(row).adaptive:
        assert 1 <= int(desk.session.state.parts[0].nfe.max()) <= 8
        assert bool(desk.session.routine.done(desk.session.state).all())
    assert len(encode_frame(desk.frame())) > 100
