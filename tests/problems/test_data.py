"""Data: the three real sets, and anybody's own from arrays or a file, which is data or gives one clear sentence."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.problems import data as module
from workbench.problems.data import as_data, from_arrays, read

# ------------------------------------------------------------------------------------------------- real data

SIZES = {
    # samples, inputs, classes, held out, samples of each class
    "digits": (1797, 64, 10, 359, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]),
    "breast-cancer": (569, 30, 2, 114, [212, 357]),
    "diabetes": (442, 10, 0, 88, []),
}


@pytest.mark.parametrize("name", SIZES)
def test_real_data_have_the_published_size(name):
    samples, inputs, classes, held, counts = SIZES[name]
    data = wb.make(name).load()
    assert data.x.shape == (samples - held, inputs)
    assert data.x_test.shape == (held, inputs)
    assert len(data.classes) == classes
    assert data.outputs == max(classes, 1)
    if classes:
        assert data.y.dtype == torch.int64
        assert torch.cat([data.y, data.y_test]).bincount().tolist() == counts
    else:
        assert data.y.shape == (samples - held, 1)
        assert data.y_test.shape == (held, 1)


@pytest.mark.parametrize("name", SIZES)
def test_inputs_and_values_are_standardised_by_the_training_part_alone(name):
    data = wb.make(name).load()
    varies = data.x.amax(0) > data.x.amin(0)
    assert data.x.mean(0).abs().max() < 1e-12
    torch.testing.assert_close(
        data.x[:, varies].std(0, correction=0), torch.ones(int(varies.sum()), dtype=torch.float64)
    )
    assert (data.x[:, ~varies] == 0).all()
    assert data.x_test.mean(0).abs().max() > 1e-3
    if not data.classes:
        assert abs(data.y.mean().item()) < 1e-12
        assert data.y.std(correction=0).item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("name", SIZES)
def test_the_split_is_fixed_disjoint_and_complete(name):
    import sklearn.datasets

    data, again = wb.make(name).load(), wb.make(name).load()
    for part in ("x", "y", "x_test", "y_test"):
        assert torch.equal(getattr(data, part), getattr(again, part))
    bundle = getattr(sklearn.datasets, f"load_{name.replace('-', '_')}")()
    order = wb.Key(0).stream("split").permutation(len(bundle.data)).numpy()
    train, test = order[: len(data.x)], order[len(data.x) :]
    assert sorted([*train, *test]) == list(range(len(bundle.data)))
    varies = bundle.data[train].std(0) > 0
    for rows, part in ((train, data.x), (test, data.x_test)):
        raw = (bundle.data[rows] - bundle.data[train].mean(0))[:, varies] / bundle.data[train].std(0)[varies]
        np.testing.assert_allclose(part[:, varies], raw, rtol=1e-12, atol=1e-12)
    larger = wb.make(name, holdout=0.5).load()
    assert len(larger.x_test) == round(0.5 * len(bundle.data))


def test_digits_carry_their_pictures_as_they_came():
    data = wb.make("digits").load()
    assert data.image == (8, 8)
    assert data.pixels.shape == (359, 8, 8)
    assert data.pixels.min() == 0
    assert data.pixels.max() == 1
    import sklearn.datasets

    order = wb.Key(0).stream("split").permutation(1797).numpy()
    assert np.array_equal(data.pixels[3] * 16, sklearn.datasets.load_digits().images[order[len(data.x) + 3]])


# ------------------------------------------------------------------------------------------------- arrays


def table(rows=30):
    generator = np.random.default_rng(0)
    return generator.normal(size=(rows, 3)), np.arange(rows) % 3


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (np.arange(30) % 3, ("0", "1", "2")),
        (np.arange(30) % 3 - 1.0, ("-1", "0", "1")),
        (["b", "a", "c"] * 10, ("a", "b", "c")),
        (np.array(["b", "a"] * 15, dtype=object), ("a", "b")),
        (np.array([b"b", b"a"] * 15), ("a", "b")),
        ([True, False] * 15, ("False", "True")),
        (torch.arange(30) % 2, ("0", "1")),
        (np.arange(30), ()),
        (np.linspace(0, 1, 30), ()),
        (np.arange(30) % 3 + 0.5, ()),
    ],
)
def test_words_and_few_whole_numbers_are_classes_other_numbers_are_values(y, classes):
    data = from_arrays(table()[0], y)
    assert data.classes == classes
    if classes:
        order = wb.Key(0).stream("split").permutation(30).tolist()
        given_words = [str(v.decode() if isinstance(v, bytes) else v) for v in np.asarray(y)[order[: len(data.y)]]]
        assert [float(word) if word[-1].isdigit() else word for word in given_words] == [
            float(classes[i]) if classes[i][-1].isdigit() else classes[i] for i in data.y
        ]
    else:
        assert data.y.shape == (24, 1)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e17, -1 / 3])
def test_an_input_that_never_varies_becomes_zero(constant):
    x, y = table(37)
    x[:, 1] = constant
    data = from_arrays(x, y)
    assert (data.x[:, 1] == 0).all()
    assert (data.x_test[:, 1] == 0).all()
    assert (from_arrays(x, np.full(37, 0.1)).y == 0).all()


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.ones((30, 2)), np.ones(29), "expected as many targets as inputs, got 29 targets and 30 inputs"),
        (np.ones((9, 2)), np.ones(9), "expected at least 10 samples"),
        (np.ones((30, 0)), np.arange(30), "at least one number"),
        (np.ones((0, 2)), [], "expected at least 10 samples"),
        (3.0, [1], "expected numbers"),
        ([["a", "b"]] * 30, np.arange(30), "expected numbers"),
        ([[1, 2], [3]] * 15, np.arange(30), "expected numbers"),
        (np.ones((30, 2)) * 1j, np.arange(30), "expected numbers"),
        (np.full((30, 2), np.datetime64("2020")), np.arange(30), "expected numbers"),
        (
            np.where(np.arange(60).reshape(30, 2) == 13, np.nan, 1),
            np.arange(30),
            r"got nan in row 7, column 2 \(1 in all",
        ),
        (np.where(np.arange(60).reshape(30, 2) == 13, 1e31, 1), np.arange(30), "got 1e"),
        (np.ones((30, 2)), [np.inf] * 30, "got inf in row 1"),
        (np.ones((30, 2)), np.ones(30), "expected 2 to 100 classes in the last column, got 1"),
        (np.ones((300, 2)), [f"w{i}" for i in range(300)], "expected 2 to 100 classes in the last column, got 300"),
        (np.ones((30, 2001)), np.arange(30), "expected at most 100000 rows and 2000 columns"),
        (np.ones((100_001, 1)), np.arange(100_001), "expected at most 100000 rows"),
    ],
)
def test_arrays_that_are_no_data_are_refused_in_a_sentence(x, y, words):
    with pytest.raises(ValueError, match=words):
        from_arrays(x, y)


def test_the_share_held_out_has_to_leave_something():
    with pytest.raises(ValueError, match=r"expected holdout to be a number from 0\.01 to 0\.9"):
        from_arrays(*table(), holdout=1.0)


def test_arrays_already_split_are_taken_as_they_are_and_copied():
    x, y = torch.randint(0, 255, (20, 3, 2), dtype=torch.uint8), torch.arange(20) % 4
    data = as_data(x, y, x[:5], y[:5] * 0)
    assert data.x.shape == (20, 3, 2)
    assert data.classes == ("0", "1", "2", "3")
    kept = data.x.clone()
    x.zero_()
    assert torch.equal(data.x, kept)
    routine = wb.training("linear", "cross_entropy", (kept, y, kept[:5], y[:5]), "sgd", batch_size=5)
    assert routine.data.x.shape == (20, 6)
    assert wb.rollout(routine, 3).sizes["step"] == 4


def test_inputs_with_more_axes_keep_them():
    x, y = np.random.default_rng(0).normal(size=(30, 1, 4, 4)), np.arange(30) % 2
    assert as_data(x, y).x.shape == (24, 1, 4, 4)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    assert wb.rollout(wb.training(net, "cross_entropy", (x, y), "sgd", batch_size=6), 2).sizes["step"] == 3


def test_values_without_a_column_axis_are_compared_one_by_one():
    torch.set_num_threads(1)
    x = torch.randn(20, 2, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64)
    for shape in ((20,), (20, 1)):
        routine = wb.training("linear", "mse", (x, y.reshape(shape), x, y.reshape(shape)), "sgd", batch_size=20)
        record = wb.rollout(routine, 300, hyper={"lr": 0.1}, probes=["heldout"], every=100)
        assert record.heldout_loss[0, -1] < 1e-6
    two = torch.stack([y, -y], 1)
    record = wb.rollout(wb.training("linear", "mse", (x, two, x, two), "sgd", batch_size=20), 300, hyper={"lr": 0.2})
    assert record.loss[0, -1] < 1e-6


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (lambda x, y: (x,), "got 1 arrays"),
        (lambda x, y: (x, y, x), "got 3 arrays"),
        (lambda x, y: (x, y, x[:, :2], y), "expected held-out arrays shaped like the others"),
        (lambda x, y: (x, y[:-1], x, y), "expected as many targets as inputs"),
        (lambda x, y: (x, y, x[:0], y[:0]), "at least one"),
        (lambda x, y: (x, y - 1, x, y), "expected classes as one whole number from 0"),
        (lambda x, y: (x, y, x, y + 100), "expected classes as one whole number from 0"),
        (lambda x, y: (x / 0, y, x, y), "expected x to be an array of finite real numbers"),
        (lambda x, y: (x, y, x, "words"), "expected y_test to be an array"),
        (lambda x, y: (x, y, None, None), "expected x_test to be an array"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_tuples_that_are_no_data_are_refused_in_a_sentence(arrays, words):
    with pytest.raises(ValueError, match=words):
        wb.training("linear", "cross_entropy", arrays(*table()), "sgd")


# ------------------------------------------------------------------------------------------------- CSV files


def csv(rows, sep=",", header=""):
    lines = [sep.join(map(str, row)) for row in rows]
    return "\n".join([header, *lines] if header else lines).encode()


ROWS = [[i, (i * i) % 7, i % 3] for i in range(30)]


@pytest.mark.parametrize(
    "content", [csv(ROWS), csv(ROWS, header="a,b,kind"), csv(ROWS, ";"), csv(ROWS, "\t", "a\tb\tc")]
)
def test_a_table_is_read_with_and_without_header_and_with_every_separator(content):
    data = read("table.csv", content)
    expected = from_arrays([row[:2] for row in ROWS], [row[2] for row in ROWS])
    assert torch.equal(data.x, expected.x)
    assert torch.equal(data.y_test, expected.y_test)
    assert data.classes == ("0", "1", "2")
    assert data.name == "table.csv"
    assert data.recipe == "wb.load_data('table.csv')"


def test_words_in_the_last_column_are_classes_and_blank_lines_and_marks_are_nothing():
    rows = [[f'"{i}"', " 1.5e3 ", f" {'xyz'[i % 3]} "] for i in range(30)]
    text = b"\xef\xbb\xbf" + csv(rows, header="a,b,kind").replace(b"\n", b"\r\n\r\n") + b"\n ,, \n"
    data = read("Folder/Table.CSV", text)
    assert data.classes == ("x", "y", "z")
    assert len(data.x) + len(data.x_test) == 30


def spoilt(row, column, cell, header=""):
    rows = [list(r) for r in ROWS]
    rows[row][column] = cell
    return csv(rows, header=header)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected a CSV file with at least two columns"),
        (b"\n\n \n", "expected a CSV file with at least two columns"),
        (csv([[i] for i in range(30)]), "expected a CSV file with at least two columns"),
        (csv(ROWS[:1]), "expected a CSV file with at least two columns .* and two rows"),
        (csv(ROWS[:9]), "expected at least 10 samples, got 9"),
        (csv([*ROWS[:4], [1, 2], *ROWS[4:]]), "expected 3 columns in every row, got 2 in row 5"),
        (csv([[1, 2], *ROWS], header="a,b,c"), "expected 3 columns in every row, got 2 in row 2"),
        (spoilt(6, 1, "abc"), "expected finite numbers, got 'abc' in row 7, column 2"),
        (spoilt(6, 1, "abc", "a,b,c"), "expected finite numbers, got 'abc' in row 8, column 2"),
        (b"\n\n" + spoilt(6, 1, "", "a,b,c"), "got '' in row 10, column 2"),
        (spoilt(6, 0, "nan"), "expected finite numbers, got 'nan' in row 7, column 1"),
        (spoilt(0, 0, "nan"), "expected finite numbers, got 'nan' in row 1, column 1"),
        (spoilt(6, 0, "-inf"), "got '-inf' in row 7"),
        (spoilt(6, 0, "1e999"), "got '1e999' in row 7"),
        (spoilt(6, 0, "1_0"), "got '1_0' in row 7"),
        (spoilt(6, 2, "nan"), r"got 'nan' in row 7, column 3 \(the target\)"),
        (spoilt(6, 0, "1e300"), "of at most 1e"),
        (csv(ROWS).replace(b"4", b"\xff"), "expected a CSV file in UTF-8 text"),
        (csv(ROWS).replace(b"4", b"\0"), "NUL"),
        (b'"' + b"a" * 200_000, "expected a readable CSV file"),
        (b"1," * 5000 + b"\n", "expected at most 100000 rows and 2000 columns"),
        (csv([[1, "same"]] * 30), "expected 2 to 100 classes in the last column, got 1"),
        (b"1,2\n" * (2 + module.MAX_ROWS), "expected at most 100000 rows"),
    ],
)
def test_a_table_that_is_no_data_is_refused_with_the_place(content, words):
    with pytest.raises(ValueError, match=words):
        read("table.csv", content)


def test_a_file_too_large_or_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"expected a file of at most 20 MB, got 20\.0 MB"):
        read("table.csv", b" " * (module.MAX_BYTES + 1))
    with pytest.raises(ValueError, match=r"expected a \.csv or \.npz file, got 'table\.xlsx'"):
        read("table.xlsx", b"")


def test_a_file_on_disk_is_read_the_same(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(csv(ROWS))
    data = wb.load_data(path, holdout=0.5)
    assert torch.equal(data.x, read("table.csv", csv(ROWS), holdout=0.5).x)
    assert data.recipe == f"wb.load_data({str(path)!r}, holdout=0.5)"


# ------------------------------------------------------------------------------------------------- NPZ files


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def header(text):
    """An .npy file that promises what the text says and holds nothing."""
    text = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


X, Y = table()
Y_FILE = io.BytesIO()
np.save(Y_FILE, Y)
Y_FILE = Y_FILE.getvalue()


@pytest.mark.parametrize("x", [X, X.astype(np.float32), np.asfortranarray(X), X.astype(">f8"), X.reshape(30, 3, 1)])
def test_an_archive_is_read_whatever_the_layout(x):
    data = read("data.npz", npz(X=x, y=Y, names=np.array(["a", "b"])))
    expected = from_arrays(x.reshape(30, 3), Y)
    assert torch.equal(data.x, expected.x)
    assert torch.equal(data.y, expected.y)
    compressed = io.BytesIO()
    np.savez_compressed(compressed, x=x, y=np.array(["u", "v"])[Y % 2])
    assert read("data.npz", compressed.getvalue()).classes == ("u", "v")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected a readable .npz file"),
        (b"PK\x03\x04 nothing more", "expected a readable .npz file"),
        (npz(x=X, y=Y)[:-50], "expected a readable .npz file"),
        (npz(x=X), "expected arrays named x and y, got x"),
        (npz(), "expected arrays named x and y, got none"),
        (npz(x=X[:, 0], y=Y), r"expected x \(samples, features\) and y \(samples,\)"),
        (npz(x=X, y=Y[:-1]), r"expected x \(samples, features\) and y \(samples,\)"),
        (npz(x=np.array(3.0), y=Y), r"expected x \(samples, features\)"),
        (npz(x=np.array([[Bomb()]] * 30), y=Y), "pickled objects are refused"),
        (npz(x=X, y=np.array([Bomb()] * 30)), "pickled objects are refused"),
        (npz(x=X * 1j, y=Y), "expected x to be an array of numbers, got complex128"),
        (npz(x=np.full((30, 2), np.nan), y=Y), "expected finite numbers"),
        (npz(x=np.zeros((30, 2), dtype=[("a", "f8")]), y=Y), "expected x to be an array of numbers"),
        (npz(x=np.array([["a"]] * 30), y=Y), "expected numbers"),
        (zipped(x=b"not an array", y=Y_FILE), "expected x to be an array of numbers"),
        (zipped(x=header("{'descr': '<f8', 'fortran_order': False, 'shape': (10**9, 10**3)}"), y=Y_FILE), "expected x"),
        (
            zipped(x=header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000)}"), y=Y_FILE),
            "x whole",
        ),
        (zipped(x=header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -30)}"), y=Y_FILE), "expected"),
        (zipped(x=header("{'descr': '<U0', 'fortran_order': False, 'shape': (30, 3)}"), y=Y_FILE), "expected x"),
    ],
)
def test_an_archive_that_is_no_data_is_refused_in_a_sentence(content, words):
    with pytest.raises(ValueError, match=words):
        read("data.npz", content)


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 2**16)
    bomb = npz_of_zeros(2**20)
    assert len(bomb) < 2**14
    with pytest.raises(ValueError, match="expected at most 0 MB in x, got 1 MB"):
        read("data.npz", bomb)


def npz_of_zeros(size):
    return zipped(x=b"\0" * size, y=b"")


def test_any_flipped_byte_in_an_archive_leaves_data_or_gives_a_sentence():
    content = npz(x=X, y=Y)
    for i in range(0, len(content), 7):
        damaged = content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :]
        only_data_or_a_sentence("data.npz", damaged)


# ------------------------------------------------------------------------------------------------- fuzzing


def only_data_or_a_sentence(name, content):
    data, sentence = None, ""
    try:
        data = read(name, content)
    except ValueError as error:
        sentence = str(error)
    if data is None:
        assert sentence.startswith("expected")
        assert "\n" not in sentence
        return
    assert torch.isfinite(data.x).all()
    assert torch.isfinite(data.x_test).all()
    assert torch.isfinite(data.y).all()
    assert data.x.shape[1:] == data.x_test.shape[1:]


NUMBERS = st.sampled_from(["1", "-2.5", "1e9", "1e-320", "1e30", "-1e30", "٣", " 7 ", "0"])
CELLS = st.one_of(
    NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.sampled_from(["", "nan", "a", '"', "'", " ", "é", "0x1", "1_0"])
)


@given(st.binary(max_size=300))
@example(b"\r0,1")
@settings(max_examples=150)
def test_any_bytes_as_a_table_are_data_or_a_sentence(content):
    only_data_or_a_sentence("fuzz.csv", content)


TABLES = st.lists(st.tuples(NUMBERS, NUMBERS, CELLS), min_size=9) | st.lists(st.tuples(NUMBERS, CELLS), min_size=9)


@given(TABLES, st.sampled_from(",;\t"))
@settings(max_examples=150)
def test_any_cells_as_a_table_are_data_or_a_sentence(rows, sep):
    only_data_or_a_sentence("fuzz.csv", "\n".join(sep.join(row) for row in rows).encode())


@given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3), min_size=10, max_size=14))
@settings(max_examples=150)
def test_any_numbers_as_a_table_are_data_or_a_sentence(rows):
    only_data_or_a_sentence("fuzz.csv", csv(rows))


@given(st.binary(max_size=200), st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes_as_an_archive_are_data_or_a_sentence(x, y):
    only_data_or_a_sentence("fuzz.npz", x)
    only_data_or_a_sentence("fuzz.npz", zipped(x=x, y=y))
    only_data_or_a_sentence("fuzz.npz", zipped(x=b"\x93NUMPY\x01\x00" + x, y=Y_FILE))


@given(st.text(alphabet="{}'(),: descrfortan_hpOUVbifu<|0123456789-TFlse\\", max_size=120))
@settings(max_examples=150)
def test_any_header_in_an_archive_is_data_or_a_sentence(text):
    only_data_or_a_sentence("fuzz.npz", zipped(x=header(text) + b"\0" * 64, y=Y_FILE))
