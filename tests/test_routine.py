"""The contract's parts: hyperparameters, randomness by key, spaces."""

import itertools
import math

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.routine import count_runs, status, whole
from workbench.space import Space

RATE = wb.Hyper(0.1, 0.0, 1.0, "log", name="lr")
COUNT = wb.Hyper(8, 1, 64, "integer", kind="shape", name="steps")
WORD = wb.Hyper("relu", scale="choice", kind="init", choices=("relu", "tanh"), name="activation")

# ------------------------------------------------------------------------------------------------- hyperparameters


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.array(0.5), torch.tensor(0.5), 0, np.int64(1)])
def test_a_legal_number_comes_back_as_a_float(value):
    checked = RATE.check(value)
    assert type(checked) is float
    assert checked == float(value)


NO_NUMBERS = [-1e-9, 1.001, math.nan, math.inf, -math.inf, "x", None, True, 1j, {}, object()]
NO_RUNS = [[], [[0.1]], ["a", "b"], [[1], [2, 3]], [0.1, math.nan], [0.1, 2.0], torch.tensor([0.1, -1.0])]


@pytest.mark.parametrize("value", [*NO_NUMBERS, *NO_RUNS, np.array([[0.1]])])
def test_an_illegal_number_is_refused_by_name_with_the_range(value):
    with pytest.raises(ValueError, match=r"expected lr to be (a number from 0 to 1|one number or one per run)"):
        RATE.check(value)


def test_an_unbounded_number_still_has_to_be_finite():
    free = wb.Hyper(1.0, 0.0, name="noise")
    assert free.check(1e300) == 1e300
    with pytest.raises(ValueError, match="expected noise"):
        free.check(math.inf)
    with pytest.raises(ValueError, match="expected noise"):
        free.check([1.0, math.inf])


def test_the_ends_of_the_range_are_legal():
    assert RATE.check([0.0, 1.0]).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "value", [(0.1, 0.2), [0.1, 0.2], np.array([0.1, 0.2]), torch.tensor([0.1, 0.2], dtype=torch.float64)]
)
def test_one_value_a_run_comes_back_in_float64(value):
    checked = RATE.check(value)
    assert checked.dtype == torch.float64
    assert checked.tolist() == [0.1, 0.2]


@pytest.mark.parametrize("value", [1, 64, 8.0, np.int32(5), torch.tensor(5)])
def test_a_whole_number_comes_back_as_an_int(value):
    assert type(COUNT.check(value)) is int


@pytest.mark.parametrize("value", [0, 65, 1.5, "8", True, [1, 2], torch.tensor([1, 2]), math.nan])
def test_what_is_no_whole_number_of_the_range_is_refused(value):
    with pytest.raises(ValueError, match="expected steps to be a whole number from 1 to 64"):
        COUNT.check(value)


def test_whole_numbers_one_a_run_have_to_be_whole_too():
    per_run = wb.Hyper(3, 0, 10, "integer", name="k")
    assert per_run.check([1, 2]).tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"expected k to be a whole number from 0 to 10, got 2\.5 in one run"):
        per_run.check([1, 2.5])


@pytest.mark.parametrize("value", ["gelu", 3, None, ["relu"], np.array(["relu", "tanh"]), torch.ones(2)])
def test_what_is_no_choice_is_refused_with_the_choices(value):
    with pytest.raises(ValueError, match="expected activation to be one of relu, tanh"):
        WORD.check(value)


def test_a_near_miss_is_guessed():
    with pytest.raises(ValueError, match="Did you mean 'tanh'"):
        WORD.check("tahn")


def test_a_declaration_describes_itself_without_infinities():
    row = wb.Hyper(1.0, name="noise", soft=(0.0, 2.0), doc="Size.").describe()
    assert row["low"] is None
    assert row["high"] is None
    assert row["slider"] == [0.0, 2.0]


def test_a_setting_that_is_not_declared_or_out_of_range_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'conditon'.*Did you mean 'condition'"):
        wb.make("quadratic", conditon=3)
    with pytest.raises(ValueError, match="expected condition to be a number from 1"):
        wb.make("quadratic", condition=0.5)


def test_normalised_values_do_not_share_memory_with_what_was_given():
    routine = wb.descent("rosenbrock", "adam", dtype=torch.float64)
    rates = torch.tensor([0.1, 0.2], dtype=torch.float64)
    ready = routine.normalise({"lr": rates}, runs=2)
    rates.zero_()
    assert ready["lr"].tolist() == [0.1, 0.2]


def test_a_wrong_number_of_values_is_refused_by_name():
    with pytest.raises(ValueError, match="expected lr to have one value for each of 3 runs"):
        wb.descent("rosenbrock", "adam").normalise({"lr": [0.1, 0.2]}, runs=3)


def test_runs_are_counted_and_have_to_agree():
    assert count_runs({"lr": 0.1, "eps": [1e-8, 1e-7]}, 0) == 2
    assert count_runs({"lr": torch.ones(3)}, (1, 2, 3)) == 3
    assert count_runs({"activation": "relu"}, 0) is None
    with pytest.raises(ValueError, match=r"\{'lr': 2, 'seed': 3\}"):
        count_runs({"lr": [0.1, 0.2]}, [0, 1, 2])


def test_status_and_whole_numbers_in_words():
    assert status(-1) == "ok"
    assert status(7) == "diverged at step 7"
    assert whole("n", np.int64(3)) == 3
    assert whole("n", 3.0) == 3
    for bad in (-1, 2.5, True, "3", None, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected n to be a whole number from 0"):
            whole("n", bad)


# ------------------------------------------------------------------------------------------------- keys

LIKE = torch.empty(0, dtype=torch.float64)


def test_equal_keys_give_equal_bits_and_any_part_of_a_key_changes_them():
    def draw(key):
        return tuple(key.normal((4,), like=LIKE).tolist())

    keys = [
        wb.Key(seed).stream(name).at(step)
        for seed in (0, 1, -1, 2**40)
        for name in ("a", "b", "a/b")
        for step in (0, 1)
    ]
    assert [draw(key) for key in keys] == [draw(key) for key in keys]
    assert len({draw(key) for key in keys}) == len(keys)
    assert draw(wb.Key(3).stream("a").at(5)) == draw(wb.Key(3).at(5).stream("a"))
    assert draw(wb.Key(0).stream("a").stream("b")) != draw(wb.Key(0).stream("b").stream("a"))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    wb.Key(0).normal((3,), like=LIKE)
    wb.Key(0).uniform((3,), like=LIKE)
    wb.Key(0).permutation(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_two_steps_of_a_stream_share_a_generator_seed_over_100_000_steps():
    key = wb.Key(0).stream("noise")
    seeds = {key.at(k).generator().initial_seed() for k in range(100_000)}
    assert len(seeds) == 100_000
    assert max(seeds) < 2**32  # all that the host generator looks at


PAIRS = {
    "neighbouring steps": [(wb.Key(0).stream("a").at(k), wb.Key(0).stream("a").at(k + 1)) for k in range(0, 400, 2)],
    "streams": [(wb.Key(0).stream("a").at(k), wb.Key(0).stream("b").at(k)) for k in range(200)],
    "neighbouring seeds": [(wb.Key(k).stream("a"), wb.Key(k + 1).stream("a")) for k in range(0, 400, 2)],
    "runs": [(wb.Key((0, 1)).stream("a").at(k), None) for k in range(200)],
}


@pytest.mark.parametrize("name", PAIRS)
def test_draws_of_different_keys_are_uncorrelated(name):
    """Fixed n = 200 × 500 pairs: the mean product of independent standard normals is within 4 / √n of 0."""
    products = []
    for one, other in PAIRS[name]:
        a = one.normal((500,), like=LIKE)
        a, b = (a, other.normal((500,), like=LIKE)) if other else a.unbind(-1)
        products.append(a * b)
    products = torch.cat(products)
    assert abs(products.mean().item()) < 4 / math.sqrt(products.numel())


def test_first_draws_along_a_stream_are_standard_normal_and_uncorrelated():
    """The first number of each of 20,000 steps: mean, variance and lag-1 correlation within 4 standard errors."""
    key, n = wb.Key(0).stream("noise"), 20_000
    x = torch.stack([key.at(k).normal((), like=LIKE) for k in range(n)])
    assert abs(x.mean().item()) < 4 / math.sqrt(n)
    assert abs(x.var().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x[1:] * x[:-1]).mean().item()) < 4 / math.sqrt(n)


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_float32_and_float64_see_the_same_draws(draw):
    key = wb.Key(5).stream("noise").at(3)
    double = getattr(key, draw)((100,), like=LIKE)
    single = getattr(key, draw)((100,), like=LIKE.float())
    assert single.dtype == torch.float32
    assert torch.equal(single, double.float())


def test_uniform_numbers_never_round_up_to_one(monkeypatch):
    nearly_one = torch.full((3,), 1 - 2**-40, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: nearly_one.clone())
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert (wb.Key(0).uniform((3,), like=torch.empty(0, dtype=dtype)) < 1).all()


def test_uniform_numbers_fill_the_unit_interval():
    u = wb.Key(0).uniform((20_000,), like=LIKE)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean().item() - 0.5) < 4 * math.sqrt(1 / 12 / 20_000)


@pytest.mark.parametrize("axis", [0, -1])
def test_seeds_one_a_run_draw_what_each_seed_draws_alone(axis):
    many = wb.Key((4, 9)).stream("noise").at(2)
    drawn = many.normal((3,), like=LIKE, axis=axis)
    assert many.runs == 2
    for run, seed in enumerate((4, 9)):
        alone = wb.Key(seed).stream("noise").at(2).normal((3,), like=LIKE)
        assert torch.equal(drawn.select(axis, run), alone)


def test_a_permutation_holds_every_number_once():
    shared, each = wb.Key(0).permutation(50), wb.Key((0, 1)).permutation(50)
    assert sorted(shared.tolist()) == list(range(50))
    assert each.shape == (2, 50)
    assert torch.equal(each[0], shared)
    assert not torch.equal(each[0], each[1])


# ------------------------------------------------------------------------------------------------- spaces

SHAPES = ((2, 3), (3,), (), (1, 2, 2))


def test_dot_and_norm_are_those_of_each_run_in_both_layouts():
    points = torch.randn(5, 4, dtype=torch.float64)  # five runs of four coordinates
    others = torch.randn(5, 4, dtype=torch.float64)
    expected = [torch.dot(a, b).item() for a, b in zip(points, others, strict=True)]
    lengths = [math.sqrt(torch.dot(a, a).item()) for a in points]
    for space, turn in ((Space(-1), lambda t: t), (Space(0), lambda t: t.T)):
        dot, norm = space.dot(turn(points), turn(others)), space.norm(turn(points))
        assert dot.shape == norm.shape == turn(torch.ones(5, 1)).shape
        assert dot.flatten().tolist() == pytest.approx(expected, rel=1e-14)
        assert norm.flatten().tolist() == pytest.approx(lengths, rel=1e-14)
        assert space.run_axis == (0 if space.axis == -1 else -1)


def test_a_hyperparameter_one_a_run_multiplies_its_own_run_in_both_layouts():
    h, points = torch.tensor([2.0, 3.0]), torch.ones(2, 4)
    assert torch.equal(Space(-1).per_run(h) * points, torch.tensor([[2.0], [3.0]]).expand(2, 4))
    assert torch.equal(Space(0).per_run(h) * points.T, torch.tensor([2.0, 3.0]).expand(4, 2))
    assert Space(-1).per_run(torch.tensor(2.0)).ndim == 0


@pytest.mark.parametrize("runs", [1, 3])
def test_blocks_are_layer_shaped_views_and_join_is_their_inverse(runs):
    space = Space(-1, SHAPES)
    x = torch.arange(runs * 14.0).reshape(runs, 14)
    blocks = space.blocks(x)
    assert [tuple(block.shape) for block in blocks] == [(runs, *shape) for shape in SHAPES]
    assert torch.equal(space.join(blocks), x)
    starts = itertools.accumulate((6, 3, 1, 4), initial=0)
    for block, start in zip(blocks, starts, strict=False):
        assert block.data_ptr() == x[:, start:].data_ptr()
    assert [tuple(block.shape) for block in space.blocks(x[0])] == list(SHAPES)


def test_a_space_without_layers_is_one_block():
    x = torch.ones(2, 3)
    assert Space(0).blocks(x)[0] is x
    assert Space(0).join([x]) is x
