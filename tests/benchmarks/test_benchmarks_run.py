"""Each benchmark runs; how fast is not for a test to say."""

import json

import pytest

from workbench import bench

FIELDS = {"name", "ours", "peer", "ratio", "bar", "holds", "unit"}


@pytest.mark.slow
@pytest.mark.parametrize("name", bench.benchmarks())
def test_each_benchmark_runs_and_prints_its_figures(name, capsys):
    assert bench.main([name, "--quick", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert row.keys() >= FIELDS
    assert row["name"] == name
    assert row["ours"], row.get("note")
    assert row["peer"], row.get("note")
