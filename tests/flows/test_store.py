"""Trained fields in files: what is read back is what was written, and nothing else is read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb


def trained(target, **options):
    network = wb.make("mlp", width=8, depth=2, activation="tanh")
    routine = wb.flow_training(
        None, target, network=network, interpolant="variance-preserving", batch_size=8, **options
    )
    return routine.field(wb.Session(routine).step(2).state)


TARGETS = {
    "of the catalogue": lambda: "two-moons",
    "with settings": lambda: wb.make("high-dimensional-mixture", dim=3),
    "drawn": lambda: wb.from_points([[0, 1], [1, 0], [2, 2.5]], scale=0.1),
    "with covariances": lambda: wb.Mixture([[0.0, 0], [1, 1]], torch.tensor([[[2, 1.0], [1, 2]], [[1, 0], [0, 3]]])),
    "with classes": lambda: "digit-images",
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_field_read_back_answers_to_the_bit_and_knows_its_ends(name, tmp_path):
    field = trained(TARGETS[name]())
    found = wb.load_field(wb.save_field(field, tmp_path / "field.safetensors"))
    x, t = torch.randn(5, field.dim), torch.linspace(0.1, 0.9, 5)
    assert torch.equal(found(x, t).velocity, field(x, t).velocity)
    assert found.interpolant.settings == field.interpolant.settings
    assert (found.target.title, found.target.reach) == (field.target.title, field.target.reach)
    like = torch.empty(0, dtype=torch.float64)
    samples = [one.target.sample(wb.Key(3), 7, like) for one in (field, found)]
    assert torch.allclose(*samples, rtol=0, atol=1e-12)
    assert found.net.classes == len(field.target.classes)


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("constant-acceleration-flow", {"h": 0.7}),
        ("c-rectified-flow", {"power": 1.5}),
        ("learned-coupling", {}),
        ("stochastic-interpolant", {}),
    ],
)
def test_a_field_of_several_answers_or_nets_is_read_back_too(objective, settings, tmp_path):
    small = wb.make("mlp", width=8, depth=2, activation="tanh")
    routine = wb.flow_training(
        wb.make("gaussian", dim=64), "digit-images", wb.make(objective, **settings), network=small, batch_size=8
    )
    field = routine.field(wb.Session(routine).step(2).state)
    found = wb.load_field(wb.save_field(field, tmp_path / "field.safetensors"))
    x, t, labels = torch.randn(5, 64), torch.linspace(0.1, 0.9, 5), torch.arange(5)
    for one, other in ((field, found), (field.given(labels), found.given(labels))):
        first, second = one(x, t), other(x, t)
        assert type(one) is type(other)
        assert first.known.keys() == second.known.keys()
        assert all(torch.equal(first[kind], second[kind]) for kind in first.known)
        assert torch.equal(first.data, second.data)


def test_a_file_takes_the_place_of_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "field.safetensors"
    for seed in range(2):
        wb.save_field(trained("two-moons"), path)
        assert [file.name for file in tmp_path.iterdir()] == ["field.safetensors"], seed


def test_what_is_no_field_is_refused_in_one_sentence(tmp_path):
    missing, text, foreign = (tmp_path / name for name in ("no.safetensors", "text.safetensors", "foreign.safetensors"))
    text.write_text("not a field")
    save_file({"a": torch.ones(2)}, foreign)
    with pytest.raises(ValueError, match=r"found no file no\.safetensors"):
        wb.load_field(missing)
    with pytest.raises(ValueError, match=r"expected a saved field in text\.safetensors, got a damaged or foreign file"):
        wb.load_field(text)
    with pytest.raises(ValueError, match="got another safetensors file"):
        wb.load_field(foreign)
    with pytest.raises(ValueError, match="expected a trained field, got ExactField"):
        wb.save_field(wb.exact_field("two-modes"), tmp_path / "exact")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": {"name": "mlp", "settings": {"width": 9}}}, "finite parameters"),
        ({"network": {"name": "os.system", "settings": {}}}, "catalogue"),
        ({"interpolant": {"name": "linear-path"}}, "missing or wrong"),
        ({"kind": "position"}, "got another safetensors file"),
    ],
)
def test_a_file_whose_words_do_not_fit_its_numbers_is_refused(change, words, tmp_path):
    from safetensors import safe_open

    path = wb.save_field(trained("two-moons"), tmp_path / "field.safetensors")
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    about |= {name: json.dumps(value) for name, value in change.items()}
    save_file(load_file(path), path, metadata=about)
    with pytest.raises(ValueError, match=words):
        wb.load_field(path)


def test_parts_that_no_file_can_name_are_refused(tmp_path):
    class Own(type(wb.make("linear-path"))):
        """A path of one's own."""

        name = "own"

    routine = wb.flow_training(None, "two-moons", interpolant=Own(), network=wb.make("mlp", width=4))
    field = routine.field(wb.Session(routine).state)
    with pytest.raises(ValueError, match="expected a part of the catalogue, which a file can name, got your own 'own'"):
        wb.save_field(field, tmp_path / "field")
