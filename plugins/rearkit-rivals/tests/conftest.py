"""One thread for torch: at these sizes, threads cost more than they bring."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
