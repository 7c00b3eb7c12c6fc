"""The frame of the benchmarks: what a ratio means, what is reported when something is missing."""

import json

import pytest

from workbench import bench
from workbench.bench import Benchmark, Figures, Sides


def row(found, **bar):
    return bench.run(Benchmark("one", "what", "peer", lambda quick: found, **bar), True)


@pytest.fixture
def own(monkeypatch, tmp_path):
    """An empty folder of benchmarks, none of them declared."""
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "tests" / "benchmarks")
    monkeypatch.setattr(bench, "_DECLARED", {})
    bench.FOLDER.mkdir(parents=True)


@pytest.mark.parametrize(
    ("figures", "bar", "ratio", "holds"),
    [
        (Figures(2.0, 6.0, "ms"), {"least": 3.0}, 3.0, True),
        (Figures(2.0, 6.0, "ms"), {"most": 0.3}, 1 / 3, False),
        (Figures(0.5, 1.5, "GB"), {"most": 1.0}, 1 / 3, True),
        (Figures(6.0, 2.0, "frames/s"), {"least": 3.1}, 3.0, False),
        (Figures(6.0, 2.0, "frames/s"), {"most": 0.5}, 1 / 3, True),
    ],
)
def test_a_ratio_says_how_many_times_better_or_what_it_costs(figures, bar, ratio, holds):
    found = row(figures, **bar)
    assert found["ratio"] == pytest.approx(ratio, rel=1e-3)
    assert found["holds"] is holds


def test_sides_are_called_in_turn_and_the_fastest_call_counts(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def side(name, seconds):
        def once():
            calls.append(name)
            clock[0] += seconds[min(calls.count(name), len(seconds)) - 1]

        return once

    found = row(Sides(side("ours", [9.0, 1.0, 2.0]), side("peer", [9.0, 8.0, 6.0]), "s"), least=1.0)
    assert (found["ours"], found["peer"], found["ratio"], found["calls"]) == (1.0, 6.0, 6.0, 2)
    assert found["ratio_of_medians"] == pytest.approx(7 / 1.5, rel=1e-3)
    assert calls == ["peer", "ours", "ours", "peer", "peer", "ours"]


def test_jobs_a_second_count_what_one_call_does():
    found = row(Sides(lambda: None, lambda: None, "jobs/s", jobs=(1000, 1)), least=1.0)
    assert found["ours"] > found["peer"]


def test_a_missing_package_is_a_note_without_figures():
    def missing(quick):
        raise ModuleNotFoundError("no", name="optax")

    found = bench.run(Benchmark("one", "what", "peer", missing, least=1.0), True)
    assert (found["ours"], found["ratio"], found["holds"]) == (None, None, None)
    assert found["note"].startswith("optax is not installed: pip install")


@pytest.mark.usefixtures("own")
def test_a_benchmark_has_one_bar_and_a_name_of_its_own():
    for bars in ({}, {"least": 1.0, "most": 1.0}):
        with pytest.raises(ValueError, match="expected one of least and most for 'one'"):
            bench.benchmark("one", what="", peer="", **bars)
    bench.benchmark("one", what="", peer="", most=1.0)(lambda quick: None)
    with pytest.raises(ValueError, match="'one' twice"):
        bench.benchmark("one", what="", peer="", most=1.0)


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(ValueError, match=r"expected a benchmark to be one of .*; got 'seeek'. Did you mean 'seek'"):
        bench.main(["seeek"])


@pytest.mark.usefixtures("own")
def test_without_the_repository_it_says_where_the_benchmarks_live():
    with pytest.raises(ValueError, match="live in the repository"):
        bench.main([])


def test_the_list_runs_nothing(capsys):
    assert bench.main(["adam*", "--list"]) == 0
    assert "adam-rosenbrock-1000 " in capsys.readouterr().out


def test_a_benchmark_that_fails_does_not_stop_the_others(capfd, monkeypatch):
    def apart(one, quick):
        if one.name.endswith("eager-1000"):
            raise OSError("the benchmark failed")
        return one.row({"ours": 1.0, "peer": 2.0, "unit": "ms", "note": "a note"})

    monkeypatch.setattr(bench, "run_apart", apart)
    assert bench.main(["adam*", "--json"]) == 1
    out, err = capfd.readouterr()
    assert [json.loads(line)["ratio"] for line in out.splitlines()] == [2.0, 2.0, 2.0]
    assert err == "workbench: the benchmark failed\n"
    assert bench.main(["adam*"]) == 1
    assert "adam-rosenbrock-10000: a note" in capfd.readouterr().out
