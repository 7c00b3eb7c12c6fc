"""Write constraints.txt and environment.yml from what is installed beside this interpreter."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OTHER_PLATFORMS = ["appnope==1.0.0"]  # ipykernel asks for it on macOS
CONDA_EXTRAS = ["app", "jupyter", "test"]

CONSTRAINTS = """\
# The version of every package the workbench is tested with. Written by `make constraints`; do not edit.
# Use: pip install -c constraints.txt '.[app,jupyter]'. A line binds only if its package is asked for, so one file
# serves every platform. Not here: what torch itself pins (CUDA libraries), and the installers (pip, setuptools).
"""
ENVIRONMENT = """\
# mamba env create -f environment.yml && conda activate gradient-workbench && workbench serve
# The same versions as constraints.txt. Written by `make constraints`; do not edit.
name: gradient-workbench
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
      - -c constraints.txt
"""


def canonical(name: str) -> str:
    """The name as package indexes compare it: lower case, one dash for each run of ``-_.``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """The pin of every installed package by name, without build labels such as ``+cpu``."""
    skip = [
        "--exclude-editable",
        *(f"--exclude={name}" for name in ("gradient-workbench", "pip", "setuptools", "wheel")),
    ]
    command = [sys.executable, "-m", "pip", "freeze", "--disable-pip-version-check", *skip]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pins = [line.split("+")[0].split("==") for line in [*lines, *OTHER_PLATFORMS] if "==" in line]
    return {canonical(name): f"{canonical(name)}=={version}" for name, version in pins}


def direct(project: dict, extras: list[str]) -> set[str]:
    """Canonical names of what the project and these extras ask for themselves."""
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in wanted} - {project["name"]}


def main() -> None:
    """Write both files; fail when something pyproject.toml asks for is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = installed()
    missing = direct(project, list(project["optional-dependencies"])) - pins.keys()
    if missing:
        sys.exit(f"expected every package that pyproject.toml names, missing: {', '.join(sorted(missing))}")
    (ROOT / "constraints.txt").write_text(CONSTRAINTS + "".join(f"{pins[name]}\n" for name in sorted(pins)))
    conda = [pins[name] for name in sorted(direct(project, CONDA_EXTRAS))] + [f"-e .[{','.join(CONDA_EXTRAS)}]"]
    (ROOT / "environment.yml").write_text(ENVIRONMENT + "".join(f"      - {line}\n" for line in conda))
    print(f"pinned {len(pins)} packages")


if __name__ == "__main__":
    main()
