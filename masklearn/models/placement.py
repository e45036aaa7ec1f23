"""Where a model's weights are: on one device, on several by a device map, offloaded, or quantised; and moving them."""

import json
import logging
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from masklearn.errors import UserError, nearest, one_line
from masklearn.models.unwrapping import name_of

DeviceMap = str | Mapping[str, int | str] | None
"""`auto` or `balanced`, the path of a JSON file, or what such a file holds: a device for every module of the model."""
QuantizationName = Literal["8bit", "4bit"]
"""Bits of the weights that bitsandbytes quantises."""
AUTOMATIC_MAPS = ("auto", "balanced")
OFFLOADED = ("cpu", "disk")
"""Devices of a map that only keep weights, if the map names others that compute."""


@contextmanager
def placement_options(
    device_map: DeviceMap, quantization: QuantizationName | None, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """Give the arguments of `from_pretrained` that place a model's weights, and quantise them.

    If loading fails while the context is open, the weights that it has written to the disk are deleted.

    Args:
        device_map: Where to put which module.
        quantization: How to quantise the weights, if at all.
        dtype: Precision in which quantised weights are multiplied.

    Raises:
        UserError: If the map cannot be read, or names a device that this machine lacks; or if a package or a GPU is
            missing.
    """
    options: dict[str, Any] = {}
    if device_map is not None:
        _require_package("accelerate", "model.device_map")
        found = _map_of(device_map) if isinstance(device_map, str) else device_map
        options["device_map"] = found if isinstance(found, str) else {name: _device(d) for name, d in found.items()}
        options["offload_folder"] = tempfile.mkdtemp(prefix="masklearn-offloaded-")
    if quantization is not None:
        _require_package("bitsandbytes", "model.quantization")
        _require_package("accelerate", "model.quantization")
        eight = quantization == "8bit"
        if not eight and not has_gpu():
            raise UserError(
                "model.quantization 4bit needs a GPU: on a CPU bitsandbytes multiplies 4-bit weights without a "
                "gradient. Choose --model.quantization 8bit, or --model.dtype bfloat16"
            )
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
        # it says at every product of matrices that inputs are cast to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        yield options
    except BaseException:
        shutil.rmtree(options.get("offload_folder", ""), ignore_errors=True)
        raise


def settle_placement(lm: PreTrainedModel, options: Mapping[str, Any]) -> None:
    """Check that the keys of a device map are modules of the loaded model, and delete its offloaded weights with it.

    Args:
        lm: The model.
        options: What `placement_options` gave.

    Raises:
        UserError: If the map names a module that the model does not have.
    """
    if "offload_folder" in options:
        weakref.finalize(lm, shutil.rmtree, options["offload_folder"], ignore_errors=True)
    given = options.get("device_map")
    modules = {name for name, _ in lm.named_modules()} | {name for name, _ in lm.named_parameters()}
    if isinstance(given, Mapping) and (unknown := [name for name in given if name not in modules]):
        similar = nearest(unknown[0], sorted(modules)) or "model"
        raise UserError(
            f"model.device_map names {unknown[0]!r}, which is no module of {name_of(lm)}. Did you mean {similar}?"
        )


def has_gpu() -> bool:
    """Whether this machine has a GPU."""
    return torch.cuda.is_available()


def best_device() -> str:
    """Name the device for a model that fits on one: the GPU if there is one, else the CPU."""
    return "cuda" if has_gpu() else "cpu"


def _require_package(package: str, flag: str) -> None:
    if not find_spec(package):
        raise UserError(f"{flag} needs {package}, which is not installed. Get it with: pip install {package}")


def _map_of(given: str) -> str | dict[str, Any]:
    """Return the name of an automatic map, or the map in a JSON file."""
    if given in AUTOMATIC_MAPS:
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise UserError(
            f"model.device_map is {given!r}, and there is no such file. Give {' or '.join(AUTOMATIC_MAPS)}, or a JSON "
            'file that says where modules are, such as {"model": 0, "lm_head": 1}'
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"model.device_map: {given} is not JSON ({one_line(error)}). Fix the file") from error
    if not isinstance(found, dict) or not found:
        raise UserError(f'model.device_map: {given} holds no map. Write modules and devices, such as {{"model": 0}}')
    return found


def _device(given: Any) -> int | str:
    """Return a device of a map, if this machine has it.

    Raises:
        UserError: If there is no such device.
    """
    n_gpus = torch.cuda.device_count()
    indices = {str(i): i for i in range(n_gpus)} | {f"cuda:{i}": i for i in range(n_gpus)}
    if given in OFFLOADED:
        return given
    if isinstance(given, bool) or str(given) not in indices:
        gpus = f"the numbers of GPUs below {n_gpus}" if n_gpus else "no GPU"
        raise UserError(f"model.device_map names the device {given!r}; this machine has {', '.join(OFFLOADED)}, {gpus}")
    return indices[str(given)]


def compute_devices(lm: PreTrainedModel) -> tuple[torch.device, ...]:
    """Return the devices on which layers of a model run, that of its inputs first."""
    mapped = list(dict.fromkeys(getattr(lm, "hf_device_map", {}).values()))
    if not mapped:
        return (lm.device,)
    computing = [d for d in mapped if d not in OFFLOADED]
    devices = [torch.device("cuda", d) if isinstance(d, int) else torch.device(d) for d in computing]
    return tuple(devices) or (torch.device("cpu"),)


def input_device(lm: PreTrainedModel) -> torch.device:
    """Return the device of a model's inputs; where weights are spread or offloaded, hooks bring inputs to them."""
    return compute_devices(lm)[0]


def is_offloaded(lm: PreTrainedModel) -> bool:
    """Whether some weights are kept on the disk or in main memory until a forward needs them."""
    return any(parameter.is_meta for parameter in lm.parameters())


def is_placed(lm: PreTrainedModel) -> bool:
    """Whether weights have to stay where they were loaded to: by a device map, or because bitsandbytes packed them."""
    return hasattr(lm, "hf_device_map") or is_quantized(lm)


def is_quantized(lm: PreTrainedModel) -> bool:
    """Whether bitsandbytes has quantised the weights."""
    return bool(getattr(lm, "is_loaded_in_8bit", False) or getattr(lm, "is_loaded_in_4bit", False))


def describe_placement(lm: PreTrainedModel) -> str:
    """Say where the modules of a model are, and that offloading is slow; an empty string if they are on one device."""
    device_map: dict[str, int | str] = getattr(lm, "hf_device_map", {})
    if not device_map:
        return ""
    devices = Counter(f"GPU {d}" if isinstance(d, int) else d for d in device_map.values())
    where = ", ".join(f"{n} modules on {device}" for device, n in devices.items())
    slow = "; offloaded weights are read in every forward, which is slow" if is_offloaded(lm) else ""
    return f"Placement: {where}{slow}"


def move_model(lm: PreTrainedModel, device: torch.device) -> None:
    """Move a model to a device, in place; one that `is_placed` stays where it is.

    Raises:
        UserError: If there is no such device, if the model does not fit on it, or if a placed model has its inputs on
            another device.
    """
    if is_placed(lm):
        own = input_device(lm)
        if own.type != device.type or None is not own.index != device.index is not None:
            devices = f" --trainer.devices '[{own.index}]'" if own.index is not None else ""
            raise UserError(
                f"model.lm: {name_of(lm)} takes its inputs on {own}, but the gates would be on {device}. "
                f"Add --trainer.accelerator {own.type}{devices}, or change --model.device_map"
            )
        return
    try:
        nn.Module.to(lm, device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"model.lm: {type(lm).__name__} cannot be moved to {device} ({one_line(error)}). "
            "Choose another --trainer.accelerator, or another --model.dtype"
        ) from error


def require_plain(lm: PreTrainedModel, purpose: str) -> None:
    """Refuse a model that `is_placed` for work that reads or changes its weights.

    Args:
        lm: The model.
        purpose: The work, as the subject of a sentence.

    Raises:
        UserError: What to do instead.
    """
    if is_placed(lm):
        raise UserError(
            f"{purpose} needs the weights of {name_of(lm)} whole and on one device. Leave --model.device_map and "
            "--model.quantization out, and load it in bfloat16 if memory is short"
        )


def in_memory(module: nn.Module) -> AbstractContextManager[Any]:
    """Bring the module's own weights into memory if they are offloaded, as long as the context is open."""
    if not any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        return nullcontext()
    from accelerate.utils import align_module_device  # installed where weights are offloaded

    return align_module_device(module, torch.device("cpu"))
