"""Trained fields in files: parameters as safetensors, and what they are parameters of in plain words. No pickles."""

import json
import os
import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from workbench.flows.interpolants import KINDS
from workbench.flows.training import FlowNet, NetField
from workbench.problems.densities import Density, Mixture
from workbench.routine import Declared

SCHEMA = "1"
MAX_BYTES = 64 * 2**20


def save_field(field: NetField, path: str | os.PathLike) -> Path:
    """Write a trained field to a .safetensors file; a file that is there is replaced whole.

    Raises:
        ValueError: on a field that was not trained here, or a network that the catalogue cannot make again.
    """
    from safetensors.torch import save_file

    if not isinstance(field, NetField):
        raise ValueError(f"expected a trained field, got {type(field).__name__}; others are made by name")
    tensors = {"params": field.params.detach().cpu().contiguous()}
    about = {
        "workbench_field": SCHEMA,
        "kind": field.kind,
        "interpolant": _declared(field.path),
        "network": _declared(field.net.unbound),
        "source": _density("source", field.source, tensors),
        "target": _density("target", field.target, tensors),
        "classes": field.net.classes,
    }
    if field.objective is not None:
        about["objective"] = _declared(field.objective)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    save_file(tensors, beside, metadata={name: json.dumps(value) for name, value in about.items()})
    os.replace(beside, target)
    return target


def load_field(path: str | os.PathLike) -> NetField:
    """Read a field that `save_field` wrote.

    Raises:
        ValueError: one sentence when the file is missing, larger than 64 MB, damaged, or something else.
    """
    from safetensors import SafetensorError, safe_open

    name = Path(path).name
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise ValueError(f"expected a field of at most {MAX_BYTES // 2**20} MB, got a larger file in {name}")
        with safe_open(path, framework="pt") as file:
            about = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
            # Copied: on some processors products depend, in the last bit, on how memory is aligned, as a file's is not.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise ValueError(f"expected a saved field, found no file {name}") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a saved field in {name}, got a damaged or foreign file ({error})") from None
    if about.get("workbench_field") != SCHEMA or not (about.get("kind") in KINDS or "objective" in about):
        raise ValueError(f"expected a field saved by the workbench in {name}, got another safetensors file")
    try:
        field = _restored(about, tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"expected a whole field in {name}, got one with {error!r} missing or wrong") from None
    field.origin = f"field = wb.load_field({name!r})  # the file is to stand beside this script"
    return field


def shipped(name: str) -> Path:
    """Where a file that comes with the workbench is: `data/` of a checkout, or where pip put it.

    Raises:
        ValueError: when it is in neither.
    """
    places = (Path(__file__).parents[2] / "data", Path(sys.prefix) / "share" / "gradient-workbench")
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"expected {name} to come with the workbench, found it nowhere; data/README.md says how to make it"
        )
    return found


def _restored(about: dict[str, Any], tensors: dict[str, Tensor]) -> NetField:
    from workbench.catalogue import find

    source, target = (_made_density(part, about[part], tensors) for part in ("source", "target"))
    model, objective = _made(about["network"]), about.get("objective")
    if objective is None:
        net = FlowNet(model, target.dim, about["classes"])
    else:
        row = find("flow objectives", "a flow objective", objective["name"])
        objective = cast("Any", row.make(**objective["settings"]))
        net = objective.network(model, target.dim, about["classes"])
    count, params = sum(torch.Size(shape).numel() for shape in net.space.shapes), tensors["params"]
    if params.shape != (1, count) or not bool(torch.isfinite(params).all()):
        raise ValueError(f"expected {count} finite parameters, got a tensor of shape {tuple(params.shape)}")
    rest = _made(about["interpolant"]), source, target
    return NetField(net, params, about["kind"], *rest) if objective is None else objective.field(net, params, *rest)


def _declared(part: Declared) -> dict[str, Any]:
    from workbench.catalogue import catalogue

    if type(part) not in {row.make for row in catalogue()}:
        raise ValueError(f"expected a part of the catalogue, which a file can name, got your own {part.name!r}")
    return {"name": part.name, "settings": part.settings}


def _made(given: dict[str, Any]) -> Any:
    from workbench.catalogue import make

    return make(given["name"], **given["settings"])


def _density(part: str, density: Density, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A density by name, or by the numbers of a mixture of one's own."""
    if not isinstance(density, Mixture) or density.evidence:
        return _declared(density)
    means, log_weights, spectrum, basis = density.exact
    tensors |= {f"{part}.means": means, f"{part}.weights": log_weights.exp()}
    tensors[f"{part}.scale"] = spectrum[:, 0].sqrt() if basis is None else density.exact.covariances
    tensors |= {name: tensor.contiguous() for name, tensor in tensors.items()}
    return {"title": density.title, "reach": density.reach}


def _made_density(part: str, given: dict[str, Any], tensors: dict[str, Tensor]) -> Density:
    if "name" in given:
        return _made(given)
    made = Mixture(*(tensors[f"{part}.{name}"] for name in ("means", "scale", "weights")))
    made.title, made.reach = str(given["title"])[:80], float(given["reach"])
    return made
