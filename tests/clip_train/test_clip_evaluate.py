"""Zero-shot, retrieval, probe, overlap, embed: compared with simple references. Files of classes and templates."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from clip_train import evaluate, overlap, probe  # noqa: E402
from clip_train.config import PRESETS  # noqa: E402
from clip_train.errors import InputMissing, TrainError, UsageError  # noqa: E402
from clip_train.image import BadImage, evaluation_transform, normalize  # noqa: E402
from clip_train.labels import open_labelled  # noqa: E402
from clip_train.model import CLIP  # noqa: E402
from clip_train.prompts import fill as fill_template  # noqa: E402
from clip_train.prompts import read_classes, read_templates  # noqa: E402
from clip_train.tokenizer import load_tokenizer  # noqa: E402
from tests.clip_train.conftest import CAPTIONS, fill, jpeg, write_tar  # noqa: E402


@pytest.fixture
def trained(vocabulary):
    import dataclasses

    tokenizer = load_tokenizer(vocabulary)
    model = CLIP(dataclasses.replace(PRESETS["ViT-Tiny"].model, vocab_size=tokenizer.vocab_size)).eval()
    fill(model)
    return model, tokenizer


def image_folder(root, *, classes=("ball", "star_fish"), each=4):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for image in range(each):
            (root / name / f"{image}.jpg").write_bytes(jpeg(10 * number + image))
    return root


def test_zero_shot_is_the_nearest_ensemble(trained, tmp_path):
    model, tokenizer = trained
    folder = image_folder(tmp_path / "images", classes=("ball", "cube", "star_fish"))
    (folder / "cube" / "9.jpg").write_bytes(b"broken")
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo of a {}.\nthe {c}\n")
    found = evaluate.zero_shot(model, tokenizer, str(folder), templates=str(templates), batch_size=5)
    vectors = []
    for name in ("ball", "cube", "star fish"):
        prompts = evaluate.embed_texts(model, tokenizer, [f"a photo of a {name}.", f"the {name}"])
        vectors.append(torch.nn.functional.normalize(prompts.mean(0), dim=0))
    right = 0
    for number, name in enumerate(("ball", "cube", "star_fish")):
        for image in range(4):
            pixels = evaluation_transform((folder / name / f"{image}.jpg").read_bytes(), 32)
            with torch.no_grad():
                feature = model.encode_image(normalize(torch.from_numpy(pixels.copy())[None]))[0]
            right += int((torch.stack(vectors) @ feature).argmax()) == number
    assert found["top1"] == pytest.approx(right / 12)
    assert (found["images"], found["skipped"], found["classes"], found["top5"]) == (12, 1, 3, 1.0)


def test_labels_from_shards(tars, tmp_path):
    folder = tars(labelled=True, samples=12)
    with pytest.raises(UsageError, match="name the classes with --classes"):
        open_labelled(str(folder))
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(["a", "b"]))
    with pytest.raises(UsageError, match="has a label 2, the file of classes has 2 names"):
        open_labelled(str(folder), classes=str(classes))
    (folder / "classnames.txt").write_text("a\nb\nc\n")
    images = open_labelled(str(folder))
    assert images.classes == ["a", "b", "c"] and images.labels.tolist() == [number % 3 for number in range(12)]
    assert images.read(5) == jpeg(5)
    write_tar(tmp_path / "words.tar", [("0.jpg", jpeg(0)), ("0.cls", b"dog"), ("1.jpg", jpeg(1)), ("1.cls", b"cat")])
    images = open_labelled(str(tmp_path / "words.tar"))
    assert images.classes == ["cat", "dog"] and images.labels.tolist() == [1, 0]
    with pytest.raises(InputMissing, match="no .cls member"):
        open_labelled(str(tars(name="unlabelled")))


def test_class_and_template_files_in_their_forms(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"cifar10": ["airplane", "bird"], "mnist": ["0"]}))
    assert read_classes(str(file), "cifar10") == ["airplane", "bird"]
    with pytest.raises(UsageError, match=r"has no entry 'cifar' \(it has: cifar10, mnist\)"):
        read_classes(str(file), "cifar")
    file.write_text(json.dumps({"cifar10": {"bird": ["a bird", "birds"], "cat": ["a cat"]}}))
    assert read_templates(str(file), "cifar10")["bird"] == ["a bird", "birds"]
    assert read_classes(str(file), "cifar10") == ["bird", "cat"]
    file.write_text(json.dumps(["no place"]))
    with pytest.raises(UsageError, match="no place for the class"):
        read_templates(str(file), None)
    file.write_text("[")
    with pytest.raises(TrainError, match="is not JSON"):
        read_classes(str(file), None)
    assert fill_template("a {c} or {}", "cat") == "a cat or cat"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"", "holds no template"),
        ("t.json", b"[]", "holds no template"),
        ("t.json", b'{"cat": [], "dog": ["a dog"]}', "holds no prompt for 'cat'"),
        ("t.txt", b"a photo of a caf\xe9 {}", "cannot be read as lines of UTF-8"),
        ("t.json", b'["a photo of a caf\xe9 {}"]', "is not JSON"),
    ],
)
def test_template_files_that_say_nothing_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainError, match=message):
        read_templates(str(tmp_path / name), None)
    with pytest.raises(TrainError, match="cannot be read"):
        read_templates(str(tmp_path), None)


def test_recall_with_several_captions_and_ties():
    images, texts = torch.eye(3), torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 1, 0], [0, 0.5, 0.4]])
    found = evaluate.recall(images, texts, [[0, 1], [2], [4]], (1, 2))
    # image 1 ties with caption 3, which is not its own: in a tie the other caption ranks first
    assert found == {1: pytest.approx(2 / 3), 2: 1.0}
    assert evaluate.recall(texts, images, [[0], [0], [1], [1], [2]], (1, 2, 3)) == {1: 0.8, 2: 1.0, 3: 1.0}


def recall_by_hand(queries, candidates, right, ks):
    """Recall by its definition, in double precision."""
    hits = dict.fromkeys(ks, 0)
    for query, answers in zip(queries.double(), right, strict=True):
        cosines = (candidates.double() @ query).tolist()
        best = max((cosines[number] for number in answers), default=None)
        wrong = [cosines[number] for number in range(len(cosines)) if number not in answers]
        for k in ks if best is not None else ():
            hits[k] += sum(cosine > best - 1e-6 for cosine in wrong) < k
    return {k: hits[k] / len(queries) for k in ks}


@pytest.mark.parametrize("chunk", [0, 1, 7, 1000])
def test_recall_is_the_definitions_whatever_the_chunk(chunk):
    generator = torch.Generator().manual_seed(chunk)
    images = torch.nn.functional.normalize(torch.randn(60, 8, generator=generator), dim=1)
    right = [[3 * n, 3 * n + 1, 3 * n + 2, 3 * n] if n % 4 else [] for n in range(60)]
    texts = images.repeat_interleave(3, 0) + 0.4 * torch.randn(180, 8, generator=generator)
    texts = torch.nn.functional.normalize(texts, dim=1)
    texts[90:120] = texts[30:60]  # captions that occur twice, as in any large set: ties
    owners = [[n // 3] for n in range(180)]
    ks = (1, 2, 5, 10, 100)
    found = evaluate.recall(images, texts, right, ks, chunk=chunk)
    assert found == pytest.approx(recall_by_hand(images, texts, right, ks)) and 0 < found[1] < found[5] < 1
    found = evaluate.recall(texts, images, owners, ks, chunk=chunk)
    assert found == pytest.approx(recall_by_hand(texts, images, owners, ks)) and 0 < found[1] < found[100]


def test_features_that_are_not_numbers_find_nothing():
    images, texts = torch.eye(3), torch.eye(3)
    images[1] = float("nan")
    assert evaluate.recall(images, texts, [[0], [1], [2]], (1, 3)) == {1: 2 / 3, 3: 2 / 3}
    assert evaluate.recall(torch.empty(0, 3), texts, [], (1,)) == {1: 0.0}


def test_retrieval_and_embed_on_shards(trained, tmp_path):
    model, tokenizer = trained
    members = []
    for number in range(6):
        captions = f"{CAPTIONS[number]}\n{CAPTIONS[number]} again" if number % 2 else CAPTIONS[number]
        members += [(f"k{number}.jpg", jpeg(number)), (f"k{number}.txt", captions.encode())]
    members += [("k9.jpg", b"broken"), ("k9.txt", b"x")]
    write_tar(tmp_path / "x.tar", members)
    write_tar(tmp_path / "y.tar", [*members, ("k7.jpg", jpeg(7)), ("k8.jpg", jpeg(8)), ("k8.txt", b" \n ")])
    found = evaluate.retrieval(model, tokenizer, str(tmp_path / "y.tar"), ks=(1,))
    assert (found["images"], found["texts"], found["skipped"]) == (6, 9, 3)  # two without a caption
    found = evaluate.retrieval(model, tokenizer, str(tmp_path / "x.tar"), ks=(1, 9))
    assert (found["images"], found["texts"], found["skipped"]) == (6, 9, 1)
    assert found["image_to_text_recall@9"] == 1.0 and 0 <= found["text_to_image_recall@1"] <= 1
    output = tmp_path / "table.parquet"
    assert evaluate.embed(model, tokenizer, str(tmp_path / "x.tar"), str(output), texts=True)["rows"] == 6
    table = pq.read_table(output, page_checksum_verification=True)
    assert table["key"].to_pylist() == [f"k{number}" for number in range(6)]
    vectors = overlap.read_embeddings(str(output))
    scores = tmp_path / "scores.parquet"
    assert evaluate.score(model, tokenizer, str(tmp_path / "x.tar"), str(scores))["rows"] == 6
    cosines = (vectors * torch.tensor(np.array(table["text_embedding"].to_pylist(), np.float32))).sum(1)
    found = pq.read_table(scores, page_checksum_verification=True)
    assert found["key"].equals(table["key"]) and found.schema.field("clip_score").type == "float"
    assert torch.allclose(torch.tensor(found["clip_score"].to_numpy()), cosines, atol=1e-5)
    assert vectors.shape == (6, 64) and torch.allclose(vectors.norm(dim=1), torch.ones(6), atol=1e-5)
    assert not list(tmp_path.glob("*.partial"))


def test_the_evaluation_transform_is_openais():
    pixels = evaluation_transform(jpeg(3, size=(50, 41)), 32)
    # from openai/CLIP's preprocess (torchvision) on the same bytes: sums over the picture and one pixel
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    normal = normalize(torch.from_numpy(pixels.copy())[None])
    assert normal.shape == (1, 3, 32, 32)
    red = (torch.from_numpy(pixels.copy())[..., 0].float() / 255 - 0.48145466) / 0.26862954
    assert torch.allclose(normal[0, 0], red, atol=1e-5)
    with pytest.raises(BadImage, match="image_not_decoded"):
        evaluation_transform(b"GIF89a", 32)


def blobs(count: int, classes: int = 3, width: int = 5):
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=generator) * 0.7
    return centres[labels] + torch.randn(count, width, generator=generator), labels


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_the_probe_finds_what_scikit_learn_finds(l2):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    features, labels = blobs(200)
    weights = probe.fit(features, labels, classes=3, l2=l2)
    theirs = linear_model.LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-10).fit(features.double(), labels)
    ours = torch.softmax(features.double() @ weights[:, :-1].T + weights[:, -1], dim=1).numpy()
    assert np.abs(ours - theirs.predict_proba(features.double())).max() < 1e-4


def test_the_sweep_finds_the_best_strength_in_few_steps():
    best, tried = probe.sweep(lambda strength: -abs(np.log10(strength) - 1.75))
    assert best == pytest.approx(10**1.75) and len(tried) <= 7 + 2 * 4
    assert probe.sweep(lambda strength: -np.log10(strength))[0] == pytest.approx(1e-6)


def test_probe_on_a_folder(trained, tmp_path):
    model, _ = trained
    folder = image_folder(tmp_path / "images", each=15)
    found = probe.probe(model, str(folder))
    assert (found["train_images"], found["test_images"], found["classes"]) == (24, 6, 2)
    assert found["train_top1"] >= 0.5 and len(found["tried"]) >= 7
    assert probe.probe(model, str(folder), test_data=str(folder), l2=1e-6)["top1"] > 0.8


def test_the_binomial_law():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for hits, count, chance in ((0, 5, 0.5), (3, 10, 0.2), (40, 40, 0.9), (510, 1000, 0.5), (7, 7, 1.0)):
        expected = stats.binom.sf(hits - 1, count, chance)
        assert overlap.binomial_tail(hits, count, chance) == pytest.approx(expected, rel=1e-6)
    for hits, count in ((0, 9), (9, 9), (4, 9), (510, 1000)):
        interval = stats.binomtest(hits, count).proportion_ci(0.995, "exact")
        found = overlap.clopper_pearson(hits, count, confidence=0.995)
        assert found == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_overlap_takes_the_images_that_a_set_names(trained, tmp_path):
    model, tokenizer = trained
    folder = image_folder(tmp_path / "images", each=6)
    names = open_labelled(str(folder)).names
    rows = [("flowers", names[1]), ("flowers", names[4]), ("flowers", names[4]), ("other", names[0])]
    table = pa.table({"set": [row[0] for row in rows], "image": [row[1] for row in rows]})
    pq.write_table(table, tmp_path / "contamination.parquet")

    def call(**more):
        return overlap.overlap(model, tokenizer, str(folder), contamination=str(tmp_path), **more)

    found = call(contamination_set="flowers")
    assert (found["images"], found["overlap_images"]) == (12, 2) and "threshold" not in found
    with pytest.raises(UsageError, match="has the sets flowers, other: name one with --contamination-set"):
        call()
    with pytest.raises(UsageError, match="--contamination-set 'flower': .* has the sets flowers, other"):
        call(contamination_set="flower")
    (tmp_path / "manifest.json").write_text(json.dumps({"contamination": {"clean": {}}}))
    assert call(contamination_set="clean")["overlap_images"] == 0
    members = [("a/1.jpg", jpeg(0)), ("a/1.cls", b"cat"), ("a/2.jpg", jpeg(1)), ("a/2.cls", b"dog")]
    write_tar(tmp_path / "eval.tar", members)
    rows = {"set": ["t", "t"], "image": ["a/2.jpg", "a/9.jpg"]}
    pq.write_table(pa.table(rows), tmp_path / "contamination.parquet")
    named = overlap.read_contamination(str(tmp_path), "t", str(tmp_path / "eval.tar"), ["a/1", "a/2"])
    assert named.tolist() == [False, True]
    with pytest.raises(TrainError, match=r"none of the 2 images .* one of them is 'a/2.jpg'"):
        call(contamination_set="t")
    with pytest.raises(InputMissing, match="--decontaminate"):
        overlap.read_contamination(str(tmp_path / "none.parquet"), None, str(folder), names)


def test_overlap_finds_the_images_that_were_trained_on(trained, tmp_path):
    model, tokenizer = trained
    folder = image_folder(tmp_path / "images", each=6)
    members = [(f"{n}.jpg", jpeg(n)) for n in (0, 1, 12)] + [("100.jpg", jpeg(100))]
    write_tar(tmp_path / "train.tar", members)
    table = str(tmp_path / "table.parquet")
    evaluate.embed(model, tokenizer, str(tmp_path / "train.tar"), table)
    found = overlap.overlap(model, tokenizer, str(folder), table, threshold=0.99999)
    assert (found["images"], found["overlap_images"]) == (12, 3)
    right, seen = np.array([1, 1, 0, 1, 0, 0], bool), np.array([1, 1, 0, 0, 0, 0], bool)
    found = overlap.summarise(right, seen)
    assert found["accuracy_clean"] == 0.25 and found["all_minus_clean"] == 0.25
    assert found["p_value"] == pytest.approx(0.0625)
    with pytest.raises(InputMissing, match="clip_train embed"):
        overlap.read_embeddings(str(tmp_path / "none.parquet"))
