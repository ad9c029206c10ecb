"""Muon: orthogonal updates, which matrices it takes, and torch's own as a reference."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from clip_train.config import PRESETS, Recipe  # noqa: E402
from clip_train.model import CLIP  # noqa: E402
from clip_train.muon import Muon, matrices_of_blocks, orthogonal  # noqa: E402
from clip_train.optim import make_optimizer, optimizer_of  # noqa: E402


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonal(matrices)
    for matrix, update in zip(matrices, found, strict=True):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        inside = left.T @ update @ right.T
        large = values > values.max() / 50  # the five steps do not lift the smallest all the way
        assert (inside - inside.diag().diag()).abs().max() < 1e-4
        assert inside.diag()[large].min() > 0.5 and inside.diag().max() < 1.3
    assert torch.equal(orthogonal(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_a_matrix_moves_as_with_torchs_muon():
    module = pytest.importorskip("torch.optim._muon", reason="this torch has no Muon")
    start = torch.randn(12, 20, generator=torch.Generator().manual_seed(2))
    ours, theirs, momentum = torch.nn.Parameter(start.clone()), start.clone(), torch.zeros(12, 20)
    mine = Muon([{"params": [ours], "weight_decay": 0.2, "parts": 1}], lr=0.01, fused=True)
    for step in range(4):
        ours.grad = torch.randn(12, 20, generator=torch.Generator().manual_seed(3 + step))
        module._single_tensor_muon(  # behind torch.optim.Muon, whose first step imports the compiler
            [theirs], [ours.grad.clone()], [momentum], lr=0.01, weight_decay=0.2, momentum=0.95, nesterov=True,
            ns_coefficients=(3.4445, -4.7750, 2.0315), ns_steps=5, eps=1e-7, adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )  # fmt: skip
        mine.step()
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()  # theirs computes in bf16


def test_query_key_and_value_are_matrices_of_their_own():
    weight = torch.nn.Parameter(torch.zeros(12, 4))
    gradient = torch.randn(12, 4, generator=torch.Generator().manual_seed(4))
    weight.grad = gradient.clone()
    Muon([{"params": [weight], "weight_decay": 0.0, "parts": 3}], lr=1.0, fused=True).step()
    parts = -orthogonal(gradient.view(3, 4, 4)) * 0.2 * 2
    assert torch.allclose(weight.view(3, 4, 4), parts, atol=1e-6)


@pytest.mark.parametrize("name", ["ViT-Tiny", "RN-Mini"])
def test_muon_takes_the_matrices_of_the_blocks(name):
    model = CLIP(PRESETS[name].model)
    owners = optimizer_of(make_optimizer(model, Recipe(), name="muon"))
    by_muon = {word for word, value in model.named_parameters() if owners[value] == "muon"}
    assert len(owners) == len(list(model.parameters()))
    assert "transformer.resblocks.0.attn.in_proj_weight" in by_muon
    assert by_muon == set(matrices_of_blocks(model.named_parameters()))
    if name == "ViT-Tiny":
        assert "visual.transformer.resblocks.2.mlp.c_fc.weight" in by_muon and "visual.conv1.weight" not in by_muon
        assert "visual.positional_embedding" not in by_muon
    else:
        assert {"visual.layer1.0.conv2.weight", "visual.layer1.0.downsample.0.weight"} <= by_muon
        assert {"visual.conv1.weight", "visual.attnpool.q_proj.weight"}.isdisjoint(by_muon)
