"""A pretended GPU that computes: tensors which know that they are elsewhere, and refuse those that are here."""

import contextlib
import functools
import re
from importlib import import_module

import matplotlib.pyplot as plt
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

# A device that PyTorch knows, has no code for, and differentiates without its streams.
GPU = torch.device("lazy")
COPIES = "aten::_to_copy", "aten::copy_"
INDEXING = "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"
TO_THE_CPU = "aten::_local_scalar_dense", "aten::equal"


class Elsewhere(torch.Tensor):
    """A tensor on the pretended GPU; its numbers are `held` on the CPU."""

    @staticmethod
    def __new__(cls, held):
        options = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        options |= {"dtype": held.dtype, "device": GPU, "requires_grad": held.requires_grad}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), **options)

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"Elsewhere({self.held})"

    def __format__(self, spec):
        return format(self.held, spec)

    def __bool__(self):
        return bool(self.held)

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return compute(function, arguments, options or {})


class Mode(TorchDispatchMode):
    """Where it is on, tensors that are made on the pretended GPU are made, too."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # so that no real GPU is asked for

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return compute(function, arguments, options or {})


def mapped(change, part):
    """A copy of nested lists and tuples in which every tensor is changed."""
    if isinstance(part, list | tuple):
        return type(part)(mapped(change, inner) for inner in part)
    return change(part) if isinstance(part, torch.Tensor) else part


@functools.cache
def is_alias(function):
    """Whether an operation is in place or returns a view: what it returns has to stay that."""
    return any(result.alias_info for result in function._schema.returns)


def compute(function, arguments, options):
    """The operation on the numbers held; its result is where its arguments are, or where it is asked for."""
    name = function._schema.name
    there, here = [], []

    def held(tensor):
        if isinstance(tensor, Elsewhere):
            there.append(tensor)
            return tensor.held
        here.append(tensor)
        return tensor

    numbers = mapped(held, arguments)
    named = {key: mapped(held, value) for key, value in options.items()}
    if name in INDEXING and isinstance(arguments[0], Elsewhere):
        here = [value for value in arguments[2:3] if any(value is tensor for tensor in here)]
    here = [tensor for tensor in here if tensor.ndim > 0]
    if there and here and name not in COPIES:
        shapes = [tuple(tensor.shape) for tensor in here], [tuple(tensor.shape) for tensor in there]
        raise RuntimeError(f"{function}: shapes {shapes[0]} on the CPU, {shapes[1]} on the GPU")

    device = options.get("device")
    if device is not None:
        named["device"] = torch.device("cpu")
    gpu = torch.device(device).type == GPU.type if device is not None else bool(there)
    if name == "aten::copy_":
        gpu = isinstance(arguments[0], Elsewhere)

    result = function(*numbers, **named)
    if not gpu or name in TO_THE_CPU:
        return result
    result = mapped(Elsewhere, result)
    if there and is_alias(function):
        return return_and_correct_aliasing(function, arguments, options, result)
    return result


def moved(make):
    """A function that makes a tensor of data, by the CPU and a copy: PyTorch's own asks the real device."""

    def new(data, *arguments, device=None, **options):
        tensor = make(data, *arguments, **options)
        return tensor if device is None else tensor.to(device)

    return new


@contextlib.contextmanager
def pretended(monkeypatch):
    """PyTorch with a GPU that is none, in float32."""
    nothing = lambda *_, **__: contextlib.nullcontext()  # noqa: E731
    save, read = torch.save, torch.load

    def store(parts, file):
        save(tree_map_only(Elsewhere, lambda tensor: tensor.held, parts), file)

    def load(file, map_location, **_):
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(map_location), read(file))

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: GPU)
    monkeypatch.setattr(torch, "autocast", nothing)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch.random, "fork_rng", nothing)
    monkeypatch.setattr(torch, "tensor", moved(torch.tensor))
    monkeypatch.setattr(torch, "as_tensor", moved(torch.as_tensor))
    optimizer = import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [GPU.type])
    monkeypatch.setattr(torch, "save", store)
    monkeypatch.setattr(torch, "load", load)
    with Mode():
        yield


def run(cells, parameters):
    """Run a notebook's code cells with small parameters; an exception names its cell."""
    names = {"__name__": "__main__", "In": []}
    for number, cell in enumerate(cells):
        # A list as an index becomes a tensor of the device by itself; here it has to be one.
        source = re.sub(r"(?<=[\w\]])\[\[([\d, ]+)\]\]", r"[torch.tensor([\1])]", cell.source)
        source = source.replace("steps=2000", "steps=400")  # of MADE's four pixels
        names["In"].append(cell.source)
        exec(compile(source, f"code cell {number}", "exec"), names)
        plt.close("all")
        if "parameters" in cell.metadata.get("tags", []):
            names |= {name: value for name, value in parameters.items() if name in names}
    return names
