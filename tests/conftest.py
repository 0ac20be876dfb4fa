"""Tests import their shared modules by name; one thread keeps timings and sums the same everywhere."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
