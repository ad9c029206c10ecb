"""The losses compared with the reference formula: chunks, one rank and two, memory."""

from __future__ import annotations

import os
import socket

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

import torch.nn.functional as F  # noqa: E402

from clip_train.cosines import exact_cosines  # noqa: E402
from clip_train.loss import info_nce, sigmoid_loss  # noqa: E402


def plain_info_nce(images, texts, scale):
    logits = scale * images @ texts.T
    target = torch.arange(len(images))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def plain_sigmoid(images, texts, scale, bias):
    signs = 2 * torch.eye(len(images)) - 1
    return -F.logsigmoid(signs * (scale * images @ texts.T + bias)).sum() / len(images)


def pairs(count: int, width: int = 8):
    generator = torch.Generator().manual_seed(count)
    images = F.normalize(torch.randn(count, width, generator=generator), dim=1).requires_grad_()
    texts = F.normalize(torch.randn(count, width, generator=generator), dim=1).requires_grad_()
    return images, texts, torch.tensor(14.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)


@pytest.mark.parametrize(("count", "chunk"), [(1, 4), (16, 16), (16, 5), (50, 7), (33, 1)])
def test_chunks_change_nothing(count, chunk):
    images, texts, scale, bias = pairs(count)
    for plain, ours, inputs in (
        (plain_info_nce, info_nce, (images, texts, scale)),
        (plain_sigmoid, sigmoid_loss, (images, texts, scale, bias)),
    ):
        expected, loss = plain(*inputs), ours(*inputs, chunk=chunk)
        assert abs(expected - loss) < 2e-6 * max(1, abs(expected.item()))
        for a, b in zip(torch.autograd.grad(expected, inputs), torch.autograd.grad(loss, inputs), strict=True):
            assert (a - b).abs().max() <= 1e-6 * max(1, a.abs().max().item())


def test_cosines_are_exact_whatever_the_precision_of_torch_is(monkeypatch):
    asked, change = [], torch.set_float32_matmul_precision
    before = torch.get_float32_matmul_precision()
    try:
        change("medium")
        monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: (asked.append(name), change(name)))
        assert exact_cosines(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[1, 3], [2, 4]]
        assert asked == ["highest", "medium"] and torch.get_float32_matmul_precision() == "medium"
    finally:
        change(before)


def test_extreme_scales_stay_finite():
    images, texts, _, _ = pairs(12)
    scale = torch.tensor(100.0, requires_grad=True)
    loss = info_nce(images, images.detach().clone().requires_grad_(), scale, chunk=5)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(scale.grad) and torch.isfinite(images.grad).all()


def test_under_autocast_the_loss_is_fp32():
    images, texts, scale, _ = pairs(32)
    expected = info_nce(images, texts, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce(images, texts, scale), expected)


class Tiny(torch.nn.Module):
    """Two linear towers and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(12, 8), torch.nn.Linear(10, 8)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        self.logit_bias = torch.nn.Parameter(torch.tensor(-3.0))

    def forward(self, images, texts):
        return F.normalize(self.a(images), dim=1), F.normalize(self.b(texts), dim=1)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 12, generator=generator), torch.randn(16, 10, generator=generator)


def gradients(kind: str, *, rank: int = 0, ranks: int = 1, uneven: bool = False) -> dict:
    """The gradient that one rank computes from its rows with our losses.

    With one rank it uses the reference formula.
    """
    model = Tiny()
    images, texts = batch()
    cut = [0, 16] if ranks == 1 else [0, 11, 16] if uneven else [0, 8, 16]
    mine = slice(cut[rank], cut[rank + 1])
    x, y = model(images[mine], texts[mine])
    scale = model.logit_scale.exp()
    if kind == "infonce":
        loss = plain_info_nce(x, y, scale) if ranks == 1 else info_nce(x, y, scale, chunk=3)
    else:
        bias = model.logit_bias
        loss = plain_sigmoid(x, y, scale, bias) if ranks == 1 else sigmoid_loss(x, y, scale, bias, chunk=3)
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def two_ranks(rank: int, port: int, output: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    for kind in ("infonce", "sigmoid"):
        for uneven in (False, True):
            found = gradients(kind, rank=rank, ranks=2, uneven=uneven)
            for name, value in found.items():
                if name != "loss":
                    torch.distributed.all_reduce(value)
            results[kind, uneven] = found
    torch.distributed.destroy_process_group()
    if rank == 0:
        torch.save(results, output)


def test_two_ranks_give_the_gradient_of_one(tmp_path):
    from tests.clip_train.conftest import in_two_processes

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    in_two_processes(two_ranks, port, str(tmp_path / "found.pt"))
    found = torch.load(tmp_path / "found.pt")
    for kind in ("infonce", "sigmoid"):
        expected = gradients(kind)
        for uneven in (False, True):
            for name, value in expected.items():
                difference = (value - found[kind, uneven][name]).abs().max()
                assert difference < 1e-6, (kind, uneven, name, difference)


def test_memory_is_a_fraction_of_the_logits():
    """The peak of torch's allocations at B = 2,048, from its profiler, is one chunk and not several B x B."""
    images, texts, scale, _ = pairs(2048, width=64)

    def peak(loss) -> int:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            loss(images, texts, scale).backward()
        held = largest = 0
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                largest = max(largest, held)
        return largest

    whole = 2048 * 2048 * 4
    assert peak(lambda *inputs: info_nce(*inputs, chunk=128)) < 0.5 * whole
    assert peak(plain_info_nce) > 2 * whole
