"""The Triton passes compared with their oracle. Without a GPU they run in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")
pytest.importorskip("triton", reason="this torch comes without Triton")

CODE = """
import torch, torch.nn.functional as F
from clip_train import loss, loss_triton
device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(0)
for mine, total, width, start in ((70, 130, 40, 33), (64, 64, 64, 0), (3, 100, 8, 97)):
    x, y = (F.normalize(torch.randn(n, width, generator=generator), dim=1).to(device) for n in (mine, total))
    scale = torch.tensor(60.0, device=device)
    rows, columns = loss.log_sums(x, y, scale, 16)
    found = loss_triton.log_sums(x, y, scale, 16)
    assert torch.allclose(found[0], rows, atol=1e-4) and torch.allclose(found[1], columns, atol=1e-4)
    expected = loss.gradients(x, y, scale, rows, columns, start, 16)
    found = loss_triton.gradients(x, y, scale, rows, columns, start, 16)
    for a, b in zip(expected, found):
        assert torch.allclose(a, b, atol=1e-4), (a - b).abs().max()
print("equal")
"""


def test_the_kernels_agree_with_the_plain_passes():
    import torch

    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-2000:]
