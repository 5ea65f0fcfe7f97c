"""For all tests."""

import torch

# Small tensors gain nothing from threads, and tests that run side by side lose much by them.
torch.set_num_threads(1)
