"""Model files: one .safetensors with a JSON header and no code; and the shipped ones.

The header (the file's metadata entry "attncalc") holds

    {"format": 1, "network": name, "config": {...}, "pair_terms": [{"name", "config"}, ...],
     "species": [Z, ...], "reference_energies": [eV, ...], "scale": [...], "dtype": "float32",
     "units": {...}, "training": {...}, "checks": {"sha256": ...}}

or, for a committee, "members": [{...}, ...] with the entries from "network" to "dtype" of every
member (tensors are then called "members.0.network..." and so on),

so that the file rebuilds its potential by itself. Loading reads numbers and JSON: it can execute
nothing. The table of network names below is the only one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from attncalc.files import write_atomically
from attncalc.files.reading import open_regular
from attncalc.model_header import (
    DTYPES,
    FORMAT,
    UNITS,
    StoredModel,
    check_header,
    descriptions,
    signature,
)
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Committee, Potential
from attncalc.text import one_line

NETWORKS: dict[str, tuple[type[nn.Module], type]] = {
    "so3krates": (So3krates, So3kratesConfig),
    "so3krates-sphc": (So3kratesSphc, So3kratesSphcConfig),
    "equiformer": (Equiformer, EquiformerConfig),
}
PAIR_TERMS: dict[str, tuple[type[nn.Module], type]] = {"zbl": (ZBLRepulsion, ZBLConfig)}


def save(potential: Potential, path: str | Path) -> None:
    """Write a potential to one file, atomically: a reader never sees half of it.

    Tensors are stored in the dtype they have, so that loading gives the same bits back.

    Raises:
        ValueError: a reference energy, scale or hyper-parameter is not finite.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(potential).items()}
    if isinstance(potential, Committee):
        description = {"members": [_description(member) for member in potential.members]}
    else:
        description = _description(potential)
    header = {
        "format": FORMAT,
        **description,
        "units": UNITS,
        # JSON has no NaN; an error that was not finite must not make the weights unreadable
        "training": _without_nan(potential.training_info),
    }
    if potential.baseline:  # which a committee knows from its members
        header["training"]["baseline"] = potential.baseline
    # as it will be read: JSON turns keys into strings and tuples into lists
    header = json.loads(json.dumps(header, allow_nan=False))
    header["checks"] = {"sha256": signature(header, tensors)}
    check_header(header)  # what `load` would refuse must not be written
    content = safetensors_bytes(tensors, metadata={"attncalc": json.dumps(header)})
    write_atomically(path, content)


def load(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    threads: int = 1,
) -> Potential:
    """Read a potential from a model file.

    Args:
        model: the name of a shipped model (see `shipped_models`) or the path of a model file.
        device: where its tensors go.
        dtype: "float32" or "float64" for the network, or torch's; None for the model's own.
        threads: that compiled steps on a CPU take for a large structure.

    Returns:
        A potential whose parameters do not require gradients.

    Raises:
        FileNotFoundError: there is neither a shipped model nor a file of this name.
        ValueError: the file is not an intact model file of this format, `dtype` or `device` is
            unknown, or there are no threads.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    where = device if isinstance(device, torch.device) else named_device(device)
    path = find_model(model)
    try:
        with open_regular(path) as file:
            stored = StoredModel(file)
            with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
                potential = _build(stored.header, stored.shapes)
            _require_shapes(potential, stored.shapes)  # before a tensor is read
            _fill(potential, dict(stored.tensors()))
    except ValueError as error:
        raise ValueError(one_line(f"{path.name}: {error}")) from None
    members = potential.members if isinstance(potential, Committee) else [potential]
    for member, description in zip(members, descriptions(stored.header), strict=True):
        member.compute_in(DTYPES[dtype or description["dtype"]])
    potential.take_threads(threads)
    potential.checksum = stored.header["checks"]["sha256"]
    return potential.to(where).requires_grad_(False).eval()


def named_device(name: str) -> torch.device:
    """Return the device "cpu", "cuda" or "cuda:N"; "auto" is CUDA where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name) if isinstance(name, str) else None
    except (RuntimeError, ValueError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f'device must be "auto", "cpu", "cuda" or "cuda:N", got {name!r}')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} does not exist: PyTorch finds {torch.cuda.device_count()} CUDA "
            'devices; use device="cpu" or "auto"'
        )
    return device


def header(model: str | Path) -> dict[str, Any]:
    """Return the JSON header of a model file, without its potential; errors as in `load`."""
    path = find_model(model)
    try:
        with open_regular(path) as file:
            stored = StoredModel(file)
            for _ in stored.tensors():
                pass  # the checksum is over all of them
            return stored.header
    except ValueError as error:
        raise ValueError(one_line(f"{path.name}: {error}")) from None


def checksum(model: str | Path) -> str:
    """Return the checksum that identifies a model, whatever its name; errors as in `load`."""
    return header(model)["checks"]["sha256"]


def find_model(model: str | Path) -> Path:
    """Return the file of a shipped name or path.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = Path(model)
    if path.is_file():
        return path
    shipped = shipped_models()
    if str(model) in shipped:
        return shipped[str(model)]
    names = ", ".join(sorted(shipped)) or "none"
    # Path("") is the current folder, and a pipe or device could be read for ever
    kind = ""
    if str(model) and path.exists():
        kind = " (a folder)" if path.is_dir() else " (not a regular file)"
    raise FileNotFoundError(
        f"no model file and no shipped model {str(model)!r}{kind}; shipped: {names}"
    )


def model_name(model: str) -> str:
    """Return the name of a model without folders and ending, from a shipped name or a path."""
    name = model.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name.removesuffix(".safetensors") or model


def shipped_models() -> dict[str, Path]:
    """Return name -> file of every model that comes with the package."""
    folder = shipped_models_directory()
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def shipped_models_directory() -> Path:
    """Return the folder models/ inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def _tensors(potential: Potential) -> dict[str, Tensor]:
    if isinstance(potential, Committee):
        return {
            f"members.{n}.{name}": tensor
            for n, member in enumerate(potential.members)
            for name, tensor in _tensors(member).items()
        }
    named = {f"network.{k}": v for k, v in potential.network.state_dict().items()}
    for n, term in enumerate(potential.pair_terms):
        named |= {f"pair_terms.{n}.{k}": v for k, v in term.state_dict().items()}
    return named


def _description(potential: Potential) -> dict[str, Any]:
    return {
        "network": _name_of(potential.network, NETWORKS),
        "config": dataclasses.asdict(potential.network.config),
        "pair_terms": [_described_term(term) for term in potential.pair_terms],
        "species": list(potential.species),
        "reference_energies": potential.reference_energies.tolist(),
        "scale": potential.scale.tolist(),
        "dtype": str(potential.dtype).removeprefix("torch."),
    }


def _described_term(term: Any) -> dict[str, Any]:
    return {"name": _name_of(term, PAIR_TERMS), "config": dataclasses.asdict(term.config)}


def _name_of(module: nn.Module, table: dict[str, tuple[type[nn.Module], type]]) -> str:
    for name, (kind, _) in table.items():
        if type(module) is kind:
            return name
    raise TypeError(f"{type(module).__name__} has no name in the table of model files")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


Shapes = dict[str, tuple[int, ...]]


def _build(header: dict[str, Any], shapes: Shapes) -> Potential:
    n_stored = sum(map(math.prod, shapes.values()))
    training = header["training"]
    for description in descriptions(header):
        n_layers = description["config"].get("num_layers", 1)
        if isinstance(n_layers, int) and n_layers > len(shapes):  # before they are made
            raise ValueError(
                f"the header is damaged: it speaks of {n_layers} layers, "
                f"the file holds {len(shapes)} tensors"
            )
    if "members" not in header:
        return _build_one(header, n_stored, training)
    members = []
    of_each = {"baseline": training["baseline"]} if "baseline" in training else {}
    for description in header["members"]:
        members.append(_build_one(description, n_stored, of_each))
        n_stored -= sum(tensor.numel() for tensor in members[-1].parameters())
    return Committee(members, training=training)


def _build_one(description: dict[str, Any], n_stored: int, training: dict[str, Any]) -> Potential:
    network, config = _look_up(NETWORKS, description["network"], description["config"])
    if config.n_weights_at_least > n_stored:  # before memory is taken for them
        raise ValueError(
            f"the header is damaged: its network has {config.n_weights_at_least} weights or more, "
            f"the file holds {n_stored}"
        )
    species, pair_terms = description["species"], []
    for term in description["pair_terms"]:
        if not _is_pair_term(term):
            raise ValueError("damaged entry in pair_terms")
        kind, term_config = _look_up(PAIR_TERMS, term["name"], term["config"])
        pair_terms.append(kind(term_config, tuple(species)))
    try:
        return Potential(
            network(config, len(species)),
            species,
            reference_energies=description["reference_energies"],
            scale=description["scale"],
            pair_terms=pair_terms,
            training=training,
        )
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"the header is damaged: {error}") from None


def _is_pair_term(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"name", "config"}
        and isinstance(entry["name"], str)
        and isinstance(entry["config"], dict)
    )


def _look_up(table: dict, name: str, config: dict) -> tuple[type[nn.Module], Any]:
    if name not in table:
        raise ValueError(f"{name!r} is not known; known: {', '.join(table)}")
    kind, config_kind = table[name]
    fields = dataclasses.fields(config_kind)
    unknown = [key for key in config if key not in [f.name for f in fields]]
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in config]
    if unknown or missing:
        what = f"{unknown[0]!r} is unknown" if unknown else f"{missing[0]!r} is missing"
        raise ValueError(f"config of {name!r}: {what}; a newer attncalc may have written it")
    try:
        return kind, config_kind(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config of {name!r}: {error}") from None


def _require_shapes(potential: Potential, shapes: Shapes) -> None:
    expected = _tensors(potential)
    if missing := sorted(set(expected) - set(shapes)):
        raise ValueError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if extra := sorted(set(shapes) - set(expected)):
        raise ValueError(f"tensor {extra[0]!r} is not known ({len(extra)} in all)")
    for name, shape in shapes.items():
        if shape != expected[name].shape:
            raise ValueError(
                f"tensor {name!r} has shape {list(shape)}, "
                f"the header asks for {list(expected[name].shape)}"
            )


def _fill(potential: Potential, state: dict[str, Tensor]) -> None:
    # in float64 first: the stored bits survive whatever dtype each tensor was saved in
    potential.double()
    if isinstance(potential, Committee):
        for n, member in enumerate(potential.members):
            _take(member, _under(f"members.{n}.", state))
    else:
        _take(potential, state)


def _take(potential: Potential, state: dict[str, Tensor]) -> None:
    potential.network.load_state_dict(_under("network.", state))
    for n, term in enumerate(potential.pair_terms):
        term.load_state_dict(_under(f"pair_terms.{n}.", state))


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
