"""One thread: the arrays are small, and results must not depend on how sums are split."""

import torch

torch.set_num_threads(1)
