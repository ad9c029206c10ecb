"""Suites of test sets: the file, the sets on disk, the measures, and the command."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import xml.etree.ElementTree
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

import numpy as np  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from clip_train import evaluate, metrics  # noqa: E402
from clip_train.__main__ import main  # noqa: E402
from clip_train.config import PRESETS  # noqa: E402
from clip_train.errors import InputMissing, TrainError, UsageError  # noqa: E402
from clip_train.labels import open_named, rename  # noqa: E402
from clip_train.model import CLIP  # noqa: E402
from clip_train.suite import Suite, SuiteSet, read_suite, shipped, shipped_prompts  # noqa: E402
from clip_train.suite_data import open_set  # noqa: E402
from clip_train.suite_report import table  # noqa: E402
from clip_train.suite_run import Evaluator, run_suite  # noqa: E402
from clip_train.tokenizer import load_tokenizer  # noqa: E402
from tests.clip_train.conftest import fill, jpeg, write_tar  # noqa: E402

NAMES = ("ball", "cube", "star fish")
TEMPLATES = ("a photo of a {}.", "the {c}")


@pytest.fixture
def small(vocabulary) -> Evaluator:
    tokenizer = load_tokenizer(vocabulary)
    model = CLIP(dataclasses.replace(PRESETS["ViT-Tiny"].model, vocab_size=tokenizer.vocab_size)).eval()
    fill(model)
    return Evaluator(model, tokenizer, batch_size=5)


def npy(*values: float) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values))
    return buffer.getvalue()


def class_folder(folder: Path, *, each: int = 3) -> Path:
    for number, name in enumerate(("ball", "cube", "star_fish")):
        (folder / name).mkdir(parents=True)
        for image in range(each):
            (folder / name / f"{image}.jpg").write_bytes(jpeg(10 * number + image))
    return folder


def webdataset(folder: Path, *, labels=(0, 1, 2, 0, 1, 2), arrays=None, names=NAMES, captions=None) -> Path:
    """The layout of CLIP_benchmark: test/0.tar, classnames.txt, zeroshot_classification_templates.txt."""
    (folder / "test").mkdir(parents=True)
    members = []
    for number, label in enumerate(labels):
        members.append((f"s{number:07d}.jpg", jpeg(number)))
        if label is not None:
            members.append((f"s{number:07d}.cls", str(label).encode()))
        if arrays is not None:
            members.append((f"s{number:07d}.npy", npy(*arrays[number])))
        if captions is not None:
            members.append((f"s{number:07d}.txt", captions[number].encode()))
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    return folder


def run(small: Evaluator, root: Path, *sets: SuiteSet, fresh: bool = False, heard: list[str] | None = None):
    return run_suite(
        small, Suite("s", sets), str(root), root / "out", say=(heard if heard is not None else []).append, fresh=fresh
    )


def zero_shot_set(**values) -> SuiteSet:
    return SuiteSet(**{"name": "x", "kind": "zero-shot", "data": ("x",), "metric": "accuracy", **values})


# --- measures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


scored = st.integers(2, 40).flatmap(
    lambda count: st.tuples(
        st.lists(st.integers(-4, 4), min_size=count, max_size=count),  # few values: many ties
        st.lists(st.booleans(), min_size=count, max_size=count).filter(lambda flags: any(flags) and not all(flags)),
    )
)


@settings(deadline=None)
@given(scored)
def test_average_precision_and_roc_are_those_of_scikit_learn(theirs, pair):
    scores, positive = np.array(pair[0], np.float64), np.array(pair[1])
    assert metrics.average_precision(scores, positive) == pytest.approx(
        theirs.average_precision_score(positive, scores)
    )
    assert metrics.roc_auc(scores, positive) == pytest.approx(theirs.roc_auc_score(positive, scores))
    precision, recall, _ = theirs.precision_recall_curve(positive, scores)
    eleven = [precision[:-1][recall[:-1] >= t - 1e-9].max() for t in np.linspace(0, 1, 11)]
    assert metrics.average_precision_11(scores, positive) == pytest.approx(np.mean(eleven))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
def test_means_over_classes_are_those_of_scikit_learn(theirs, pairs):
    labels, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    found = metrics.mean_per_class(predicted == labels, labels)
    present = np.unique(labels)
    assert found == pytest.approx(theirs.recall_score(labels, predicted, labels=present, average="macro"))
    assert metrics.f1_macro(predicted, labels) == pytest.approx(theirs.f1_score(labels, predicted, average="macro"))


def test_measures_by_hand():
    scores, positive = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert metrics.average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.average_precision_11(scores, positive) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    both = np.stack([scores, scores], 1), np.stack([positive, np.zeros(4, bool)], 1)
    assert metrics.mean_average_precision(*both) == pytest.approx(5 / 6)  # a class without an image does not count
    right, groups = np.array([1, 0, 1, 0], bool), np.array([7, 7, 8, 9])
    assert metrics.worst_group(right, groups) == 0 and metrics.worst_group(right, groups, ignore=9) == 0.5
    assert np.isnan(metrics.roc_auc(scores, np.ones(4, bool)))


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_suites_that_come_along():
    assert shipped() == ["clip", "clip-probe", "datacomp", "robustness"]
    sizes = {name: len(read_suite(name).sets) for name in shipped()}
    assert sizes == {"clip": 27, "clip-probe": 26, "datacomp": 38, "robustness": 6}
    entries = {each.name: each for each in read_suite("clip").sets}
    assert entries["voc2007"].metric == "map-11-point" and entries["kinetics700"].metric == "accuracy-top1-top5"
    per_class = {name for name, each in entries.items() if each.metric == "mean-per-class"}
    assert per_class == {"fgvc_aircraft", "pets", "caltech101", "flowers"}
    counts = {name: len(prompts["classes"]) for name, prompts in shipped_prompts().items()}
    assert counts["imagenet1k"] == 1000 and counts["kinetics700"] == 700 and counts["country211"] == 211
    assert all("{}" in template for prompts in shipped_prompts().values() for template in prompts["templates"])


GOOD = {"name": "a", "kind": "zero-shot", "data": "a", "metric": "accuracy"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "zeroshot"}, r"set 'a': kind: 'zeroshot' is unknown; did you mean zero-shot\?"),
        ({"metric": "acc"}, r"set 'a': metric: 'acc' is unknown for zero-shot; did you mean accuracy"),
        ({"metric": "recall"}, "set 'a': metric: 'recall' is unknown for zero-shot"),
        ({"metrics": "accuracy"}, r"set 'a': the key 'metrics' is unknown; did you mean metric\?"),
        ({"data": None}, "set 'a': data is missing"),
        ({"data": [1]}, "set 'a': data: 1: a text is expected; put it in quotes"),
        ({"data": "https://h/x"}, "set 'a': data: the place https://h/x: this is a URL"),
        ({"name": 3}, "set 1: name: 3: letters"),
        ({"name": "../a"}, r"set '../a': name: '../a': letters"),
        ({"classes": ["cat", 1]}, "set 'a': classes: 1: a text is expected; put it in quotes"),
        ({"classes": "none.txt"}, "set 'a': classes: no such file"),
        ({"templates": ["no place"]}, "set 'a': templates: 'no place' has no place for the class"),
        ({"templates": {"cat": []}}, "set 'a': templates: 'cat': a list of prompts is expected"),
        ({"templates": {"cat": ["x"]}, "classes": ["dog"]}, "set 'a': templates: no prompts for the class 'dog'"),
        ({"prompts": "cifar"}, r"set 'a': prompts: 'cifar' is unknown; did you mean cifar10"),
        ({"k": 0}, r"set 'a': k: 0: a whole number in \[1,"),
        ({"k": 5}, "set 'a': k: has no effect on zero-shot"),
        ({"group": 0}, "set 'a': group: has no effect on metric accuracy"),
        ({"l2": -1.0, "kind": "probe"}, "set 'a': l2: -1.0: a number in"),
        ({"split": "a/b"}, "set 'a': split: 'a/b': the name of a folder is expected"),
        ({"kind": ["probe"]}, r"set 'a': kind: \['probe'\] is unknown"),
        ({"beside": "b"}, r"set 'a': beside: 'b' is no set with zero-shot accuracy \(allowed: \)"),
        ({"beside": "a", "metric": "map"}, "set 'a': beside: has no effect without zero-shot accuracy"),
    ],
)
def test_bad_sets_are_refused_with_set_and_key(tmp_path, capsys, change, message):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"sets": [{**GOOD, **change}]}))
    with pytest.raises((UsageError, InputMissing), match=message):
        read_suite(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sets: []", "a list `sets:` is expected"),
        ("- a", "a list `sets:` is expected"),
        ("sets: [a]", "set 1: keys and values are expected"),
        ("sets: [}", "cannot be parsed"),
        ("set: []\nsets: [{}]", "the key 'set' is unknown"),
        ("sets: [{}]", "set 1: name is missing"),
        ("sets: [{name: a, kind: probe, kind: zero-shot}]", "the key 'kind' is given twice"),
        ("name: a/b\nsets: [{}]", "name 'a/b': letters"),
        (json.dumps({"sets": [GOOD, GOOD]}), "set 'a': name is given twice"),
    ],
)
def test_bad_files_exit_2_with_one_line(tmp_path, vocabulary, capsys, content, message):
    path = tmp_path / "s.yaml"
    path.write_text(content)
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"x")
    assert main(["evaluate", "--checkpoint", str(weights), "--suite", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and str(path) in error


def test_an_unknown_suite_and_an_unknown_set(tmp_path, capsys):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"x")
    assert main(["evaluate", "--checkpoint", str(weights), "--suite", "clips"]) == 4
    assert "did you mean clip?" in capsys.readouterr().err
    assert main(["evaluate", "--checkpoint", str(weights), "--suite", "clip", "--only", "cifar"]) == 2
    assert "--only 'cifar' is no set of clip; did you mean cifar10?" in capsys.readouterr().err


# --- sets on disk -----------------------------------------------------------------------------------------------------


def test_a_folder_of_clip_benchmark_is_read_as_it_is(small, tmp_path):
    webdataset(tmp_path / "wds_x")
    (row,) = run(small, tmp_path, zero_shot_set(data=("x", "wds_x"), prompts="cifar10"))
    images = open_named(str(tmp_path / "wds_x" / "test"), NAMES)
    seen = evaluate.classify(small.model, small.tokenizer, images, TEMPLATES)
    expected = evaluate.accuracies(seen.best, images.labels)
    assert (row["value"], row["images"], row["classes"]) == (expected["top1"], 6, 3)
    assert row["mean_per_class"] == expected["mean_per_class"]


def test_class_names_with_an_empty_line_keep_their_numbers(tmp_path):
    webdataset(tmp_path / "x", names=("near", "", "far"))
    assert open_named(str(tmp_path / "x" / "test"), None).classes == ["near", "", "far"]


def test_folders_are_matched_by_name_or_by_order(tmp_path):
    folder = class_folder(tmp_path / "x", each=1)
    by_name = open_named(str(folder), ["star fish", "ball", "dog", "cube"])
    assert by_name.labels.tolist() == [1, 3, 0] and len(by_name.classes) == 4
    by_order = open_named(str(folder), ["a", "b", "c"])
    assert by_order.labels.tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="has 3 class folders, the file of classes has 4 names"):
        open_named(str(folder), ["a", "b", "c", "d"])
    mapped = rename(open_named(str(folder), None), {"star_fish": "animal", "ball": "toy", "cube": "toy", "x": "y"})
    assert mapped.classes == ["animal", "toy", "y"] and mapped.labels.tolist() == [1, 1, 0]
    with pytest.raises(UsageError, match="no class name for the folder or label 'cube'"):
        rename(open_named(str(folder), None), {"star_fish": "animal", "ball": "toy"})


def test_many_labels_an_image(small, tmp_path):
    arrays = [(1, 0, 0), (1, 1, 0), (0, 0, 1), (0, 0, 0), (0, 1, 1), (1, 1, 1)]
    webdataset(tmp_path / "x", labels=[None] * 6, arrays=arrays)
    rows = run(small, tmp_path, zero_shot_set(metric="map"), zero_shot_set(name="y", metric="map-11-point"))
    images = dataclasses.replace(
        open_named(str(webdataset(tmp_path / "again") / "test"), NAMES)
    )  # the same images, with other labels
    scores = evaluate.classify(small.model, small.tokenizer, images, TEMPLATES, keep_scores=True).scores
    positive = np.array(arrays, bool)
    assert rows[0]["value"] == pytest.approx(metrics.mean_average_precision(scores, positive))
    assert rows[1]["value"] == pytest.approx(metrics.mean_average_precision(scores, positive, points=11))
    webdataset(tmp_path / "bad", arrays=[(1, 0)] * 6)
    with pytest.raises(UsageError, match=r"suite s: set 'x': classes: 3 names, the .npy members of .* have 2 numbers"):
        run(small, tmp_path, zero_shot_set(metric="map", data=("bad",)))


def test_groups_of_images(small, tmp_path):
    webdataset(tmp_path / "x", arrays=[(0, 2020), (0, 2020), (1, 2021), (1, 2021), (5, 0), (5, 0)])
    worst, of_five = run(
        small, tmp_path, zero_shot_set(metric="worst-group", ignore_group=5),
        zero_shot_set(name="y", metric="worst-group-top5"),
    )  # fmt: skip
    images = open_named(str(tmp_path / "x" / "test"), NAMES)
    best = evaluate.classify(small.model, small.tokenizer, images, TEMPLATES).best
    right = best[:, 0] == images.labels
    assert worst["value"] == min(right[:2].mean(), right[2:4].mean()) and of_five["value"] == 1.0
    with pytest.raises(UsageError, match="set 'x': group: 2, the .npy members of .* have 2 numbers"):
        run(small, tmp_path, zero_shot_set(metric="worst-group", group=2))


def test_a_shift_stands_beside_the_other_set_with_the_same_classes(small, tmp_path):
    class_folder(tmp_path / "all", each=4)
    class_folder(tmp_path / "shift")
    webdataset(tmp_path / "part", labels=(0, 1, 0, 1), names=("star fish", "ball"))
    webdataset(tmp_path / "strange", labels=(0, 1, 0, 1), names=("star fish", "moon"))
    sets = [zero_shot_set(name="all", data=("all",))]
    sets += [zero_shot_set(name=name, data=(name,), beside="all") for name in ("shift", "part", "strange")]
    base, same, part, strange = run(small, tmp_path, *sets)
    assert "gap" not in base and "gap" not in strange and "gap" not in run(small, tmp_path, sets[1])[0]
    assert (same["reference"], same["gap"]) == (base["value"], same["value"] - base["value"])
    (tmp_path / "two").mkdir()
    for name in ("ball", "star_fish"):
        (tmp_path / "all" / name).rename(tmp_path / "two" / name)
    alone = run(small, tmp_path, zero_shot_set(name="two", data=("two",)))[0]  # class names: those of the folders
    assert part["reference"] == alone["value"] and part["gap"] == part["value"] - alone["value"]
    text = table({"sets": [base, part], "mean": 0.5, "done": 2})
    assert text.splitlines()[0].split() == ["set", "metric", "%", "images", "beside", "gap"]


def test_retrieval_and_probe_in_one_suite(small, tmp_path):
    webdataset(tmp_path / "pairs", labels=[None] * 4, captions=["a ball", "two\nthree", "a cube", "a star"])
    for split in ("train", "test"):
        class_folder(tmp_path / "x" / split, each=5)
    recall, probe = run(
        small, tmp_path, SuiteSet(name="r", kind="retrieval", data=("pairs",), metric="recall", k=5),
        SuiteSet(name="p", kind="probe", data=("x",), metric="mean-per-class", l2=0.1),
    )  # fmt: skip
    assert recall["texts"] == 5 and recall["value"] == 1.0 and recall["image_to_text_recall@1"] <= 1
    assert probe["value"] > 0.9 and (probe["train_images"], probe["images"]) == (15, 15)


def test_what_is_absent_is_skipped_and_what_does_not_fit_is_refused(small, tmp_path):
    heard: list[str] = []
    class_folder(tmp_path / "x")
    sets = (
        zero_shot_set(),
        zero_shot_set(name="y", data=("y", "z"), needs="all of it"),
        zero_shot_set(name="s", skip="no"),
    )
    rows = run(small, tmp_path, *sets, heard=heard)
    assert [row["status"] for row in rows] == ["done", "skipped", "skipped"]
    assert f"y: skipped: none of y, z is in {tmp_path} (all of it)" in heard and "s: skipped: no" in heard
    with pytest.raises(InputMissing, match="none of the 1 sets of s is there"):
        run(small, tmp_path, sets[1])
    with pytest.raises(UsageError, match="suite s: set 'x': .* has 3 class folders, the file of classes has 10 names"):
        run(small, tmp_path, zero_shot_set(prompts="cifar10"))
    with pytest.raises(InputMissing, match="suite s: set 'x': train: no folder 'train'"):
        run(small, tmp_path, zero_shot_set(kind="probe"))
    with pytest.raises(UsageError, match="set 'x': metric: roc-auc needs two classes"):
        run(small, tmp_path, zero_shot_set(metric="roc-auc"))
    with pytest.raises(InputMissing, match="set 'x': .*shards with captions are expected"):
        run(small, tmp_path, zero_shot_set(kind="retrieval", metric="recall"))


def test_arrays_that_run_code_or_are_cut_are_refused(tmp_path):
    for content in (npy(1, 2)[:90], b"x", np.array([{}], object).tobytes()):
        folder = webdataset(tmp_path / f"x{len(content)}")
        write_tar(folder / "test" / "0.tar", [("0.jpg", jpeg(0)), ("0.cls", b"0"), ("0.npy", content)])
        with pytest.raises(TrainError, match="the .npy member of '0' cannot be read"):
            open_set(zero_shot_set(metric="worst-group"), folder)


# --- results that are kept --------------------------------------------------------------------------------------------


def test_results_are_kept_by_all_that_decides_them(small, tmp_path):
    folder, heard = class_folder(tmp_path / "x"), []
    (first,) = run(small, tmp_path, zero_shot_set(), heard=heard)
    (again,) = run(small, tmp_path, zero_shot_set(needs="x"), heard=heard)
    assert again == {**first, "kept": True} and heard[1].endswith("(kept)")
    assert "kept" not in run(small, tmp_path, zero_shot_set(), fresh=True)[0]
    assert "kept" not in run(small, tmp_path, zero_shot_set(templates=("x {}",)))[0]
    (folder / "ball" / "7.jpg").write_bytes(jpeg(99))
    assert run(small, tmp_path, zero_shot_set())[0]["images"] == 10
    with torch.no_grad():
        small.model.logit_scale.add_(1)
    assert "kept" not in run(dataclasses.replace(small), tmp_path, zero_shot_set())[0]
    for path in (tmp_path / "out" / "cache").iterdir():
        path.write_text('{"value": null}')  # damaged
    assert run(dataclasses.replace(small), tmp_path, zero_shot_set())[0]["status"] == "done"


def test_a_set_that_fails_leaves_the_others(small, tmp_path):
    class_folder(tmp_path / "x")
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "a" / "0.jpg").write_bytes(b"x")
    bad, good = run(small, tmp_path, zero_shot_set(name="b", data=("broken",)), zero_shot_set())
    assert bad["status"] == "failed" and "none of the 1 images decodes" in bad["reason"] and good["status"] == "done"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(small, tmp_path, vocabulary):
    from clip_train.export import export
    from clip_train.weights import Weights

    made = Weights(dict(small.model.state_dict()), small.model.config, "openai")
    export(made, str(tmp_path / "w.safetensors"), form="safetensors")
    return ["--checkpoint", str(tmp_path / "w.safetensors"), "--bpe", str(vocabulary)]


def test_the_command_writes_table_json_csv_and_plot(weights, tmp_path, capsys):
    class_folder(tmp_path / "x" / "test")
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        "sets:\n- {name: x1, kind: zero-shot, data: x, metric: accuracy}\n"
        "- {name: y, kind: zero-shot, data: y, metric: accuracy}\n"
    )
    given = ["evaluate", *weights, "--suite", str(suite), "--root", str(tmp_path), "--output", str(tmp_path / "e")]
    assert main([*given, "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["done"], result["skipped"], result["suite"]) == (1, 1, "mine")
    assert "y: skipped: none of y is in" in shown.err
    folder = Path(result["output"])
    assert json.loads((folder / "results.json").read_text())["sets"] == result["sets"]
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert [row["name"] for row in rows] == ["x1", "y"] and float(rows[0]["value"]) == result["sets"][0]["value"]
    assert xml.etree.ElementTree.parse(folder / "results.svg").getroot().tag.endswith("svg")
    assert main([*given, "--only", "x1"]) == 0
    shown = capsys.readouterr()
    assert "x1: " in shown.err and "(kept)" in shown.err and "mean of 1 of 1 sets" in shown.out
    assert shown.out.splitlines()[0].split() == ["set", "metric", "%", "images"]


@pytest.mark.slow
def test_two_processes_share_the_sets(weights, tmp_path, capfd):
    for name in ("x", "y"):
        class_folder(tmp_path / name)
    suite = tmp_path / "mine.json"
    suite.write_text(json.dumps({"sets": [{**GOOD, "name": name, "data": name} for name in ("x", "y")]}))
    given = ["evaluate", *weights, "--suite", str(suite), "--root", str(tmp_path), "--output", str(tmp_path / "e")]
    code, found = main([*given, "--processes", "2"]), capfd.readouterr()
    assert code == 0, found.err
    assert found.out.count("mean of 2 of 2 sets") == 1 and "x: " in found.err and "y: " in found.err
