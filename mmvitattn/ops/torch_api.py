"""Names of PyTorch's API that the two supported versions do not share, and what they are asked."""

import torch

if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:  # torch 2.1
    from torch._dynamo import is_compiling

__all__ = ['is_compiling', 'is_exporting']


def is_exporting() -> bool:
    """Whether one run is recorded to stand for all sizes (ONNX export, ``torch.jit.trace``).

    A Python decision on a size is recorded as it fell: while exporting, take the branch that is
    right for every size.
    """
    return not is_compiling() and torch.jit.is_tracing()
