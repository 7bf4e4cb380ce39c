"""What all comparisons with PyTorch share."""

import mlx.core as mx
import pytest
import torch
from transformers.utils import logging

# Single precision on both sides: on a GPU the transformer would run in half.
mx.set_default_device(mx.cpu)
# MLX has its own threads; torch's would wait for a processor that is taken.
torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()
pytest.register_assert_rewrite("tests.parity.pair")
