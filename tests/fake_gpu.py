"""A GPU where there is none: tensors marked as on ``cuda:0`` are refused where CUDA refuses them.

    with FakeGPU():
        model.to("cuda")(features)  # RuntimeError: … found at least two devices, cuda:0 and cpu!

All numbers stay on the CPU. Every call of torch's, from tensor methods to recurrent layers, passes
by here first. Refused, in CUDA's words, is what mixes devices, makes a numpy array of what is not
on the CPU, or goes back through a cuDNN recurrent layer in evaluation mode.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MARK = "lies_on_fake_gpu"
RECURRENT = ("lstm", "gru", "rnn_relu", "rnn_tanh")
MOVES = ("to", "cpu", "cuda", "type_as")
# may be given tensors of two devices: one copies, the other asks whether it could
BRIDGES = ("copy_", "_has_compatible_shallow_copy_type")


def on_gpu(tensor) -> bool:
    return MARK in tensor.__dict__


def mark(tensor, gpu: bool):
    if gpu:
        tensor.__dict__[MARK] = True
    else:
        tensor.__dict__.pop(MARK, None)
    return tensor


def tensors(*values) -> list:
    """Those among values, and in what these hold. (torch's tree_leaves, which knows more kinds of
    containers, takes longer than what it is asked for.)"""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += tensors(*value)
        elif isinstance(value, dict):
            found += tensors(*value.values())
    return found


def is_gpu(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class FakeGPU(TorchFunctionMode):
    """While it is entered, ``"cuda"`` is a device. ``moves`` counts the tensors that came there."""

    def __init__(self):
        super().__init__()
        self.moves = 0

    def __enter__(self):
        # rearranges weights in a GPU's memory
        self._flatten = torch.nn.RNNBase.flatten_parameters
        torch.nn.RNNBase.flatten_parameters = lambda layer: None
        return super().__enter__()

    def __exit__(self, *error):
        torch.nn.RNNBase.flatten_parameters = self._flatten
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), function.__name__
        if name in ("__get__", "__set__"):
            return self._property(function, name, args)
        if name in MOVES:
            return self._move(name, args, kwargs)
        given = tensors(args, kwargs)
        gpu = any(map(on_gpu, given))
        if name in ("numpy", "__array__") and gpu:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
        if name == "__reduce_ex__" and given:  # torch.save: the mark does not go into the file
            return function(args[0].detach(), *args[1:], **kwargs)
        self._same_device(name, args, given)
        if "device" in kwargs:  # a new tensor
            gpu = is_gpu(kwargs["device"]) or (gpu and kwargs["device"] is None)
            kwargs["device"] = CPU
        elif name in ("copy_", "__getitem__"):
            gpu = on_gpu(args[0])
        if gpu and kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        found = function(*args, **kwargs)
        if name == "__iter__":
            return iter([mark(x, gpu) for x in found])
        for x in tensors(found) if gpu else ():
            mark(x, True)
        if name in RECURRENT and gpu:
            self._no_way_back(found[0], args)
        return found

    def _property(self, function, name: str, args):
        (what, gpu), value = (function.__self__.__name__, on_gpu(args[0])), args[1:]
        if name == "__set__":
            if what == "data":
                mark(args[0], on_gpu(value[0]))
            return function(*args)
        if what in ("device", "is_cuda") and gpu:
            return GPU if what == "device" else True
        found = function(*args)
        for x in tensors(found) if gpu else ():
            mark(x, True)
        return found

    def _move(self, name: str, args, kwargs):
        tensor, *where = args
        like = tensors(where, kwargs.get("other"))
        if name in ("cpu", "cuda"):
            gpu, dtype = name == "cuda", None
        elif like:  # another tensor's device and type
            gpu, dtype = on_gpu(like[0]), like[0].dtype
        else:
            device, dtype, *_ = torch._C._nn._parse_to(*where, **kwargs)
            gpu = on_gpu(tensor) if device is None else device.type == "cuda"
        found = tensor if dtype is None else tensor.to(dtype)
        if gpu != on_gpu(tensor):
            self.moves += gpu
            found = found.clone() if found is tensor else found
        return mark(found, gpu)

    def _same_device(self, name: str, args, given: list) -> None:
        if name == "ctc_loss":
            given = given[:2]  # lengths may lie anywhere
        on = [x for x in given if on_gpu(x)]
        off = [x for x in given if not on_gpu(x) and x.dim() > 0]  # a number may come from anywhere
        if not on or not off or name in BRIDGES:
            return
        if name == "__getitem__" and on_gpu(args[0]):
            return  # by places that the CPU knows
        if name == "__setitem__" and not tensors(args[1]):
            return  # a copy
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! (in {name})"
        )

    def _no_way_back(self, output, args) -> None:
        training = [x for x in args if isinstance(x, bool)][-3]  # …, train, bidirectional, batch
        if training or not torch.backends.cudnn.enabled or not output.requires_grad:
            return

        def refuse(_):
            raise RuntimeError("cudnn RNN backward can only be called in training mode")

        output.register_hook(refuse)
