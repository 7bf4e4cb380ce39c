"""Set-up of all comparisons with PyTorch."""

import os

# One thread for BLAS, as for torch: tests run in parallel.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import mlx.core as mx
import pytest
import torch
from transformers.utils import logging

# float32 on both sides: on a GPU our LM would be float16.
mx.set_default_device(mx.cpu)
torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()
pytest.register_assert_rewrite("tests.parity.pair")
