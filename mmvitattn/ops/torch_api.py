"""Names of PyTorch's API that the two supported versions do not share."""

import torch

if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:  # torch 2.1
    from torch._dynamo import is_compiling

__all__ = ['is_compiling']
