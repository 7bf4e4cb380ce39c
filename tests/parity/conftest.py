"""What all comparisons with PyTorch share."""

import os

# A BLAS' threads, like torch's, would wait for a processor that is taken.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import mlx.core as mx
import pytest
import torch
from transformers.utils import logging

# Single precision on both sides: on a GPU the transformer would run in half.
mx.set_default_device(mx.cpu)
torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()
pytest.register_assert_rewrite("tests.parity.pair")
