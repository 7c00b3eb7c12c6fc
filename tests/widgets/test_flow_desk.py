"""The Flow app without a page: settings side by side on one noise, drawn targets, reflow, links, kept fields."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests.widgets.desks import done, until
from widgets.apps.flow import LABELS, FlowDesk, drawn, resampled
from widgets.player import Images, encode_frame, encode_scene
from workbench.tree import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"width": "24", "depth": "1", "batch": "32"}


@pytest.fixture
def make(open_desk):
    """`make(query, **options)`: a desk of a small net, its particles at rest."""

    def made(query=None, **options):
        desk = open_desk(FlowDesk, query={**SMALL, **(query or {})}, **options)
        desk.set_flowing(False)
        return done(desk)

    return made


def beside(*columns):
    return {"columns": json.dumps(columns)}


def circle(n=40):
    turn = np.linspace(0, 2 * np.pi, n)
    return (2 * np.cos(turn)).tolist(), (2 * np.sin(turn)).tolist()


def test_settings_side_by_side_see_the_same_noise(make):
    desk = make(beside({}, {"interpolant": "trigonometric-path"}))
    session = desk.session
    first, second = session.routine.draw(session.key.at(3), session.state, session.routine.normalise(session.hyper))
    assert torch.equal(first[0].x0, second[0].x0)
    assert torch.equal(first[0].x1, second[0].x1)
    assert torch.equal(first[0].t, second[0].t)
    assert desk.titles() == ["A: Linear", "B: Trigonometric"]


def test_equal_settings_stay_equal_to_the_bit_and_their_particles_too(make):
    desk = make(beside({}, {}))
    done(desk, lambda: desk.step(5))
    a, b = desk.session.state.parts
    assert torch.equal(a.x, b.x)
    frame = desk.frame()
    left, right = [layer for layer in frame.layers if hasattr(layer, "radius")]
    panels = desk.scene().panels
    np.testing.assert_allclose(left.x - panels[0].dx, right.x - panels[1].dx, atol=1e-5)
    assert encode_frame(frame)
    assert encode_scene(desk.scene())


def test_a_paused_picture_shows_where_the_net_takes_the_source_samples(make):
    desk = make()
    done(desk, lambda: desk.step(20), lambda: desk.set_tau(1.0))
    frame = desk.frame()
    points = next(layer for layer in frame.layers if hasattr(layer, "radius"))
    flight, field = desk.picture_.flights[0], desk.fields(desk.session)[0]
    sampling = wb.sampling(field, "rk4", steps=60, samples=len(flight.x0))
    end = wb.Session(sampling, start=flight.x0).step(60).state.x[0].numpy()
    np.testing.assert_allclose(np.stack([points.x, points.y], 1), end, atol=5e-3)


def test_drawn_paths_are_those_of_the_first_particles_however_they_were_made(make):
    desk = make()
    done(desk, lambda: desk.step(20))
    fields = desk.fields(desk.session)
    alone, _ = desk.picture_.layers(fields, 1.0, ["paths", "arrows"], exact=True, stamp="alone")
    beside, particles = desk.picture_.layers(fields, 1.0, ["paths", "particles"], exact=True, stamp="beside")
    for mine, theirs, end in ((alone.x, beside.x, particles.x), (alone.y, beside.y, particles.y)):
        assert np.allclose(mine, theirs, atol=1e-5)
        ends = np.asarray(theirs).reshape(48, -1)[:, -1]
        assert np.allclose(ends, np.asarray(end)[:48], atol=1e-5)


def test_going_back_and_replaying_gives_the_same_bits(make):
    desk = make(beside({}, {}))
    done(desk, lambda: desk.step(12), lambda: desk.turn("A.lr", 0.01), lambda: desk.step(6))
    state = desk.session.state
    done(desk, lambda: desk.back(10), lambda: desk.seek(18))
    assert same_bits(desk.session.state, state)


def test_it_learns_and_measures(make):
    desk = make({"width": "48", "depth": "2", "batch": "128"})
    done(desk, lambda: desk.step(1))
    before = desk.measures.arrays(desk.session)[1][-1, 0]
    done(desk, lambda: desk.step(250))
    steps, values = desk.measures.arrays(desk.session)
    assert steps[-1] == 251
    assert values[-1, 0, 0] < 0.6 * before[0]
    assert desk.measures.floor(desk.session) < values[-1, 0, 0] + 0.2


def test_a_drawn_target_is_what_was_drawn_and_travels_in_the_link(make):
    desk = make()
    done(desk, desk.begin_drawing)
    assert desk.scene().draw
    done(desk, lambda: desk.stroke(*circle()), lambda: desk.click(0.0, 0.5), desk.undo_stroke)
    done(desk, lambda: desk.end_drawing(keep=True))
    assert not desk.drawing
    target = desk.parts["A"].target
    radius = target.exact.means.norm(dim=1)
    assert float((radius - 2).abs().max()) < 0.05
    assert len(target.exact.means) > 60
    twin = make(desk.query())
    assert torch.equal(twin.parts["A"].target.exact.means, target.exact.means)


def test_an_empty_sheet_says_what_to_do_and_changes_nothing(make):
    desk = make()
    session = desk.session
    done(desk, desk.begin_drawing, lambda: desk.stroke([1.0, 1.05], [0.0, 0.0]), lambda: desk.end_drawing(keep=True))
    assert desk.session is session
    assert any("expected 3 to 20,000 points, got 1" in text for _, text in desk.said)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2\n3,oops\n4,5\n", "expected numbers, got 'oops' in row 3"),
        (b"1,2\n3,nan\n4,5\n", "expected finite numbers"),
        (b"1,2,3\n3,4,5\n4,5,6\n", "expected 2 columns in every row, got 3 in row 1"),
        (b"1,2\n3,4\n", "expected 3 to 20,000 points, got 2"),
    ],
)
def test_an_upload_that_is_no_set_of_points_is_one_sentence_and_the_run_goes_on(content, words, make):
    desk = make()
    done(desk, lambda: desk.step(2))
    session = desk.session
    done(desk, lambda: desk.upload("points.csv", content))
    assert desk.session is session
    assert session.index == 2
    (tone, text), *_ = desk.answered
    assert tone == "error"
    assert words in text


def test_uploaded_points_become_the_target(make):
    rng = np.random.default_rng(0)
    content = "\n".join(f"{a:.3f},{b:.3f}" for a, b in rng.normal(5, 30, (50, 2))).encode()
    desk = make()
    done(desk, lambda: desk.upload("points.csv", content))
    means = desk.parts["A"].target.exact.means
    assert means.shape == (50, 2)
    assert abs(float(means.square().mean().sqrt()) - 1.5) < 1e-6
    assert "50 points" in desk.answered[0][1]


def test_reflow_trains_on_pairs_that_the_flow_makes_and_keeps_the_numbers_before(make):
    desk = make(beside({}, {}))
    done(desk, lambda: desk.step(30))
    params = [part.x.clone() for part in desk.session.state.parts]
    done(desk, desk.reflow)
    session = desk.session
    assert session.index == 0
    assert [torch.equal(a, part.x) for a, part in zip(params, session.state.parts, strict=True)] == [True, True]
    assert "2-rectified" in desk.titles()[0]
    assert desk.measures.before
    hyper = session.routine.normalise(session.hyper)
    batch = session.routine.draw(session.key.at(0), session.state, hyper)[0][0]
    part = desk.parts["A"]
    field = part.coupling.field
    end = wb.Session(wb.sampling(field, "rk4", steps=80, samples=32), start=batch.x0).step(80).state.x[0]
    assert float((end - batch.x1).norm(dim=1).median()) < 0.05


def test_a_link_lives_the_rounds_of_reflow_again_to_the_bit(make):
    desk = make()
    done(desk, lambda: desk.step(8), lambda: desk.turn("A.lr", 0.01), lambda: desk.step(4), desk.reflow)
    done(desk, lambda: desk.step(5))
    twin = make(desk.query())
    until(lambda: twin.session.index == 5)
    assert same_bits(twin.session.state, desk.session.state)


def test_reflow_of_a_flow_that_has_learned_nothing_says_so(make):
    desk = make()
    done(desk, desk.reflow)
    assert any("play it first" in text for _, text in desk.said)


def test_fields_are_kept_for_the_sampler(make):
    desk = make(beside({}, {}))
    done(desk, lambda: desk.step(3), lambda: desk.save_fields("mine"))
    field = wb.load_field(desk.runs / "mine B.safetensors")
    x, t = torch.randn(4, 2), torch.tensor(0.4)
    assert torch.equal(field(x, t).velocity, desk.fields(desk.session)[1](x, t).velocity)
    done(desk, lambda: desk.save_fields("../out"))
    assert any("expected a name of letters" in text for _, text in desk.said)


def test_digits_are_shown_as_pictures_of_the_asked_class(make):
    desk = make({"target": "digit-images"})
    done(desk, lambda: desk.step(2))
    (images,) = desk.frame().layers
    assert isinstance(images, Images)
    assert images.tiles.shape[1:] == (8, 8)
    assert list(images.labels[:11]) == [*"0123456789", "0"]


def test_one_of_the_settings_that_does_not_exist_is_said_and_nothing_changes(make):
    desk = make()
    session = desk.session
    done(desk, lambda: desk.set_column(0, coupling="no-such"))
    assert desk.session is session
    assert any("expected the flow's coupling to be one of" in text for _, text in desk.said)
    done(desk, desk.add_column, desk.add_column, desk.add_column)
    assert list(desk.parts) == list(LABELS)
    done(desk, desk.drop_column)
    assert list(desk.parts) == list(LABELS[:2])


@pytest.mark.slow
def test_the_script_makes_the_run_again_to_the_bit(make, tmp_path):
    desk = make({**beside({}, {"times": "uniform-times"}), "target": "two-moons"})
    done(desk, lambda: desk.step(4), lambda: desk.turn("B.lr", 0.004), lambda: desk.step(3))
    script = tmp_path / "run.py"
    save = "import torch; torch.save([part.x for part in session.state.parts], 'end.pt')"
    script.write_text(desk.script().replace("    print(session.record())", f"    {save}"))
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True, env=environment())
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    assert all(torch.equal(a, part.x) for a, part in zip(end, desk.session.state.parts, strict=True))


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def test_the_page_that_plays_has_a_frame_for_every_step_and_both_losses(make):
    desk = make(beside({}, {}))
    done(desk, lambda: desk.step(3))
    text = desk.html()
    assert "loss A" in text
    assert "loss B" in text


def test_lines_are_cut_into_points_of_even_spacing():
    flat = resampled([0.0, 1.0, 1.0], [0.0, 0.0, 1.0])
    points = np.array(flat).reshape(-1, 2)
    assert len(points) == 17
    np.testing.assert_allclose(np.abs(np.diff(points, axis=0)).sum(1), 0.12, atol=1e-9)
    with pytest.raises(ValueError, match="draw a line first"):
        drawn([])


@pytest.mark.parametrize("row", [row.name for row in wb.catalogue("densities")])
def test_every_density_is_a_target_that_can_be_drawn_or_a_sentence_says_why_not(row, make):
    desk = make({"target": row})
    if wb.make(row).dim == 2 or wb.make(row).image:
        assert desk.opening_errors == []
        assert desk.settings["target"] == row
    else:
        (words,) = desk.opening_errors
        assert words.startswith("expected a target in the plane or one of pictures")
    assert len(encode_frame(desk.frame())) > 100


@pytest.mark.parametrize("row", [row.name for row in wb.catalogue("flow objectives")])
def test_every_objective_trains_is_drawn_and_kept(row, make):
    desk = make(beside({"objective": row}))
    done(desk, lambda: desk.step(2))
    assert len(encode_frame(desk.frame())) > 100
    done(desk, lambda: desk.save_fields("kept"))
    field, (own,) = wb.load_field(desk.runs / "kept.safetensors"), desk.fields(desk.session)
    x = torch.linspace(-2, 2, 8).view(4, 2)
    assert torch.equal(field(x, torch.tensor(0.3)).velocity, own(x, torch.tensor(0.3)).velocity)
