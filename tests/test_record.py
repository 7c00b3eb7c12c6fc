"""Records: labelled, with provenance; saved so that a crash leaves the old or the new one, and read back equal."""

import itertools
import json
import multiprocessing
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import workbench as wb
from workbench import record as records
from workbench.record import delete, listing, plain

STOCHASTIC = next(row.name for row in wb.catalogue("surfaces") if row.make.stochastic)


def surface(steps=12, **options):
    return wb.rollout(wb.descent("rosenbrock", "adam"), steps, hyper={"lr": [0.01, 0.1]}, **options)


def net():
    x = torch.randn(40, 4)
    data = (x, x[:, :3].argmax(1), x[:8], x[:8, :3].argmax(1))
    routine = wb.training(wb.make("mlp", width=5), "cross_entropy", data, "sgd", batch_size=8)
    return wb.rollout(routine, 6, hyper={"lr": [0.1, 1.0]}, probes=["train", "heldout", "norms", "weights"], every=2)


def together():
    parts = {name: wb.descent(STOCHASTIC, name) for name in ("adam", "sgd")}
    session = wb.Session(wb.side_by_side(parts)).step(4)
    return session.set(**{"adam.lr": 0.5}).step(4).record()


def diverged():
    return wb.rollout(wb.descent("rosenbrock", "sgd"), 30, hyper={"lr": [0.5, 1e-4]})


def awkward():
    """A record with values and attributes that formats like to change."""
    record = surface(2)
    record["zeros"] = (("run", "step"), np.zeros((2, 3)), {"long_name": "nothing", "units": "1"})
    record["minus"] = (("run",), np.array([-0.0, -0.0]), {"long_name": "nothing from below", "units": "1"})
    record["nan"] = (("run",), np.array([np.nan, -np.nan]), {"long_name": "no numbers", "units": "1"})
    record["whole"] = (("run",), np.array([0, -(2**62)]), {"long_name": "large", "units": "1"})
    record["byte"] = (("run",), np.array([0, 255], np.uint8), {"long_name": "small", "units": "1"})
    record["flag"] = (("run",), np.array([True, False]), {"long_name": "yes or no", "units": "1"})
    record["odd"] = (
        ("run", "step"),
        [[np.nan, np.inf, -np.inf], [-0.0, 5e-324, 1.7e308]],
        {"long_name": "ü", "units": "µ"},
    )
    record["empty"] = (("run", "none"), np.zeros((2, 0)), {"long_name": "empty", "units": "1"})
    record["one"] = ((), 3.5, {"long_name": "single", "units": "1"})
    record = record.assign_coords(name=("run", ["größer, 数", ""], {"long_name": "name", "units": "1"}))
    extra = {
        "note": "naïve ∂f/∂x 🙂",
        "nan": float("nan"),
        "inf": float("inf"),
        "list": [1, 2.5],
        "empty": "",
        "n": 2**53,
    }
    return record.assign_attrs(extra)


RECORDS = {"surface": surface, "net": net, "together": together, "diverged": diverged, "awkward": awkward}
over_records = pytest.mark.parametrize("name", RECORDS)


def identical(a, b):
    """Equal in every value, attribute, dtype and dim; NaN and -0.0 included."""
    xr.testing.assert_identical(a, b)
    assert list(a.attrs) == list(b.attrs)
    for label in a.variables:
        assert a[label].dtype == b[label].dtype, label
        assert a[label].values.tobytes() == b[label].values.tobytes(), label


# ------------------------------------------------------------------------------------------------- what it holds


@over_records
def test_every_variable_and_coordinate_has_a_long_name_and_a_unit(name):
    record = RECORDS[name]()
    for label, variable in record.variables.items():
        assert variable.attrs["long_name"], label
        assert variable.attrs["units"], label
    assert record.x.dims == ("run", "step", "dim") if "x" in record else record.loss.dims == ("run", "step")
    assert set(record.coords) >= {"run", "step"}


@pytest.mark.parametrize("name", ["surface", "net", "together", "diverged"])
def test_attributes_say_how_it_came_about(name):
    record = RECORDS[name]()
    attrs = record.attrs
    for label in ("recipe", "problem", "method", "seed", "start", "hyper", "edits", "steps", "mode", "device", "dtype"):
        assert label in attrs
    assert record.wb.attr("versions").keys() >= {"workbench", "torch", "numpy", "xarray", "python"}
    assert attrs["created"].endswith("+00:00")
    assert attrs["device"] == "cpu"
    assert attrs["dtype"] == "float32"
    json.dumps(dict(attrs), allow_nan=False)
    if name == "together":
        assert record.wb.attr("edits") == [[4, "adam.lr", 0.5]]
    else:
        assert record.wb.attr("hyper")["lr"] == record.lr.values.tolist()
    assert record.wb.status == [f"diverged at step {k}" if k >= 0 else "ok" for k in record.diverged_at.values]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
        (np.float32(0.5), 0.5),
        (np.array([[1, 2]]), [[1, 2]]),
        ({1: (np.int64(3), None)}, {"1": [3, None]}),
        ("word", "word"),
        (True, True),
        (range(2), "range(0, 2)"),
    ],
)
def test_plain_values_are_what_json_can_hold(value, expected):
    assert plain(value) == expected
    json.dumps(plain(value))


# ------------------------------------------------------------------------------------------------- round trips


@over_records
def test_a_saved_record_reads_back_equal_however_often(name, tmp_path):
    record = RECORDS[name]()
    kept = record.copy(deep=True)
    wb.save(record, tmp_path / "a")
    once = wb.open(tmp_path / "a")
    wb.save(once, tmp_path / "b")
    wb.save(wb.open(tmp_path / "b"), tmp_path / "b")
    identical(record, kept)
    identical(once, kept)
    identical(wb.open(tmp_path / "b"), kept)


@over_records
def test_a_record_survives_netcdf(name, tmp_path):
    record = RECORDS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record.to_netcdf(tmp_path / "record.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / "record.nc", engine="h5netcdf") as back:
            xr.testing.assert_equal(back, record)
            assert {label: back[label].attrs for label in back.variables} == {
                label: record[label].attrs for label in record.variables
            }
            given = {label: value for label, value in record.attrs.items() if label not in ("nan", "list")}
            assert {label: back.attrs[label] for label in given} == given


def test_a_record_larger_than_one_chunk_reads_back_equal(tmp_path):
    record = wb.rollout(wb.descent("rosenbrock", "sgd"), 400, start=np.random.default_rng(0).normal(size=(700, 2)))
    wb.save(record, tmp_path / "large")
    assert len(list((tmp_path / "large" / "x").iterdir())) > 3
    identical(wb.open(tmp_path / "large"), record)


def test_values_are_read_when_they_are_used(tmp_path):
    wb.save(surface(), tmp_path / "run")
    record = wb.open(tmp_path / "run")
    assert not any(record.variables[label]._in_memory for label in record.data_vars)
    record.x.load()
    assert [label for label in record.data_vars if record.variables[label]._in_memory] == ["x"]
    shutil.rmtree(tmp_path / "run" / "loss")
    record.grad_norm.load()


def test_a_record_names_its_folder_as_it_likes(tmp_path):
    for name in ("lr [0.1] *", "größe", "a b", "run.zarr", "x" * 100):
        identical(
            wb.open(wb.save(surface(), tmp_path / "deep" / "er" / name)), wb.open(tmp_path / "deep" / "er" / name)
        )
    assert len(list(listing(tmp_path / "deep" / "er"))) == 5


# ------------------------------------------------------------------------------------------------- crashes


CHANGES = {"to_zarr": xr.Dataset, "write_text": Path, "fsync": os, "rename": Path, "rmtree": shutil}
"""What a save does to the disk, in the order it first does it."""


def watched(patch, act):
    """Call act(name, n) before the n-th use of each change."""

    def watch(name, original, count):
        def call(*args, **kwargs):
            act(name, next(count))
            return original(*args, **kwargs)

        return call

    for name, owner in CHANGES.items():
        patch.setattr(owner, name, watch(name, getattr(owner, name), itertools.count(1)))


def save_and_crash(record, path, moment):
    """In a process of its own: the power is cut at one moment of a save, so that nothing more runs."""
    with pytest.MonkeyPatch.context() as patch:
        watched(patch, lambda name, n: os._exit(17) if (name, n) == moment else None)
        wb.save(record, path)


def moments_of_a_save(record, path):
    """The first, the middle and the last use of each change."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        watched(patch, lambda name, n: seen.append((name, n)))
        wb.save(record, path)
    last = dict(seen)
    chosen = {(name, n) for name in last for n in (1, (1 + last[name]) // 2, last[name] - 1, last[name])}
    return [moment for moment in seen if moment in chosen]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.slow
def test_a_crash_at_any_moment_of_a_save_leaves_the_old_or_the_new_record_whole(tmp_path):
    """A process forked for each moment saves over an old record and dies there; then the folder is read."""
    torch.set_num_threads(1)
    runs, old, new = tmp_path / "runs", surface(3), surface(5)
    wb.save(old, runs / "run")
    moments = moments_of_a_save(new, runs / "run")
    assert {name for name, _ in moments} == set(CHANGES)
    outcomes = []
    for moment in moments:
        delete(runs / "run")
        wb.save(old, runs / "run")
        process = multiprocessing.get_context("fork").Process(target=save_and_crash, args=(new, runs / "run", moment))
        process.start()
        process.join(60)
        assert process.exitcode == 17, moment
        assert [path.name for path in listing(runs)] == ["run"], moment
        found = wb.open(runs / "run").load()
        identical(found, new if found.sizes["step"] == 6 else old)
        outcomes.append(found.sizes["step"] == 6)
        wb.save(old, runs / "run")
        assert [path.name for path in runs.iterdir()] == ["run"], "something of the crash is left"
    assert outcomes == sorted(outcomes)
    assert {False, True} == set(outcomes)


@pytest.mark.parametrize("moment", ["write", "first rename", "second rename"])
def test_a_save_that_fails_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch, moment):
    wb.save(surface(3), tmp_path / "run")
    calls = []

    def rename(path, target, original=Path.rename):
        calls.append(path)
        if len(calls) == {"first rename": 1, "second rename": 2}.get(moment):
            raise OSError("disk on fire")
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    if moment == "write":
        monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk on fire")))
    with pytest.raises(OSError, match="disk on fire"):
        wb.save(surface(5), tmp_path / "run")
    monkeypatch.undo()
    assert wb.open(tmp_path / "run").sizes["step"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_record_set_aside_by_a_crash_comes_back_and_a_deleted_one_does_not(tmp_path):
    wb.save(surface(3), tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / ".run.old-00000000")
    shutil.copytree(tmp_path / ".run.old-00000000", tmp_path / ".other.new-00000000")
    assert wb.open(tmp_path / "run").sizes["step"] == 4
    (tmp_path / "run").rename(tmp_path / ".run.old-00000000")
    assert [path.name for path in listing(tmp_path)] == ["run"]
    shutil.copytree(tmp_path / "run", tmp_path / ".run.old-11111111")
    delete(tmp_path / "run")
    assert list(listing(tmp_path)) == []
    with pytest.raises(ValueError, match="got nothing there"):
        wb.open(tmp_path / "run")


# ------------------------------------------------------------------------------------------------- refusals


def test_what_is_not_a_record_is_neither_overwritten_nor_deleted_nor_listed(tmp_path):
    wb.save(surface(2), tmp_path / "run")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("more")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "nearly").mkdir()
    (tmp_path / "nearly" / ".zattrs").write_text("[1, 2]")
    surface(2).drop_attrs().to_zarr(tmp_path / "zarr", zarr_format=2, consolidated=True)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for name in ("folder", "file", "link", "dangling", "nearly", "zarr"):
        with pytest.raises(ValueError, match="to be free or a saved run, got something else"):
            wb.save(surface(1), tmp_path / name)
        with pytest.raises(ValueError, match="to be a saved run, got something else; nothing was removed"):
            delete(tmp_path / name)
        if name != "link":
            with pytest.raises(ValueError, match=r"expected .*(got nothing there|no record inside)"):
                wb.open(tmp_path / name)
    with pytest.raises(ValueError, match="nothing was removed"):
        delete(tmp_path / "nowhere")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert {path.name for path in listing(tmp_path)} == {"run", "link"}
    assert list(listing(tmp_path / "nowhere")) == []


def test_a_dataset_that_is_no_record_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="expected a record made by the workbench"):
        wb.save(xr.Dataset({"a": ("x", [1, 2])}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_deleting_removes_the_folder_and_listing_is_newest_first(tmp_path):
    for i, name in enumerate(("first", "second", "third")):
        path = wb.save(surface(1), tmp_path / name)
        os.utime(path, (1e9 + i, 1e9 + i))
    assert [path.name for path in listing(tmp_path)] == ["third", "second", "first"]
    delete(tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "third"]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "a piece is missing": lambda run: (run / "x" / "0.0.0").unlink(),
    "a piece is cut": lambda run: cut(run / "x" / "0.0.0"),
    "a piece is empty": lambda run: (run / "loss" / "0.0").write_bytes(b""),
    "an array is missing": lambda run: shutil.rmtree(run / "loss"),
    "the shape of an array is cut": lambda run: cut(run / "loss" / ".zarray"),
    "the labels of an array are missing": lambda run: (run / "loss" / ".zattrs").unlink(),
    "the index is cut": lambda run: cut(run / ".zmetadata"),
    "the index is missing": lambda run: (run / ".zmetadata").unlink(),
    "the index is of something else": lambda run: (run / ".zmetadata").write_text('{"metadata": {}}'),
    "the index is a list": lambda run: (run / ".zmetadata").write_text("[]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_record_gives_one_sentence_that_says_so(name, tmp_path):
    run = wb.save(surface(), tmp_path / "run")
    DAMAGE[name](run)
    with pytest.raises(ValueError, match="to be a whole saved run, got") as raised:
        wb.open(run)
    assert str(run) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_record_whose_mark_is_cut_is_no_record(tmp_path):
    run = wb.save(surface(), tmp_path / "run")
    cut(run / ".zattrs")
    with pytest.raises(ValueError, match="no record inside"):
        wb.open(run)


def test_an_index_made_by_others_is_read_without_sizes(tmp_path):
    run = wb.save(surface(), tmp_path / "run")
    index = json.loads((run / ".zmetadata").read_text())
    assert index.pop(records.SIZES)["x/0.0.0"] == (run / "x" / "0.0.0").stat().st_size
    (run / ".zmetadata").write_text(json.dumps(index))
    identical(wb.open(run).drop_attrs(), surface().drop_attrs())
