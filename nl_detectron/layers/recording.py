"""Whether a block's code is being recorded, as by a tracer or an exporter, and not just run.

What is recorded is run on inputs of other sizes than the example's, so nothing of it may depend on
these: no number that was counted, no choice by size, stride or number of samples. Wherever the
block asks one of the two functions here, it has a form of its own for recorders.
"""

import torch


def is_recorded() -> bool:
    """By torch.jit.trace, torch.export, torch.compile or an ONNX exporter.

    TorchScript's compiler, which keeps the code's branches, is none of them.
    """
    if torch.jit.is_scripting():
        return False
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def is_exported() -> bool:
    """By torch.export or one of torch.onnx's exporters, to be run where operators are missing."""
    if torch.jit.is_scripting() or torch.compiler.is_dynamo_compiling():
        return False
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
