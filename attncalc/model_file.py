"""Model files: one .safetensors file with a JSON header and no code; and the shipped models.

The header (the file's metadata entry "attncalc") holds

    {"format": 1, "network": name, "config": {...}, "pair_terms": [{"name", "config"}, ...],
     "species": [Z, ...], "reference_energies": [eV, ...], "scale": [...], "dtype": "float32",
     "units": {...}, "training": {...}, "checks": {"sha256": ...}}

or, for a committee, "members": [{...}, ...] with the entries from "network" to "dtype" of every
member; tensors are then named "members.0.network..." and so on. The file is sufficient to rebuild
its potential.

A member may also be {"name": "other", "sha256": checksum}: the model in other.safetensors, beside
the file or shipped, with all its members if it is a committee. An optional entry "novelty" beside
"dtype" says that the file holds the training environments (tensors "novelty.mean" and so on, see
`attncalc.novelty.Environments`). Loading reads numbers and JSON and cannot execute code. The table
of network names below is the only one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from attncalc.files import write_atomically
from attncalc.files.reading import open_regular
from attncalc.model_header import (
    DESCRIPTION,
    DTYPES,
    FORMAT,
    MOST_MEMBERS,
    N_CENTRES,
    NOVELTY,
    UNITS,
    StoredModel,
    check_header,
    descriptions,
    is_reference,
    signature,
)
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig
from attncalc.novelty import Environments
from attncalc.physics.dispersion import Dispersion, DispersionConfig
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.physics.ewald import Ewald, EwaldConfig
from attncalc.physics.self_energy import SelfEnergy, SelfEnergyConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Committee, Potential, require_potential
from attncalc.text import one_line

NETWORKS: dict[str, tuple[type[nn.Module], type]] = {
    "so3krates": (So3krates, So3kratesConfig),
    "so3krates-sphc": (So3kratesSphc, So3kratesSphcConfig),
    "equiformer": (Equiformer, EquiformerConfig),
}
PAIR_TERMS: dict[str, tuple[type[nn.Module], type]] = {
    "zbl": (ZBLRepulsion, ZBLConfig),
    "electrostatics": (DampedElectrostatics, ElectrostaticsConfig),
    "self_energy": (SelfEnergy, SelfEnergyConfig),
    "dispersion": (Dispersion, DispersionConfig),
    "ewald": (Ewald, EwaldConfig),
}

# hyper-parameters that files of earlier versions lack, as their networks have them
EARLIER: dict[str, dict[str, Any]] = {"equiformer": {"norm": "degree"}}

# for H C N O F P S Cl, if no model is named
DEFAULT_MODEL = "so3krates-organic"
NOVELTY_TENSORS = ("mean", "whiten", "centres", "closest")

# of its training, what a committee's file says for all members that it holds
OF_MEMBERS = ("baseline", "level_of_theory", "closed_shells", "total_charges", "multiplicities")


def save(potential: Potential, path: str | Path, *, refer_to: Sequence[str] = ()) -> None:
    """Write a potential to one file, atomically: a reader never sees half of it.

    Tensors are stored in their own dtype, so that loading restores the same bits.

    Args:
        potential: a single potential or a committee.
        path: the file.
        refer_to: names of models beside the file, or shipped. Members of a committee that are among
            these models are not written: the file refers to them by name and checksum, and needs
            them when it is read.

    Raises:
        ValueError: a reference energy, scale or hyper-parameter is not finite.
        TypeError: `potential` is no `Potential`, or a network or pair term is not in the table of
            model files, or is compiled.
        FileNotFoundError: there is no model of a name in `refer_to`.
    """
    require_potential(potential)
    if potential.lowered_from is not potential:
        raise TypeError(f"compiled weights are not written; {_OF_PLAIN}")
    if len(potential.members) > 1:
        tensors, members = _written_members(potential, Path(path).parent, refer_to)
        description: dict[str, Any] = {"members": members}
    else:
        tensors, description = _tensors(potential), _description(potential)
    header = {
        "format": FORMAT,
        **description,
        "units": UNITS,
        # JSON has no NaN; a test error that is not finite must not make the weights unreadable
        "training": _without_nan(potential.training_info),
    }
    # a committee has these from its members
    if potential.baseline:
        header["training"]["baseline"] = potential.baseline
    if potential.knows_closed_shells_only:
        header["training"]["closed_shells"] = True
    for name, known in (
        ("total_charges", potential.known_charges),
        ("multiplicities", potential.known_multiplicities),
    ):
        if known is not None:
            header["training"][name] = list(known)
    # as it will be read: JSON turns keys into strings and tuples into lists
    header = json.loads(json.dumps(header, allow_nan=False))
    header["checks"] = {"sha256": signature(header, tensors)}
    # what `load` would refuse must not be written
    check_header(header)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"tensor {name!r} is not finite: this model is not written")
    content = safetensors_bytes(tensors, metadata={"attncalc": json.dumps(header)})
    write_atomically(path, content)


@torch.inference_mode(False)  # weights that are made in that mode cannot be used outside
def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    threads: int | None = None,
    long_range_cutoff: float | None = None,
) -> Potential:
    """Read a potential from a model file.

    Args:
        model: the name of a shipped model (see `shipped_models`), the path of a model file, or the
            folder of a training, with one model file; by default the general model of molecules of
            H, C, N, O, F, P, S and Cl.
        device: device of the tensors; "auto" is CUDA if available.
        dtype: of the network, "float32", "float64" or a torch dtype; None: the model's own.
        threads: number of threads of a compiled network on a CPU for large structures; None: 1.
        long_range_cutoff: Å, see `Potential.set_long_range_cutoff`; None: the model's own.

    Returns:
        A potential whose parameters do not require gradients.

    Raises:
        FileNotFoundError: there is neither a shipped model nor a file of this name.
        ValueError: the file is not an intact model file of this format, a member that it refers to
            is missing or has changed, `dtype` or `device` is unknown, `threads` or
            `long_range_cutoff` is invalid, or the model has no terms of longer range.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    where = named_device(device)
    potential = _read(find_model(model), set(), dtype)
    if threads is not None:
        potential.set_num_threads(threads)
    if long_range_cutoff is not None:
        potential.set_long_range_cutoff(long_range_cutoff)
    return potential.to(where).requires_grad_(False).eval()


def named_device(name: str | torch.device) -> torch.device:
    """Return the device "cpu", "cuda" or "cuda:N"; "auto" is CUDA if available.

    Raises:
        ValueError: there is no such device.
    """
    if isinstance(name, torch.device):
        name = str(name)
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
    """Return the JSON header of a model file, without building the potential.

    Members that the file refers to are described as if they were in it. Errors are those of `load`.
    """
    return _header(find_model(model), set())


def origin(model: str | Path) -> dict[str, str]:
    """Return name, data, labels and fingerprints of the structures of a model to start from.

    If the file is gone, only the name is known.
    """
    try:
        info = header(model)["training"]
    except FileNotFoundError:
        info = {}
    data = {key: str(info.get(key) or "") for key in ("data", "labels", "structures")}
    return {"name": model_name(str(model)), **data}


def checksum(model: str | Path) -> str:
    """Return the checksum that identifies a model under any name; errors are those of `load`."""
    return header(model)["checks"]["sha256"]


def find_model(model: str | Path) -> Path:
    """Return the file of a model, from a path or the name of a shipped model.

    Args:
        model: name, file, or a folder that contains one model, as the output of a training.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = Path(model)
    if path.is_file():
        return path
    shipped = shipped_models()
    if str(model) in shipped:
        return shipped[str(model)]
    # Path("") is the current folder
    inside = sorted(path.glob("*.safetensors")) if str(model) and path.is_dir() else []
    if len(inside) == 1 and inside[0].is_file():
        return inside[0]
    names = ", ".join(sorted(shipped)) or "none"
    kind = ""
    if str(model) and path.exists():  # reading a pipe or device might never end
        kind = " (not a regular file)"
        if path.is_dir():
            kind = f" (a folder with {len(inside)} model files)"
    meant = "".join(f"; did you mean {name}?" for name in get_close_matches(str(model), shipped, 1))
    raise FileNotFoundError(
        f"no model file and no shipped model {str(model)!r}{kind}; shipped: {names}{meant}"
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


def _written_members(
    committee: Potential, folder: Path, refer_to: Sequence[str]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return tensors and header entries of the members, those in `refer_to` by reference.

    Models with more members are matched first.
    """
    known = []
    for name in refer_to:
        model = _read(_files_of(name, folder)[0], set())
        known.append(([_content(one) for one in model.members], name, model.checksum))
    known.sort(key=lambda entry: -len(entry[0]))
    contents = [_content(member) for member in committee.members]
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    n = 0
    while n < len(contents):
        for inside, name, sha256 in known:
            if contents[n : n + len(inside)] == inside:
                entries.append({"name": name, "sha256": sha256})
                n += len(inside)
                break
        else:
            own = _tensors(committee.members[n])
            tensors |= {f"members.{len(entries)}.{key}": tensor for key, tensor in own.items()}
            entries.append(_description(committee.members[n]))
            n += 1
    return tensors, entries


def _content(potential: Potential) -> tuple[str, str]:
    """Return a key that is equal for potentials that compute the same."""
    return signature(_description(potential), _tensors(potential)), potential.baseline


def _tensors(potential: Potential) -> dict[str, Tensor]:
    """Return the tensors of a single potential, on the host."""
    named = {f"network.{k}": v for k, v in potential.network.state_dict().items()}
    for n, term in enumerate(potential.pair_terms):
        named |= {f"pair_terms.{n}.{k}": v for k, v in term.state_dict().items()}
    if (known := potential.environments) is not None:
        for name in _novelty_tensors(known):
            named[f"{NOVELTY}.{name}"] = torch.from_numpy(getattr(known, name))
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def _novelty_tensors(known: Environments) -> tuple[str, ...]:
    """Return the names of the tensors in a file: centres only if there are several."""
    return tuple(name for name in NOVELTY_TENSORS if name != "centres" or known.has_clusters)


def _description(potential: Potential) -> dict[str, Any]:
    described: dict[str, Any] = {
        "network": _name_of(potential.network, NETWORKS),
        "config": dataclasses.asdict(potential.network.config),
        "pair_terms": [_described_term(term) for term in potential.pair_terms],
        "species": list(potential.species),
        "reference_energies": potential.reference_energies.tolist(),
        "scale": potential.scale.tolist(),
        "dtype": str(potential.dtype).removeprefix("torch."),
    }
    if (known := potential.environments) is not None:
        described[NOVELTY] = {
            "n_structures": known.n_structures,
            "n_atoms": list(known.n_atoms),
            "n_features": known.whiten.shape[1],
            "n_components": known.whiten.shape[2],
        }
        if known.has_clusters:
            described[NOVELTY][N_CENTRES] = known.centres.shape[2]
    return described


def _described_term(term: Any) -> dict[str, Any]:
    return {"name": _name_of(term, PAIR_TERMS), "config": dataclasses.asdict(term.config)}


_OF_PLAIN = (
    "of a compiled potential, save the one that it was made of, as calculator.evaluator.plain"
)


def _name_of(module: nn.Module, table: dict[str, tuple[type[nn.Module], type]]) -> str:
    for name, (kind, _) in table.items():
        if type(module) is kind:
            return name
    raise TypeError(f"{type(module).__name__} has no name in the table of model files; {_OF_PLAIN}")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    if isinstance(value, np.generic):
        return _without_nan(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


Shapes = dict[str, tuple[int, ...]]
# potentials that a file holds itself, with their dtypes, by the prefix of their tensors' names
Own = dict[str, tuple[Potential, str]]


def _read(path: Path, read: set[str], dtype: str | None = None) -> Potential:
    """Read a potential, with the members that it refers to.

    Args:
        path: of the file.
        read: checksums of the files read so far; this file's is added.
        dtype: of the network; None: its own.
    """
    try:
        with open_regular(path) as file:
            stored = StoredModel(file)
            with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
                own = _build(stored.header, stored.shapes)
            _require_shapes(own, stored.shapes)  # before a tensor is read
            _fill(own, dict(stored.tensors()), dtype)
        header = stored.header
        _count(header, read)
        if "members" in header:
            members = [
                _read(_member_file(entry, path.parent), read, dtype)
                if is_reference(entry)
                else own[f"members.{n}."][0]
                for n, entry in enumerate(header["members"])
            ]
            potential: Potential = Committee(members, training=header["training"])
        else:
            potential, _ = own[""]
    except ValueError as error:
        raise ValueError(one_line(f"{path.name}: {error}")) from None
    potential.checksum = header["checks"]["sha256"]
    return potential


def _header(path: Path, read: set[str]) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            stored = StoredModel(file)
            for _ in stored.tensors():
                pass  # the checksum is over all of them
        _count(stored.header, read)
        if "members" not in stored.header:
            return stored.header
        members: list[dict[str, Any]] = []
        for entry in stored.header["members"]:
            if is_reference(entry):
                found = _header(_member_file(entry, path.parent), read)
                keys = (*DESCRIPTION, NOVELTY)
                members += [
                    {key: one[key] for key in keys if key in one} for one in descriptions(found)
                ]
            else:
                members.append(entry)
        return {**stored.header, "members": members}
    except ValueError as error:
        raise ValueError(one_line(f"{path.name}: {error}")) from None


def _count(header: dict[str, Any], read: set[str]) -> None:
    """Count a file that was read; refuse circular references and too many files."""
    if header["checks"]["sha256"] in read:
        raise ValueError("the same model is twice in a committee")
    read.add(header["checks"]["sha256"])
    if len(read) > MOST_MEMBERS:
        raise ValueError(f"a committee of more than {MOST_MEMBERS} files")


def _files_of(name: str, folder: Path) -> list[Path]:
    """List the files of this name: in the folder, if no link leads out of it, and shipped."""
    beside, shipped = folder / f"{name}.safetensors", shipped_models()
    stays = os.path.dirname(os.path.realpath(beside)) == os.path.realpath(folder)
    files = [beside] if stays and beside.is_file() else []
    files += [shipped[name]] if name in shipped else []
    if not files:
        raise FileNotFoundError(
            f"member {name!r} is missing: {name}.safetensors must be in the folder of the committee"
        )
    return files


def _member_file(reference: dict[str, Any], folder: Path) -> Path:
    """Return the file that is referred to, found by its name and confirmed by its checksum."""
    name, sha256 = reference["name"], reference["sha256"]
    try:
        files = _files_of(name, folder)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    for path in files:
        try:
            with open_regular(path) as file:
                if StoredModel(file).header["checks"]["sha256"] == sha256:
                    return path
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
    raise ValueError(
        f"member {name!r} has changed: the checksum of {name}.safetensors is not "
        f"{sha256[:12]}...; get the file that came with the committee"
    )


def _build(header: dict[str, Any], shapes: Shapes) -> Own:
    n_stored = sum(map(math.prod, shapes.values()))
    training = header["training"]
    if "members" not in header:
        described = {"": header}
    else:
        described = {
            f"members.{n}.": entry
            for n, entry in enumerate(header["members"])
            if not is_reference(entry)
        }
        training = {name: training[name] for name in OF_MEMBERS if name in training}
    for description in described.values():
        n_layers = description["config"].get("num_layers", 1)
        if isinstance(n_layers, int) and n_layers > len(shapes):  # before layers are built
            raise ValueError(
                f"the header is damaged: it speaks of {n_layers} layers, "
                f"the file holds {len(shapes)} tensors"
            )
    own: Own = {}
    for prefix, description in described.items():
        potential = _build_one(description, n_stored, training)
        n_stored -= sum(tensor.numel() for tensor in potential.parameters())
        own[prefix] = potential, description["dtype"]
    return own


def _build_one(description: dict[str, Any], n_stored: int, training: dict[str, Any]) -> Potential:
    network, config = _look_up(NETWORKS, description["network"], description["config"])
    if config.n_weights_at_least > n_stored:  # before memory is allocated for them
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
        potential = Potential(
            network(config, len(species)),
            species,
            reference_energies=description["reference_energies"],
            scale=description["scale"],
            pair_terms=pair_terms,
            training=training,
        )
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"the header is damaged: {error}") from None
    if NOVELTY in description:
        potential.environments = _empty_environments(description[NOVELTY], len(species))
    return potential


def _empty_environments(described: dict[str, Any], n: int) -> Environments:
    """Make environments of these shapes; `_fill` sets their values."""
    width, n_components = described["n_features"], described["n_components"]
    return Environments(
        mean=np.zeros((n, width), np.float32),
        whiten=np.zeros((n, width, n_components), np.float32),
        centres=np.zeros((n, n_components, described.get(N_CENTRES, 1)), np.float32),
        closest=np.zeros((n, n)),
        n_atoms=tuple(described["n_atoms"]),
        n_structures=described["n_structures"],
    )


def _is_pair_term(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"name", "config"}
        and isinstance(entry["name"], str)
        and isinstance(entry["config"], dict)
    )


def _look_up(
    table: dict[str, tuple[type[nn.Module], type]], name: str, config: dict[str, Any]
) -> tuple[type[nn.Module], Any]:
    if name not in table:
        raise ValueError(f"unknown {name!r}; this version has: {', '.join(table)}")
    kind, config_kind = table[name]
    config = EARLIER.get(name, {}) | config
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


def _require_shapes(own: Own, shapes: Shapes) -> None:
    expected = {
        f"{prefix}{name}": tensor
        for prefix, (potential, _) in own.items()
        for name, tensor in _tensors(potential).items()
    }
    if missing := sorted(set(expected) - set(shapes)):
        raise ValueError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if extra := sorted(set(shapes) - set(expected)):
        raise ValueError(f"unexpected tensor {extra[0]!r} ({len(extra)} in all)")
    for name, shape in shapes.items():
        if shape != expected[name].shape:
            raise ValueError(
                f"tensor {name!r} has shape {list(shape)}, "
                f"the header asks for {list(expected[name].shape)}"
            )


def _fill(own: Own, state: dict[str, Tensor], dtype: str | None) -> None:
    for prefix, (potential, own_dtype) in own.items():
        # in float64 first, which keeps the stored bits of either dtype
        potential.double()
        mine = _under(prefix, state)
        potential.network.load_state_dict(_under("network.", mine))
        for n, term in enumerate(potential.pair_terms):
            term.load_state_dict(_under(f"pair_terms.{n}.", mine))
        potential.set_dtype(DTYPES[dtype or own_dtype])
        if (empty := potential.environments) is not None:
            read: dict[str, Any] = {
                name: mine[f"{NOVELTY}.{name}"].numpy().astype(getattr(empty, name).dtype)
                for name in _novelty_tensors(empty)
            }
            potential.environments = dataclasses.replace(empty, **read)


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
