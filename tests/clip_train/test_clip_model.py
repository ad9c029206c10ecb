"""The towers: OpenAI's numbers (their code on the weights of conftest.formula), packed text, FLOPs."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from clip_train.config import PRESETS, ModelConfig, preset  # noqa: E402
from clip_train.errors import UsageError  # noqa: E402
from clip_train.model import CLIP, count_flops  # noqa: E402
from clip_train.text import pack, pad  # noqa: E402
from tests.clip_train.conftest import fill, formula  # noqa: E402

CAPTIONS = [[598, 5, 17, 599], [598, *range(20, 60), 599], [598, *range(100, 175), 599]]
TEXT_FEATURES = [[-0.152645, -0.159277, 1.082384], [-1.103546, -2.540113, -0.252244], [-0.273813, -1.271397, -0.986363]]
GOLDEN = {  # logits per image and the first three image features, from openai/CLIP d05afc4
    "ViT-Tiny": (
        [[-0.209514, 0.4956688, -0.7156888], [-1.3111333, 0.6361497, -0.9929651], [-0.8978599, 0.9302427, -0.9427506]],
        [[0.1266813, 0.2288596, 2.8602495], [0.3983916, 0.5135432, 2.7087340], [0.0414411, -0.0139379, 3.2290912]],
    ),
    "RN-Mini": (
        [[0.3607677, -3.0258546, -2.8853655], [0.352435, -3.0151684, -2.8762817], [0.334349, -3.0167460, -2.8939078]],
        [[0.1029311, 0.5443718, 0.0960540], [0.1032468, 0.5424182, 0.0885552], [0.1051796, 0.5417257, 0.0924005]],
    ),
}


def golden_model(name: str) -> CLIP:
    model = CLIP(dataclasses.replace(PRESETS[name].model, vocab_size=600)).eval()
    fill(model)
    return model


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_are_those_of_openai(name):
    model = golden_model(name)
    images = formula("images", (3, 3, model.config.image_size, model.config.image_size)) * 3
    logits, features = (torch.tensor(values) for values in GOLDEN[name])
    with torch.no_grad():
        for text in (pad(CAPTIONS, context_length=77), pack(CAPTIONS)):
            assert (model.logits(images, text) - logits).abs().max() < 1e-5
            assert (model.encode_text(text)[:, :3] - torch.tensor(TEXT_FEATURES)).abs().max() < 1e-5
        assert (model.encode_image(images)[:, :3] - features).abs().max() < 1e-5


def test_packed_text_gives_the_numbers_and_gradients_of_padded_text():
    model = golden_model("ViT-Tiny")
    captions = [CAPTIONS[number % 3] for number in range(7)] + [[598, 599], [598, 3, 3, 599]]
    results = []
    for text in (pad(captions, context_length=77), pack(captions)):
        model.zero_grad()
        features = model.encode_text(text)
        features.square().sum().backward()
        results.append((features.detach(), model.positional_embedding.grad.clone()))
    assert (results[0][0] - results[1][0]).abs().max() < 1e-5
    scale = results[0][1].abs().max()
    assert (results[0][1] - results[1][1]).abs().max() < 1e-5 * scale
    assert results[0][1][-1].abs().max() > 0  # the longest caption reaches the last position


def test_packing_keeps_the_order_of_the_captions():
    packed = pack([[8, 1, 1, 9], [8, 9], [8, 2, 9]])
    assert packed.tokens.tolist() == [8, 9, 8, 2, 9, 8, 1, 1, 9]
    assert packed.positions.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert packed.ends.tolist() == [8, 1, 4]
    assert packed.blocks == ((1, 2), (1, 3), (1, 4)) and packed.boundaries.tolist() == [0, 2, 5, 9]
    assert len(pack([])) == 0


def test_flops_agree_with_what_open_clip_publishes():
    # its docs/model_profile.csv: GMACs x 2 of image and text towers together
    for name, gflops in {"ViT-B-32": 14.78, "ViT-B-16": 41.09, "ViT-L-14": 175.33}.items():
        assert count_flops(PRESETS[name].model) / 1e9 == pytest.approx(gflops, rel=0.005)
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = CLIP(PRESETS["RN50"].model)
        images, text = torch.empty(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.encode_image(images)
    counted = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        model.encode_text(text)
    assert count_flops(PRESETS["RN50"].model) == pytest.approx(counted + counter.get_total_flops(), rel=0.005)


def test_parameters_of_the_presets_are_the_papers():
    millions = {"RN50": 102, "RN101": 120, "RN50x4": 178, "RN50x16": 291, "RN50x64": 623,
                "ViT-B-32": 151, "ViT-B-16": 150, "ViT-L-14": 428, "ViT-L-14-336": 428}  # fmt: skip
    for name, expected in millions.items():
        with torch.device("meta"):
            model = CLIP(PRESETS[name].model)
        assert round(sum(value.numel() for value in model.parameters()) / 1e6) == expected


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = golden_model("RN-Mini").train()
        model.set_activation_checkpointing(on)
        images = formula("images", (2, 3, 64, 64))
        model.logits(images, pack(CAPTIONS[:2])).sum().backward()
        gradients.append([value.grad for value in model.parameters() if value.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_logit_scale_is_clamped_to_100():
    model = golden_model("ViT-Tiny")
    model.logit_scale.data.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100)


def test_a_model_name_is_forgiven_its_spelling_but_not_a_typo():
    assert preset("ViT-L/14@336px") is PRESETS["ViT-L-14-336"]
    with pytest.raises(UsageError, match="did you mean ViT-B-32"):
        preset("ViT-B-33")
    config = PRESETS["RN50"].model
    assert ModelConfig.from_json({**dataclasses.asdict(config), "vision_layers": [3, 4, 6, 3]}) == config
