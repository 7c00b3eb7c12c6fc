"""What is installed, under which names and versions, is said once and the same everywhere."""

import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
ENVIRONMENT_PIP = ENVIRONMENT["dependencies"][-1]["pip"]
TEXTS = ["Makefile", "constraints.txt", "environment.yml", "pyproject.toml", ".ci/browser", ".ci/pins.py", ".ci/run"]


def pins(lines):
    """{canonical name: version} of the lines that pin; comments, options and the project itself are not pins."""
    requirements = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    for requirement in requirements:
        assert re.fullmatch(r"==[^,*+]+", str(requirement.specifier)), f"expected name==version, got {requirement}"
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text().splitlines())
CONDA = pins(ENVIRONMENT_PIP)


def asked_for(*extras):
    """The requirements of the project and of these extras, without the project's own extras in them."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"]]


def test_torch_is_pinned_to_one_version():
    assert CONSTRAINTS["torch"] == CONDA["torch"] == "2.13.0"


def test_constraints_and_environment_say_the_same_versions():
    assert {name: CONSTRAINTS[name] for name in CONDA} == CONDA


def test_environment_pins_everything_it_installs_directly():
    assert ENVIRONMENT_PIP[0] == "-c constraints.txt"
    assert ENVIRONMENT_PIP[-1] == "-e .[app,jupyter,test]"
    assert set(CONDA) == {canonicalize_name(r.name) for r in asked_for("app", "jupyter", "test")}


def test_environment_has_the_project_name_and_the_oldest_supported_python():
    assert ENVIRONMENT["name"] == PROJECT["name"]
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    assert PROJECT["requires-python"] == ">=3.11"
    assert "python=3.11" in ENVIRONMENT["dependencies"]


@pytest.mark.parametrize("requirement", asked_for(*EXTRAS), ids=str)
def test_every_dependency_has_a_lower_bound_that_its_pin_meets(requirement):
    assert [specifier.operator for specifier in requirement.specifier] == [">="]
    assert requirement.specifier.contains(CONSTRAINTS[canonicalize_name(requirement.name)])


def test_constraints_leave_out_the_project_and_the_installers():
    assert not {PROJECT["name"], "pip", "setuptools", "wheel"} & set(CONSTRAINTS)


def test_names_licence_and_extras_are_the_promised_ones():
    assert PROJECT["name"] == "gradient-workbench"
    assert PROJECT["license"] == "BSD-3-Clause"
    assert (ROOT / "LICENSE").read_text().startswith("BSD 3-Clause License\n")
    assert PROJECT["scripts"] == {"workbench": "workbench.cli:main"}
    assert PROJECT["entry-points"] == {"workbench.commands": {"serve": "widgets.server:main"}}
    assert set(EXTRAS) == {"app", "jupyter", "test", "peers", "dev"}


def test_own_extras_are_named_only_if_they_exist():
    own = [Requirement(line) for lines in EXTRAS.values() for line in lines if line.startswith(PROJECT["name"])]
    assert own
    assert all(requirement.extras <= set(EXTRAS) for requirement in own)


def test_changelog_opens_with_the_version_that_is_packaged():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == PROJECT["version"]


def test_tools_check_for_the_oldest_supported_python():
    oldest = PYPROJECT["tool"]["mypy"]["python_version"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(oldest)
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"


@pytest.mark.parametrize("package", ["workbench", "widgets"])
def test_every_file_of_the_packages_is_installed(package):
    shipped = PYPROJECT["tool"]["setuptools"]["package-data"][package]
    files = [path.relative_to(ROOT / package) for path in (ROOT / package).rglob("*") if path.is_file()]
    data = [path for path in files if path.suffix not in {".py", ".pyc"}]
    # Like setuptools, and unlike fnmatch alone, `**/` also matches no folder at all.
    patterns = {form for pattern in shipped for form in (pattern, pattern.replace("**/", ""))}
    assert [str(path) for path in data if not any(fnmatch.fnmatch(str(path), form) for form in patterns)] == []


@pytest.mark.parametrize("name", TEXTS)
def test_no_package_index_is_named(name):
    assert not re.search(r"index-url|find-links|download\.pytorch|pypi\.org", (ROOT / name).read_text())


def test_make_help_lists_the_two_commands():
    shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {"make serve", "make test"} <= set(re.findall(r"make \w+", shown))
