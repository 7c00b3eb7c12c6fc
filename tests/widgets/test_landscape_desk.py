"""The Landscape desk: trainings on one plane, what is said of it, its curvature, spectra and ways between."""

import math
import threading

import numpy as np
import pytest
import torch
from torch import nn

from tests.widgets.desks import done, until
from widgets.apps import background, files
from widgets.apps.landscape import LABELS, LandscapeDesk
from widgets.apps.landscape_measures import edge
from widgets.apps.landscape_view import LandscapeShell
from workbench import landscapes

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"width": "8", "depth": "1", "points": "13"}


@pytest.fixture
def make(tmp_path):
    made = []

    def new(**more):
        query = {**SMALL, **{name: value for name, value in more.items() if isinstance(value, str)}}
        own = {name: value for name, value in more.items() if not isinstance(value, str)}
        desk = LandscapeDesk(runs=tmp_path / "runs", query=query, **own)
        desk.said = []
        desk.on("message", lambda text, kind: desk.said.append(text))
        made.append(desk)
        return desk

    yield new
    for desk in made:
        desk.close()


def looked(desk):
    done(desk, lambda: desk.do(desk.look))
    assert desk.background.wait()
    return desk


def test_three_rates_start_at_one_point_and_the_picture_says_what_it_is(make):
    desk = looked(make())
    assert list(desk.parts) == list(LABELS)
    starts = torch.stack([part.x[0] for part in desk.session.state.parts])
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])
    scene = desk.scene()
    assert "filter" in scene.title
    assert "1,438 training samples" in scene.field_label
    assert scene.field.shape == (13, 13)


def test_the_plane_follows_the_paths_and_tells_how_much_it_holds(make):
    desk = done(make(), lambda: None)
    done(desk, lambda: desk.step(30))
    until(lambda: desk.survey is not None and desk.survey.paths is not None and desk.survey.plane.kind == "paths")
    paths, plane = desk.survey.paths, desk.survey.plane
    assert paths.loss.shape[0] == 3
    assert paths.step.values[0] == 0
    assert paths.step.values[-1] == 30
    share = paths.attrs["variance_share"]
    assert f"{100 * share:.1f} % of their variance" in desk.scene().title
    for i in range(3):
        scene = desk.surroundings(i)
        x = desk.session.state.parts[i].x
        assert float(paths.loss[i, -1]) == pytest.approx(float(scene(x)[0]), rel=1e-4)
        below = plane.points(plane.coords(x))
        assert float(paths.plane_loss[i, -1]) == pytest.approx(float(scene(below)[0]), rel=1e-4)
    assert "off the plane: A" in desk.frame().caption
    head = desk.frame().layers[1]
    assert float(head.x[0]) == pytest.approx(float(plane.coords(desk.session.state.parts[0].x)[0, 0]), rel=1e-4)


def test_curvature_is_measured_beside_its_edge(make):
    desk = done(make(), lambda: None)
    done(desk, lambda: desk.step(20))
    steps, rows = desk.curvature.arrays(desk.session)
    assert steps[-1] == 20
    for i, label in enumerate(LABELS):
        scene = landscapes.of_training(list(desk.parts.values())[i], desk.session.state.parts[i])
        exact = float(landscapes.sharpness(scene, tolerance=1e-8).values)
        assert rows["sharpness"][-1, i] == pytest.approx(exact, rel=0.02)
        top = landscapes.top_eigenpairs(landscapes.hessian(scene), 10, tolerance=1e-8)
        _, gradient = scene.gradient(scene.start[None])
        assert rows["share"][-1, i] == pytest.approx(float(landscapes.share(gradient[0], top.vectors)), abs=0.02)
        assert edge(desk.session, label, steps)[-1] == pytest.approx(2 / desk.session.hyper[f"{label}.lr"])
    done(desk, lambda: desk.turn("B.lr", 0.05))
    done(desk, lambda: desk.step(5))
    assert edge(desk.session, "B", np.array([20, 25]))[-1] == pytest.approx(40)


def test_heavy_ball_is_held_against_its_own_edge(make):
    desk = done(make(columns='[{"optimizer":"momentum"}]'), lambda: None)
    done(desk, lambda: desk.turn("A.momentum", 0.5), lambda: desk.turn("A.dampening", 0.2))
    rate = desk.session.hyper["A.lr"]
    assert edge(desk.session, "A", np.array([0]))[0] == pytest.approx(2 * 1.5 / (0.8 * rate))


def test_adam_is_held_against_its_own_edge(make):
    desk = done(make(columns='[{"optimizer":"adam"}]'), lambda: None)
    done(desk, lambda: desk.turn("A.eps", 0.01), lambda: desk.step(10))
    steps, rows = desk.curvature.arrays(desk.session)
    state = desk.session.state.parts[0]
    scene = landscapes.of_training(desk.parts["A"], state)
    diagonal = (state.method.v / (1 - state.method.p2)).sqrt()[0] + 0.01
    scaled = landscapes.preconditioned(landscapes.hessian(scene), diagonal)
    exact = float(landscapes.top_eigenpairs(scaled, 1, tolerance=1e-8).values)
    assert rows["turned"][-1, 0] == pytest.approx(exact, rel=0.02)
    assert edge(desk.session, "A", steps)[-1] == pytest.approx(38 / desk.session.hyper["A.lr"], rel=1e-6)


def test_another_state_of_the_same_step_is_drawn_where_it_is(make):
    desk = done(make(), lambda: None)
    done(desk, lambda: desk.step(30))
    picture = desk.plane_picture
    with desk.session.branch().back(10).branch() as twin:
        twin.set(**{"A.lr": 0.01}).step(10)
        for session in (desk.session, twin, desk.session):
            points = torch.stack([part.x[0] for part in session.state.parts])
            found = picture._at(desk.session, *session.now)
            np.testing.assert_allclose(found, picture.plane.coords(points), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("plane", ["ends", "stands", "sharpest", "filter", "layer", "none"])
def test_every_kind_of_plane_can_be_looked_at_while_the_run_goes_on(make, plane):
    desk = done(make(), lambda: None)
    done(desk, lambda: desk.step(12))
    session = desk.session
    done(desk, lambda: desk.set_view(plane=plane))
    assert desk.background.wait()
    assert desk.session is session
    assert desk.survey.paths is not None
    assert np.isfinite(desk.survey.grid.loss).all()
    kinds = {"ends": "through", "stands": "through", "sharpest": "eigen"}
    assert desk.survey.plane.kind == kinds.get(plane, "random")


def test_spectra_and_ways_are_worked_out_on_demand(make):
    desk = done(make(), lambda: None)
    done(desk, lambda: desk.step(15))
    done(desk, lambda: desk.do(desk.show_spectrum))
    assert desk.background.wait()
    assert list(desk.spectra) == list(LABELS)
    for found in desk.spectra.values():
        assert np.trapezoid(found.density, found.eigenvalue) == pytest.approx(1, abs=0.02)
    done(desk, lambda: desk.do(desk.show_between))
    assert desk.background.wait()
    assert len(desk.between) == 7
    ends = [float(desk.surroundings(i)(desk.session.state.parts[i].x)[0]) for i in (0, 1)]
    for found in desk.between.values():
        assert found.loss.values[[0, -1]] == pytest.approx(ends, rel=1e-4)
        assert math.isfinite(found.attrs["barrier"])


def test_cancel_ends_what_is_worked_out(make):
    desk = make(width="256", depth="3", points="97")
    desk.do(desk.look)
    until(lambda: desk.survey is not None)
    desk.cancel()
    assert desk.background.wait(5)
    assert desk.survey.paths is None
    assert desk.survey.grid.sizes["a"] < 97


def test_your_own_network_and_data(make):
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    desk = looked(make(model=net, loss="cross_entropy", data=(x, y)))
    start = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(desk.session.state.parts[0].x[0], start)
    done(desk, lambda: desk.step(5))
    assert desk.background.wait()
    assert desk.survey.plane.kind == "paths"


def test_a_run_reopens_from_its_link_and_from_its_script(make):
    desk = done(make(), lambda: None)
    done(desk, lambda: desk.step(6), lambda: desk.turn("A.lr", 0.1), lambda: desk.step(3))
    twin = done(make(**desk.query()), lambda: None)
    assert twin.session.index == 9
    for ours, theirs in zip(desk.session.state.parts, twin.session.state.parts, strict=True):
        assert torch.equal(ours.x, theirs.x)
    assert "wb.side_by_side" in desk.script()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"columns": []}, "1 to 3 trainings"),
        ({"columns": [{"optimizer": "nonsense"}]}, "expected an optimizer"),
        ({"plane": "flat"}, "expected a plane"),
        ({"points": 1000}, "points a side"),
        ({"data": "nonsense"}, "expected a data set"),
    ],
)
def test_bad_choices_are_told_and_change_nothing(make, chosen, words):
    desk = done(make(), lambda: None)
    session = desk.session
    command = desk.set_view if "plane" in chosen or "points" in chosen else desk.choose
    done(desk, lambda: command(**chosen))
    assert any(words in text for text in desk.said), desk.said
    assert desk.session is session


def test_what_is_measured_at_rest_is_what_the_library_says_of_the_same_point(make):
    desk = make(columns="[{}]")
    done(desk, lambda: desk.turn("A.batch_size", 64), lambda: desk.step(10))
    _, rows = desk.curvature.arrays(desk.session)
    scene = desk.surroundings(0)
    exact = torch.linalg.eigvalsh(landscapes.dense(landscapes.hessian(scene)).double())
    found = {name: float(values[-1, 0]) for name, values in rows.items()}
    assert found["sharpness"] == pytest.approx(float(exact[-1]), rel=0.02)
    assert found["trace"] == pytest.approx(float(exact.sum()), rel=0.1)
    gradients = landscapes.per_example_gradients(scene, scene.start).double()
    mean, n = gradients.mean(0), len(gradients)
    trace = (gradients - mean).square().sum() / (n - 1)
    assert found["coherence"] == pytest.approx(float(mean.square().sum() / gradients.square().sum(1).mean()), rel=1e-3)
    assert found["noise"] == pytest.approx(float(trace / (mean.square().sum() - trace / n)), rel=1e-3)
    batch = landscapes.batch_sharpness(scene, batch_size=64, batches=8)
    assert found["batch"] == pytest.approx(float(batch.value), rel=1e-4)
    assert found["batch"] != pytest.approx(float(landscapes.batch_sharpness(scene, batch_size=32, batches=8).value))


def test_averages_stand_on_the_picture_and_are_worth_what_the_table_says(make):
    desk = make(columns="[{},{}]", data="digits")
    done(desk, lambda: desk.step(40), lambda: desk.do(desk.look))
    done(desk, lambda: desk.set_memory(10.0), lambda: desk.do(desk.show_averages))
    assert [one.training for one in desk.averages] == [0, 0, 0, 1, 1, 1, -1, -1]
    kept = dict(desk.session.kept())
    way = torch.stack([kept[step].parts[0].x[0] for step in range(41)])
    second, moving = desk.averages[1], desk.averages[2]
    torch.testing.assert_close(second.point, way[20:].mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moving.point, landscapes.ema(way, 10.0), rtol=1e-5, atol=1e-6)
    ends = torch.stack([part.x[0] for part in desk.session.state.parts])
    torch.testing.assert_close(desk.averages[-2].point, ends.mean(0))
    assert not torch.allclose(desk.averages[-1].point, ends.mean(0))
    scene, heldout = desk.surroundings(0), desk.surroundings(0, part="heldout")
    for one in desk.averages:
        assert one.loss == pytest.approx(float(scene(one.point[None])[0]), rel=1e-5)
        assert one.heldout == pytest.approx(float(heldout(one.point[None])[0]), rel=1e-5)
        right = heldout.outputs(one.point[None])[0].argmax(1) == heldout.targets
        assert one.score == pytest.approx(float(right.double().mean()))
    marks = [layer for layer in desk.frame().layers if getattr(layer, "marker", "") in ("diamond", "star", "plus")]
    at = desk.survey.plane.coords(torch.stack([second.point]))[0]
    assert (marks[0].x[0], marks[0].y[0]) == pytest.approx(tuple(at.tolist()), rel=1e-4)
    assert {"mean of the second half", "Fisher-weighted mean"} <= {entry.name for entry in desk.scene().legend}


def test_geometry_and_phases_of_the_ways(make):
    desk = make(columns="[{}]")
    done(desk, lambda: desk.step(30), lambda: desk.do(desk.show_shapes))
    found, phases = desk.shapes["geometry"], desk.shapes["phases"]
    kept = dict(desk.session.kept())
    way = torch.stack([kept[step].parts[0].x[0] for step in range(31)])
    np.testing.assert_allclose(found.length[0], landscapes.path_length(way), rtol=1e-6)
    np.testing.assert_allclose(found.turning_angle[0, 1:-1], landscapes.turning_angle(way)[1:-1], rtol=1e-5)
    assert phases.sizes["step"] == 31
    assert (np.diff(phases.states.values[0]) >= 0).mean() > 0.8
    done(desk, desk.restart)
    assert desk.shapes == {}
    done(desk, lambda: desk.do(desk.show_shapes))
    assert desk.said == ["Step on first: a way has a shape once it has begun."]


def test_commands_are_carried_out_while_the_curvature_of_a_large_network_is_measured(make):
    desk = make(width="256", depth="3")
    desk.step()
    until(lambda: desk.measuring.progress is not None)
    step = threading.Event()
    desk.step()
    desk.do(step.set)
    assert step.wait(10)
    assert desk.session.index == 2
    assert not desk.measuring.wait(0)
    assert "the curvature" in desk.status()
    desk.cancel()
    assert desk.measuring.wait(5)
    assert len(desk.curvature.arrays(desk.session)[0]) == 0


def test_checkpoints_stand_on_the_picture_and_span_a_plane(make):
    desk = make(columns="[{},{}]")
    done(desk, lambda: desk.step(10))
    weights = dict(zip(desk.surroundings(0).names, blocks_of(desk), strict=True))
    heard = []
    desk.on("upload", lambda text, kind: heard.append((kind, text)))
    far = {name: part + 0.1 for name, part in weights.items()}
    done(desk, lambda: desk.add_checkpoint("C:\\fakepath\\far.safetensors", files.weights(far)))
    assert heard == [("success", "far is on the picture.")]
    done(desk, lambda: desk.set_view(plane="checkpoints"))
    assert desk.survey.plane.title == "Plane through far, A and B"
    point = torch.cat([part.flatten() for part in far.values()])
    (ring,) = [layer for layer in desk.frame().layers if getattr(layer, "marker", "") == "ring"]
    at = desk.survey.plane.coords(point[None])[0]
    assert (ring.x[0], ring.y[0]) == pytest.approx(tuple(at.tolist()), abs=1e-4)
    assert float(desk.survey.plane.residual(point[None])) == pytest.approx(0, abs=1e-3)
    assert desk.survey.grid.a[0] < ring.x[0] < desk.survey.grid.a[-1]
    done(desk, lambda: desk.do(desk.show_averages))
    assert desk.averages[-1].name == "checkpoint far"
    assert desk.averages[-1].loss == pytest.approx(float(desk.surroundings(0)(point[None])[0]), rel=1e-5)
    done(desk, desk.drop_checkpoints)
    assert not [layer for layer in desk.frame().layers if getattr(layer, "marker", "") == "ring"]
    assert desk.said[-1].startswith("expected three checkpoints, or trainings that stand for them, got 2")


@pytest.mark.parametrize("kind", ["foreign", "other sizes", "not finite"])
def test_a_file_that_is_no_checkpoint_of_this_network_changes_nothing(make, kind):
    desk = make()
    done(desk, lambda: desk.step(2))
    weights = dict(zip(desk.surroundings(0).names, blocks_of(desk), strict=True))
    first = next(iter(weights))
    bad = {
        "foreign": b"PK\x03\x04 a pickle",
        "other sizes": files.weights({**weights, first: weights[first][:-1]}),
        "not finite": files.weights({**weights, first: weights[first] * torch.nan}),
    }[kind]
    heard = []
    desk.on("upload", lambda text, kind: heard.append((kind, text)))
    done(desk, lambda: desk.add_checkpoint("x.safetensors", bad))
    assert heard[0][0] == "error"
    words = {
        "foreign": "damaged or foreign",
        "other sizes": "same architecture",
        "not finite": "expected finite weights",
    }
    assert words[kind] in heard[0][1]
    assert desk.checkpoints == []
    assert desk.session.index == 2


def blocks_of(desk):
    scene = desk.surroundings(0)
    return [
        block.reshape(shape) for block, shape in zip(scene.space.blocks(scene.start), scene.space.shapes, strict=True)
    ]


def test_a_run_that_comes_to_rest_while_the_picture_is_drawn_is_seen_where_it_stands(make, monkeypatch):
    rested, on_plane = threading.Event(), landscapes.on_plane

    def held(*args, **given):
        """The last part of a picture, which takes as long as the run needs to come to rest."""
        assert rested.wait(30)
        return on_plane(*args, **given)

    monkeypatch.setattr(landscapes, "on_plane", held)
    monkeypatch.setattr(background, "TELL_SECONDS", 0.0)
    desk = make()
    desk.do(desk.look)
    until(lambda: desk.background.progress is not None)
    desk.step(5)
    desk.do(lambda: desk.do(rested.set))  # the step's own tick is over then
    done(desk, lambda: None)
    assert desk.survey.paths.step.values[-1] == desk.session.index == 5


def test_a_link_is_opened_with_the_curvature_of_its_past(make):
    desk = done(make(step="30", columns="[{}]"), lambda: None)
    assert desk.session.index == 30
    assert len(desk.curvature.arrays(desk.session)[0]) == 25


def test_what_was_measured_at_an_earlier_step_says_so():
    steps, row = np.array([0, 10, 20]), np.array([[1.0], [2.0], [3.0]])
    rare = np.array([[5.0], [np.nan], [np.nan]])
    found = LandscapeShell._earlier(steps, {"loss": row, "trace": rare, "share": np.full((3, 1), np.nan)})
    assert {name: words for name, (words, _) in found.items()} == {"trace": "trace, step 0"}
