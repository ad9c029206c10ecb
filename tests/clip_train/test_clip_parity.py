"""Full-size models compared with OpenAI's code, open_clip and transformers.

Golden numbers are always compared. Installed packages are also run.

PYTHONPATH=PATH/TO/CLIP:PATH/TO/open_clip/src python -m pytest -m slow tests/clip_train/test_clip_parity.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from clip_train.config import PRESETS  # noqa: E402
from clip_train.export import export  # noqa: E402
from clip_train.huggingface import to_huggingface  # noqa: E402
from clip_train.model import CLIP  # noqa: E402
from clip_train.text import pack, pad  # noqa: E402
from clip_train.weights import Weights, load_model  # noqa: E402
from tests.clip_train.conftest import fill, formula  # noqa: E402
from tests.places import DATA  # noqa: E402

NAMES = ("RN50", "ViT-B-32", "ViT-B-16")
IDS = 600  # of the golden models' vocabulary; installed models have all 49,408
GOLDEN: dict[str, list[list[float]]] = {  # logits per image, from openai/CLIP d05afc4 with the weights of conftest
    "RN50": [[0.2706631, 0.0323350, 0.6166863], [0.2714266, 0.0327122, 0.6182818]],
    "ViT-B-32": [[1.5279977, 2.0221610, 1.1944855], [1.5845692, 2.1018159, 1.1706901]],
    "ViT-B-16": [[1.4907877, 1.8583223, 1.4502804], [1.3380348, 1.7177558, 1.2853174]],
}


def captions(ids: int) -> list[list[int]]:
    """Two short captions and one that fills the context."""
    start, end = ids - 2, ids - 1
    return [[start, 5, 17, end], [start, *range(20, 60), end], [start, *range(100, 175), end]]


def pictures(size: int) -> torch.Tensor:
    return formula("images", (2, 3, size, size)) * 3


def made(name: str, ids: int = IDS) -> CLIP:
    model = CLIP(dataclasses.replace(PRESETS[name].model, vocab_size=ids)).eval()
    fill(model)
    return model


def largest(found: torch.Tensor, expected: torch.Tensor, what: str) -> float:
    """The largest difference, printed (pytest -s shows it)."""
    difference = (found - expected).abs().max().item()
    print(f"{what}: largest difference of logits {difference:.1e}")
    return difference


@pytest.mark.parametrize("name", NAMES)
def test_golden_logits_at_full_size(name):
    model, text = made(name), captions(IDS)
    with torch.no_grad():
        assert largest(model.logits(pictures(224), pack(text)), torch.tensor(GOLDEN[name]), name) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_live_openai_both_ways(name):
    theirs_module = pytest.importorskip("clip.model", reason="openai/CLIP is not importable")
    c = PRESETS[name].model
    theirs = theirs_module.CLIP(
        c.embed_dim, c.image_size, c.vision_layers, c.vision_width, c.patch_size, c.context_length, c.vocab_size,
        c.text_width, c.text_heads, c.text_layers,
    ).eval()  # fmt: skip
    fill(theirs)
    ours, text = CLIP(c).eval(), captions(c.vocab_size)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected = theirs(pictures(c.image_size), pad(text, context_length=77))[0]
        assert largest(ours.logits(pictures(c.image_size), pack(text)), expected, f"{name}, OpenAI") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_live_open_clip_both_ways(name, tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not importable")
    theirs = open_clip.create_model(name, precision="fp32", force_quick_gelu=True).eval()
    fill(theirs)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pt")
    ours, weights = load_model(tmp_path / "theirs.pt", model=name, activation="quick_gelu")
    images, text = pictures(224), captions(ours.config.vocab_size)
    with torch.no_grad():
        expected = theirs.get_logits(images, pad(text, context_length=77))[0]
        assert largest(ours.logits(images, pack(text)), expected, f"{name}, from open_clip") < 1e-5
    for form, file in (("open_clip", "ours.pt"), ("safetensors", "ours.safetensors")):
        export(weights, str(tmp_path / file), form=form)
        back = open_clip.create_model(
            name, pretrained=str(tmp_path / file), precision="fp32", force_quick_gelu=True
        ).eval()
        with torch.no_grad():
            assert torch.equal(back.get_logits(images, pad(text, context_length=77))[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-Tiny", "ViT-B-32", "ViT-B-16"])
def test_live_hugging_face_both_ways(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    c = PRESETS[name].model
    images, text = pictures(c.image_size), captions(c.vocab_size)
    padded = pad(text, context_length=77)

    ours = made(name, c.vocab_size)
    export(Weights(dict(ours.state_dict()), c, "checkpoint"), str(tmp_path / "ours"), form="huggingface")
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "ours").eval()
    assert set(theirs.state_dict()) == set(to_huggingface(ours.state_dict(), c))
    with torch.no_grad():
        expected = theirs(pixel_values=images, input_ids=padded).logits_per_image
        assert largest(ours.logits(images, pack(text)), expected, f"{name}, to transformers") < 1e-5

        for value in theirs.parameters():
            value.mul_(0.9)
        theirs.save_pretrained(tmp_path / "theirs")
        expected = theirs(pixel_values=images, input_ids=padded).logits_per_image
        back, _ = load_model(tmp_path / "theirs")
        assert largest(back.logits(images, pack(text)), expected, f"{name}, from transformers") < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "captions").is_dir(), reason="the shared captions are not here")
def test_ids_of_real_captions_are_openais():
    """Compares at least 100,000 captions, ASCII and others, with OpenAI's tokenizer."""
    tokenizer_module = pytest.importorskip("open_clip.tokenizer", reason="open_clip is not importable")
    import pyarrow.parquet as pq

    from clip_train.tokenizer import load_tokenizer

    texts: set[str] = set()
    for file in sorted((DATA / "captions").glob("*.parquet")):
        found = {text for text in pq.read_table(file, columns=["text"])["text"].to_pylist() if text}
        texts |= set(sorted(found, key=hash_of)[:20_000])
    theirs = tokenizer_module.SimpleTokenizer()
    ours = load_tokenizer(Path(tokenizer_module.__file__).with_name("bpe_simple_vocab_16e6.txt.gz"))
    different = [text for text in sorted(texts) if theirs.encode(text) != ours.encode(text)]
    odd = sum(not text.isascii() for text in texts)
    print(f"{len(texts):,} captions, {odd:,} not ASCII: {len(different)} differ")
    assert len(texts) >= 100_000 and odd > 10_000 and not different, different[:3]


def hash_of(text: str) -> bytes:
    """An order that is no alphabet's."""
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
