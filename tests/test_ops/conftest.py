import os

import torch

# The kernels need a CUDA device or Triton's interpreter. `make test` runs their tests in a second
# run, which names the file: then they are collected, and skipped with a reason where need be.
if 'TRITON_INTERPRET' not in os.environ and not torch.cuda.is_available():
    collect_ignore = ['test_triton_kernels.py']
