"""Index, order and loader: every sample once an epoch, the same batches for any ranks, bad samples are counted."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
import sys
import tarfile

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from clip_train import data as data_module  # noqa: E402
from clip_train import decode_processes, decoder  # noqa: E402
from clip_train import reader as reader_module  # noqa: E402
from clip_train.bpe import read_captions  # noqa: E402
from clip_train.data import BadSamples, Loader, LoaderOptions  # noqa: E402
from clip_train.errors import BelowThreshold, InputMissing, TrainError, UsageError  # noqa: E402
from clip_train.order import Stream  # noqa: E402
from clip_train.places import expand  # noqa: E402
from clip_train.shards import open_index  # noqa: E402
from clip_train.tar_scan import scan_tar  # noqa: E402
from clip_train.tokenizer import load_tokenizer  # noqa: E402
from tests.clip_train.conftest import CAPTIONS, jpeg, sample_members, write_manifest, write_tar  # noqa: E402


def options(**changes) -> LoaderOptions:
    return LoaderOptions(**{"image_size": 16, "context_length": 20, "batch_size": 8, "max_bad": 1.0, **changes})


def steps(index, vocabulary, count, *, seen=0, stream=None, **changes):
    """The first micro-batches: a list for each step."""
    chosen = options(**changes)
    stream = stream or Stream(index, seed=chosen.seed)
    with Loader(stream, load_tokenizer(vocabulary), chosen) as loader:
        return list(itertools.islice(loader.steps(seen), count)), loader.bad


def same_index(one, other) -> bool:
    everything = np.arange(len(one))
    return one.keys_of(everything) == other.keys_of(everything) and all(
        np.array_equal(a, b)
        for a, b in zip(vars(one.rows(everything)).values(), vars(other.rows(everything)).values(), strict=True)
    )


# --- index ------------------------------------------------------------------------------------------------------------


def test_plain_tars_are_indexed_once(tars):
    folder = tars()
    index = open_index(str(folder))
    assert len(index) == 48 and index.keys_of([0, 47]) == ["000000", "000047"] and len(index.paths) == 3
    kept = list((folder / ".clip_train").glob("*.index"))
    assert len(kept) == 1
    again = open_index(str(folder / "{00000..00002}.tar"))
    assert same_index(index, again)
    shard, offset, size = index.place("image", 17)
    with open(index.paths[1], "rb") as file:
        file.seek(offset)
        assert shard == 1 and file.read(size) == jpeg(17)
    kept[0].write_bytes(kept[0].read_bytes()[:-100])  # a damaged index is made again
    assert len(open_index(str(folder))) == 48


def test_published_folder(published):
    index = open_index(str(published()))
    rows = index.rows(np.arange(48))
    assert len(index) == 48 and rows.sha256[17].tobytes() == hashlib.sha256(jpeg(17)).digest()[:8]
    assert index.keep_probability(np.array([0])) == [0.5] and index.keys_of([20]) == ["0000100020"]


@pytest.mark.parametrize("numbers, digits", [((0, 3, 17), 5), ((2500, 97_500, 500_000), 6)])
@pytest.mark.parametrize("window", [0, 2])
def test_numbers_of_shards_with_gaps_change_nothing(published, vocabulary, numbers, digits, window):
    whole = open_index(str(published(name="whole")))
    index = open_index(str(published(numbers=numbers, digits=digits)))
    assert [path.rsplit("/", 1)[1] for path in index.paths] == [f"{number:0{digits}d}.tar" for number in numbers]
    everything = np.arange(len(whole))
    assert np.array_equal(index.bounds, whole.bounds)
    assert np.array_equal(index.rows(everything).image_offset, whole.rows(everything).image_offset)
    wanted, _ = steps(whole, vocabulary, 9, stream=Stream(whole, seed=4, window=window))
    for seen in (0, 16):  # 16: resumed
        stream = Stream(index, seed=4, window=window)
        found, _ = steps(index, vocabulary, 9 - seen // 8, seen=seen, stream=stream)
        for (a,), (b,) in zip(wanted[seen // 8 :], found, strict=True):
            assert np.array_equal(a.samples, b.samples) and torch.equal(a.images, b.images)


def test_a_shard_that_the_manifest_does_not_list_is_refused(published):
    folder = published(numbers=(0, 3, 17))
    for kind in ("shards/00003.tar", "metadata/00003.parquet"):
        (folder / kind).rename(folder / kind.replace("3", "4"))
    write_manifest(folder)
    with pytest.raises(TrainError, match="the manifest lists no shard 3"):
        open_index(str(folder))


def test_shards_that_disagree_with_the_manifest_are_refused(published):
    folder = published()
    shard = folder / "shards" / "00001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    with pytest.raises(TrainError, match=r"00001\.tar has \d+ bytes, the manifest says"):
        open_index(str(folder))
    shard.unlink()
    with pytest.raises(InputMissing, match=r"00001\.tar is missing"):
        open_index(str(folder))
    shard.write_bytes(whole)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(TrainError, match="is not a manifest"):
        open_index(str(folder))


def test_nothing_to_read_is_said(tmp_path):
    for data, message in (("", "no data"), (str(tmp_path / "a{0..2}.tar"), "a0.tar"), (str(tmp_path), "no .tar")):
        with pytest.raises(InputMissing, match=message):
            open_index(data)
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(InputMissing, match="no sample with an image"):
        open_index(str(tmp_path))
    (tmp_path / "zero.tar").write_bytes(b"")
    with pytest.raises(InputMissing, match="no sample with an image"):
        open_index(str(tmp_path))


def test_braces(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"")
    names = [path.rsplit("/", 1)[1] for path in expand(str(tmp_path / "a-{08..10}.tar"))]
    assert names == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert len(expand(str(tmp_path / "{a-08,b}.tar"))) == 2


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_forms_agree_with_tarfile(tmp_path, format):
    path = tmp_path / "x.tar"
    names = ["a.jpg", "dir/b.c.txt", "ä.jpg", "no_extension", f"{'long' * 12}/{'er' * 45}.jpg", ".hidden", "A.JPG"]
    with tarfile.open(path, "w", format=format) as tar:
        tar.addfile(tarfile.TarInfo("folder/"))
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = number * 300
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    samples, whole = scan_tar(str(path))
    assert whole
    found = {key: {kind: size for kind, (_, size) in kinds.items()} for key, kinds in samples.items()}
    assert found == {
        "a": {"jpg": 0}, "dir/b": {"c.txt": 300}, "ä": {"jpg": 600}, f"{'long' * 12}/{'er' * 45}": {"jpg": 1200},
        "A": {"jpg": 1800},
    }  # fmt: skip
    offset, size = samples["A"]["jpg"]
    assert path.read_bytes()[offset : offset + size] == bytes([6]) * 1800


def test_a_cut_tar_gives_its_whole_samples(tars):
    folder = tars(samples=16, shards=2)
    path = folder / "00001.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    index = open_index(str(folder))
    assert 8 < len(index) < 16 and index.damaged == (str(path),)
    assert open_index(str(folder)).damaged == (str(path),)  # also from the saved index


def test_behind_a_spoiled_header_the_other_samples_are_found(tars):
    path = tars(samples=16, shards=1) / "00000.tar"
    data = bytearray(path.read_bytes())
    at = data.index(b"000005.jpg")
    data[at + 130] ^= 4  # in the size field
    path.write_bytes(data)
    samples, whole = scan_tar(str(path))
    assert not whole and sorted(samples) == [f"{number:06d}" for number in range(16)]
    assert [key for key, members in samples.items() if "jpg" not in members] == ["000005"]


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0, 1, 2])
def test_every_sample_once_an_epoch_and_epochs_differ(tars, window):
    index = open_index(str(tars()))
    stream = Stream(index, seed=5, window=window)
    samples, epochs = stream.samples(0, 3 * 48)
    orders = [samples[epochs == epoch].tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(48)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    # any cut of the sequence gives the same sequence
    pieces = [stream.samples(at, 7)[0] for at in range(0, 3 * 48, 7)]
    assert np.array_equal(np.concatenate(pieces)[: 3 * 48], samples)
    if window:
        shards = index.shard_of(samples[:16])
        assert len(set(shards.tolist())) <= window


def test_online_balance_keeps_the_right_share(published):
    index = open_index(str(published(samples=300)))
    stream = Stream(index, seed=1, online_balance=True)
    samples, epochs = stream.samples(0, 1000)
    sizes = [int((epochs == epoch).sum()) for epoch in range(3)]
    assert all(110 < size < 190 for size in sizes)  # half of 300
    for epoch in range(3):
        chosen = samples[epochs == epoch]
        assert len(set(chosen.tolist())) == len(chosen)
    assert len(set(samples[epochs == 0].tolist()) ^ set(samples[epochs == 1].tolist())) > 60  # drawn anew


def test_online_balance_needs_the_metadata(tars):
    message = "keep_probability, which is in the metadata of a published folder: name that folder with --data"
    with pytest.raises(UsageError, match=message):
        Stream(open_index(str(tars())), seed=0, online_balance=True)


# --- loader -----------------------------------------------------------------------------------------------------------


def test_any_ranks_micro_batches_and_threads_see_the_same_global_batches(tars, vocabulary):
    index = open_index(str(tars()))
    reference, _ = steps(index, vocabulary, 4)
    wanted = [
        {int(s): (row.tobytes(), t.tolist()) for s, row, t in zip(b.samples, b.images.numpy(), texts(b), strict=True)}
        for (b,) in reference
    ]
    for world, accumulate, threads in ((2, 1, 1), (1, 4, 3), (2, 2, 2)):
        found: list[dict] = [{} for _ in range(4)]
        for rank in range(world):
            parts, _ = steps(index, vocabulary, 4, rank=rank, world_size=world, accumulate=accumulate, threads=threads)
            for step, batches in enumerate(parts):
                assert len(batches) == accumulate
                for batch in batches:
                    rows = zip(batch.samples, batch.images.numpy(), texts(batch), strict=True)
                    found[step] |= {int(s): (row.tobytes(), t.tolist()) for s, row, t in rows}
        assert found == wanted


def texts(batch):
    """The ids of each caption, cut out of the packed batch."""
    bounds = batch.text.boundaries.tolist()
    start_of = dict(zip(bounds[1:], bounds, strict=False))
    return [batch.text.tokens[start_of[end + 1] : end + 1] for end in batch.text.ends.tolist()]


def test_a_loader_goes_on_from_the_samples_seen(tars, vocabulary):
    index = open_index(str(tars()))
    whole, _ = steps(index, vocabulary, 9)
    rest, _ = steps(index, vocabulary, 5, seen=32)
    for (a,), (b,) in zip(whole[4:], rest, strict=True):
        assert np.array_equal(a.samples, b.samples) and torch.equal(a.images, b.images)
        assert torch.equal(a.text.tokens, b.text.tokens)


def three_texts(number: int) -> list[str]:
    """One text for every third sample, three for the others."""
    return [f"{CAPTIONS[number % len(CAPTIONS)]} {number} {place}" for place in range(3 if number % 3 else 1)]


def drawn(index, vocabulary, count, *, seen=0, world=1, **changes):
    """{(sample, epoch): the ids of its caption} over all ranks."""
    found: dict[tuple[int, int], list[int]] = {}
    for rank in range(world):
        for step in steps(index, vocabulary, count, seen=seen, rank=rank, world_size=world, **changes)[0]:
            for batch in step:
                places = zip(batch.samples.tolist(), batch.epochs.tolist(), strict=True)
                found |= {place: ids.tolist() for place, ids in zip(places, texts(batch), strict=True)}
    return found


def test_one_text_of_a_sample_is_drawn_in_each_epoch(published, vocabulary):
    index = open_index(str(published(texts=three_texts)))
    assert index.rows(np.arange(48)).captions.tolist() == [3 if n % 3 else 1 for n in range(48)]
    tokenizer = load_tokenizer(vocabulary)
    found = drawn(index, vocabulary, 120, context_length=40)  # 20 epochs
    ids = {n: [tokenizer.encode_caption(text, context_length=40) for text in three_texts(n)] for n in range(48)}
    counts = [0, 0, 0]
    for (sample, _), drawn_ids in found.items():
        counts[ids[sample].index(drawn_ids)] += sample % 3 > 0
    assert len(found) == 960 and all(160 < count < 270 for count in counts)  # 640 draws of three
    assert {tuple(found[4, epoch]) for epoch in range(20)} == {tuple(one) for one in ids[4]}
    assert drawn(index, vocabulary, 12, context_length=40, seed=1) != drawn(index, vocabulary, 12, context_length=40)


def test_the_drawn_text_is_the_same_for_any_ranks_and_after_a_resume(published, vocabulary):
    index = open_index(str(published(texts=three_texts)))
    whole = drawn(index, vocabulary, 12)
    assert drawn(index, vocabulary, 12, world=2) == whole
    assert drawn(index, vocabulary, 12, world=2, accumulate=2, threads=3) == whole
    assert drawn(index, vocabulary, 5) | drawn(index, vocabulary, 7, seen=40, world=4) == whole


def test_a_damaged_list_of_texts_is_a_bad_sample(published, vocabulary):
    folder = published(samples=12, shards=1, texts=lambda number: [f"one {number}", f"two {number}"])
    shard = folder / "shards" / "00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b'"texts": ["one', b'"texts":  "one'))
    index = open_index(str(folder))
    _, bad = steps(index, vocabulary, 1, batch_size=12, prefetch=0)
    samples, epochs = np.arange(12), np.zeros(12, np.int64)
    drawn_second = int(data_module.draw_captions(index.rows(samples), 0, samples, epochs).sum())
    assert 0 < drawn_second < 12 and bad.to_json() == {"json_damaged": drawn_second}


def test_without_captions_no_text_is_read_for_the_index(published):
    index = open_index(str(published(name="one")))
    assert index.rows(np.arange(48)).captions is None and "captions" not in index.table.columns


def test_crops_change_with_the_epoch_and_captions_belong_to_images(tars, vocabulary):
    index = open_index(str(tars()))
    tokenizer = load_tokenizer(vocabulary)
    found, _ = steps(index, vocabulary, 12)
    first: dict[int, bytes] = {}
    changed = 0
    for (batch,) in found:
        for sample, image, text in zip(batch.samples.tolist(), batch.images.numpy(), texts(batch), strict=True):
            caption = f"{CAPTIONS[sample % len(CAPTIONS)]} {sample}"
            assert text.tolist() == tokenizer.encode_caption(caption, context_length=20)
            changed += sample in first and first[sample] != image.tobytes()
            first.setdefault(sample, image.tobytes())
    assert changed > 40


def test_bad_samples_are_counted_named_and_left_out(tmp_path, vocabulary):
    members = []
    for number in range(12):
        key = f"{number:03d}"
        image, text = jpeg(number), b"a red square"
        if number == 2:
            image = b"no image at all"
        if number == 5:
            text = b"\xff\xfe caf\xe9"
        if number == 7:
            text = b"  \n"
        members.append((f"{key}.jpg", image))
        if number != 9:
            members.append((f"{key}.txt", text))
    write_tar(tmp_path / "x.tar", members)
    index = open_index(str(tmp_path / "x.tar"))
    ((batch,),), bad = steps(index, vocabulary, 1, batch_size=12, prefetch=0)
    assert bad.to_json() == {"image_not_decoded": 1, "member_missing": 1, "text_empty": 1, "text_not_utf8": 1}
    assert sorted(batch.samples[batch.good.numpy()].tolist()) == [0, 1, 3, 4, 6, 8, 10, 11]
    assert "x.tar:002 (image_not_decoded)" in bad.names
    with pytest.raises(BelowThreshold, match="4 of 12 samples could not be used .*more than --max-bad 0.3"):
        steps(index, vocabulary, 1, batch_size=12, prefetch=0, max_bad=0.3)


def test_a_small_share_of_bad_samples_passes():
    bad = BadSamples(limit=0.01, samples=1000)
    for number in range(10):
        bad.add("image_not_decoded", str(number))
    bad.check(10)
    bad.add("image_not_decoded", "11")
    with pytest.raises(BelowThreshold):
        bad.check(10)


def test_digests_are_checked_on_demand(published, vocabulary):
    folder = published(samples=12, shards=1)
    index = open_index(str(folder))
    shard = folder / "shards" / "00000.tar"
    data = bytearray(shard.read_bytes())
    _, offset, size = index.place("image", 4)
    data[offset + size // 2] ^= 1
    shard.write_bytes(data)
    write_manifest(folder)
    _, bad = steps(index, vocabulary, 1, batch_size=12, prefetch=0, verify=True)
    assert bad.to_json() == {"sha256_differs": 1}
    _, bad = steps(index, vocabulary, 1, batch_size=12, prefetch=0)
    assert bad.reasons["sha256_differs"] == 0


def test_a_shard_that_shrinks_under_the_run_is_noticed(tars, vocabulary):
    folder = tars(samples=12, shards=1)
    index = open_index(str(folder))
    with open(index.paths[0], "r+b") as file:
        file.truncate(index.place("image", 6)[1] + 10)
    _, bad = steps(index, vocabulary, 1, batch_size=12, prefetch=0)
    assert bad.to_json() == {"shard_cut": 6}
    (folder / "00000.tar").unlink()
    _, bad = steps(index, vocabulary, 1, batch_size=12, prefetch=0)
    assert bad.to_json() == {"shard_not_readable": 12}


def test_members_that_could_run_code_are_never_looked_at(tmp_path, vocabulary):
    members = [member for number in range(4) for member in sample_members(number)]
    members += [("000000.pyd", b"cos\nsystem\n(S'touch /tmp/owned'\ntR."), ("pipe:touch x.jpg", jpeg(9))]
    write_tar(tmp_path / "x.tar", members)
    index = open_index(str(tmp_path / "x.tar"))
    _, bad = steps(index, vocabulary, 1, batch_size=5, prefetch=0)
    assert bad.to_json() == {"member_missing": 1}
    with pytest.raises(InputMissing):
        open_index("pipe:cat x.tar")
    (tmp_path / "y.tar").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    with pytest.raises(InputMissing):  # not a tar: it is not decompressed silently
        open_index(str(tmp_path / "y.tar"))


def member(name: str, data: bytes, *, size: int | None = None, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar member made by hand, which may claim any size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data) if size is None else size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def found_in(path, data: bytes) -> tuple[list[str], bool]:
    path.write_bytes(data + bytes(1024))
    samples, whole = scan_tar(str(path))
    return sorted(key for key, kinds in samples.items() if "jpg" in kinds), whole


@pytest.mark.parametrize("size", [10**6, 2**33 - 1, 2**63, 2**70])
def test_a_member_that_claims_more_than_the_file_is_skipped_alone(tmp_path, size):
    good = [member(f"{n}.jpg", jpeg(n)) for n in range(4)]
    absurd = member("absurd.jpg", jpeg(9), size=size)
    assert found_in(tmp_path / "x.tar", b"".join([*good[:2], absurd, *good[2:]])) == (["0", "1", "2", "3"], False)


def test_names_are_labels_and_never_paths(tmp_path, vocabulary):
    names = ["../../etc/passwd", "/etc/shadow", "..", "a/../../b", "\x1b[2Jcls", "x" * 5000]
    path = tmp_path / "x.tar"
    members = [member_ for name in names for member_ in ((f"{name}.jpg", b"no image"), (f"{name}.txt", b"words"))]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    index = open_index(str(path))
    _, bad = steps(index, vocabulary, 1, batch_size=len(index), prefetch=0)
    assert bad.reasons.total() == bad.reasons["image_not_decoded"] == len(index) == 5  # ".." has no stem
    assert all(len(name) < 150 and name.isprintable() for name in bad.names)
    assert sorted(set(p.name for p in tmp_path.rglob("*")) - set(before))[0] == ".clip_train"


def test_the_first_of_two_members_of_a_name_counts(tmp_path):
    path = tmp_path / "x.tar"
    offsets = write_tar(path, [("a.jpg", jpeg(1)), ("a.txt", b"one"), ("a.jpg", jpeg(2)), ("a.txt", b"two")])
    index = open_index(str(path))
    assert len(index) == 1 and index.place("image", 0)[1] == offsets[0] and index.place("text", 0)[2] == 3


def test_other_members_are_never_read(tmp_path, vocabulary):
    """A .json with endless nesting or compression, a link, a device: none of them is read."""
    bomb = b"[" * 1_000_000
    link = tarfile.TarInfo("1.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("2.jpg")
    device.type = tarfile.CHRTYPE
    good = member("0.jpg", jpeg(0)) + member("0.txt", b"a red square") + member("0.json", bomb)
    path = tmp_path / "x.tar"
    assert found_in(path, good + link.tobuf() + device.tobuf()) == (["0"], True)
    ((batch,),), bad = steps(open_index(str(path)), vocabulary, 1, batch_size=1)
    assert batch.good is None and not bad.reasons


def test_long_names_and_pax_records_are_bounded(tmp_path):
    good = member("0.jpg", jpeg(0))
    for kind in (b"L", b"x"):
        huge = member("././@LongLink", b"9" * (2 << 20), kind=kind)
        assert found_in(tmp_path / "x.tar", huge + good) == (["0"], False)
    spoiled = b"junk", b"9999999999 path=x\n", b"0 path=a\n", b"14 path=b.jpg", b"29 size=99999999999999999999\n"
    for records in spoiled:
        assert found_in(tmp_path / "x.tar", member("pax", records, kind=b"x") + good)[0] == ["0"], records
    # a pax record gives the size that the header cannot
    large = member("pax", b"12 size=700\n", kind=b"x") + member("big.jpg", bytes(700), size=0)
    assert found_in(tmp_path / "x.tar", large + good) == (["0", "big"], True)


def test_members_beyond_any_use_are_counted_and_not_read(tmp_path, vocabulary, monkeypatch):
    write_tar(tmp_path / "x.tar", [
        ("0.jpg", jpeg(0)), ("0.txt", b"word " * 20_000), ("1.jpg", jpeg(1)), ("1.txt", b"a red square"),
    ])  # fmt: skip
    index = open_index(str(tmp_path / "x.tar"))
    _, bad = steps(index, vocabulary, 1, batch_size=2, prefetch=0)
    assert bad.to_json() == {"text_too_large": 1}
    monkeypatch.setattr(decoder, "MAX_IMAGE_BYTES", 10)
    _, bad = steps(index, vocabulary, 1, batch_size=2, prefetch=0)
    assert bad.to_json() == {"image_too_large": 2}


def test_processes_decode_the_same_batches_as_threads(tars, vocabulary):
    folder = tars(samples=6, shards=1)
    picture = sample_members(6)[0][1]
    write_tar(folder / "x.tar", [("006.jpg", picture[: len(picture) // 2]), ("006.txt", b"half a picture")])
    index = open_index(str(folder))
    one, counts = steps(index, vocabulary, 3, batch_size=7, prefetch=0, threads=2)
    two, same = steps(index, vocabulary, 3, batch_size=7, prefetch=0, threads=2, processes=True)
    for [mine], [other] in zip(one, two, strict=True):
        assert torch.equal(mine.images, other.images) and torch.equal(mine.text.tokens, other.text.tokens)
        assert mine.good is None or torch.equal(mine.good, other.good)
    assert counts.to_json() == same.to_json() == {"image_not_decoded": 3} and counts.names == same.names


def test_a_decoding_process_that_is_killed_ends_the_run_with_its_reason(tars, vocabulary):
    index = open_index(str(tars()))
    with Loader(Stream(index, seed=0), load_tokenizer(vocabulary), options(processes=True, prefetch=0)) as loader:
        found = loader.steps(0)
        next(found)
        loader.decoder._workers[0]._process.kill()
        with pytest.raises(TrainError, match="a process that decodes images has gone: signal 9 ended it"):
            next(found)


def test_the_start_of_decoding_processes_waits_for_none_of_them(vocabulary, monkeypatch):
    """A process that ends at once is noticed by the first task, so the start has sent it nothing."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    chosen = options().decode
    pool = decode_processes.DecodeProcesses(("x" * 500_000,), load_tokenizer(vocabulary), chosen, count=2, rows=1)
    for worker in pool._workers:
        worker._process.wait()
    with pytest.raises(TrainError, match="has gone: its exit code is 1"):
        pool.decode(None, np.empty(0, np.uint8))
    pool.close()


@pytest.mark.parametrize(
    "column, value",
    [("jpg_offset", -1), ("jpg_offset", 2**62), ("jpg_size", 2**31 - 1), ("jpg_size", -5), ("txt_offset", None),
     ("shard", 7), ("sha256", "not hexadecimal"), ("sha256", "00")],
)  # fmt: skip
def test_metadata_that_points_outside_of_its_shard_is_refused(published, column, value):
    folder = published(samples=8, shards=2)
    file = folder / "metadata" / "00001.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[2][column] = value
    pq.write_table(pa.Table.from_pylist(rows), file)
    write_manifest(folder)
    with pytest.raises(TrainError, match="published: the metadata does not fit the shards"):
        open_index(str(folder))


@pytest.mark.parametrize("form", ["{}", "{}.tar", "shards/{}.tar"])
def test_metadata_may_name_its_shard_in_place_of_its_number(published, vocabulary, form):
    plain, named = published(samples=8, shards=2), published(samples=8, shards=2, name="named")
    for file in (named / "metadata").iterdir():
        table = pq.read_table(file)
        names = pa.array([form.format(file.stem)] * len(table))
        pq.write_table(table.set_column(table.column_names.index("shard"), "shard", names), file)
    write_manifest(named)
    [[one]], [[other]] = (steps(open_index(str(folder)), vocabulary, 1, batch_size=8)[0] for folder in (plain, named))
    assert torch.equal(one.images, other.images) and torch.equal(one.text.tokens, other.text.tokens)


def test_a_manifest_that_nests_without_end_or_climbs_out_is_refused(published):
    folder = published(samples=2, shards=1)
    (folder / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(TrainError, match="is not a manifest"):
        open_index(str(folder))
    (folder / "manifest.json").write_text('{"files": [{"path": "shards/../../x", "bytes": 1}]}')
    with pytest.raises(TrainError, match="lists an impossible file"):
        open_index(str(folder))


def test_an_index_beside_the_shards_that_is_not_whole_is_made_again(tars):
    folder = tars(samples=8, shards=1)
    index = open_index(str(folder))
    (kept,) = (folder / ".clip_train").glob("*.index")
    whole = kept.read_bytes()
    prefix, footer = whole[:20] + b"\xff" + whole[21:], whole[:-9] + b"9" * 9
    for spoiled in (b"", b"x" * 200, whole[:-1], whole + b"x", prefix, footer):
        kept.unlink()  # the earlier index still maps it
        kept.write_bytes(spoiled)
        assert same_index(open_index(str(folder)), index) and kept.read_bytes() == whole


def test_a_flipped_bit_of_a_place_never_gives_another_caption(tars, vocabulary):
    folder = tars(samples=8, shards=1)
    open_index(str(folder))
    (kept,) = (folder / ".clip_train").glob("*.index")
    whole = kept.read_bytes()
    for bit in range(64 * 8, (64 + 8 * 28) * 8, 5):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        kept.write_bytes(data)
        sample = (bit // 8 - 64) // 28
        with pytest.raises(TrainError, match=rf"index .*\.index is damaged \(sample {sample}\): remove it"):
            open_index(str(folder)).rows(np.arange(8))
    records = [whole[64 + 28 * row : 92 + 28 * row] for row in range(8)]
    kept.write_bytes(whole[:64] + b"".join(records[::-1]) + whole[64 + 28 * 8 :])  # each is whole, in another place
    with pytest.raises(TrainError, match="is damaged"):
        steps(open_index(str(folder)), vocabulary, 1)


def test_json_of_shards_is_not_needed(published, vocabulary):
    folder = published(samples=8, shards=1)
    ((batch,),), bad = steps(open_index(str(folder)), vocabulary, 1)
    assert batch.good is None and not bad.reasons
    assert json.loads((folder / "manifest.json").read_text())["files"]


def test_captions_and_labels_are_read_up_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setitem(reader_module._MOST, "text", 5)
    monkeypatch.setitem(reader_module._MOST, "label", 3)
    write_tar(tmp_path / "a.tar", [("k.jpg", b"x"), ("k.txt", b"a long caption"), ("k.cls", b"12345")])
    index = open_index(str(tmp_path))
    reader = reader_module.open_reader(index)
    members = [reader_module.read_member(reader, index, kind, 0) for kind in ("image", "text", "label")]
    assert members == [b"x", b"a lon", b"123"]
    assert list(read_captions(str(tmp_path), "text")) == ["a lon"]
    reader.close()


def test_open_files_are_bounded_and_closed(tmp_path):
    paths = []
    for number in range(6):
        paths.append(str(tmp_path / str(number)))
        (tmp_path / str(number)).write_bytes(b"content %d" % number)

    def opened() -> int:
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return sum(os.path.lexists(link) and os.readlink(link) in paths for link in links if os.path.islink(link))

    reader = reader_module.ShardReader(tuple(paths), keep_open=2)
    for _ in range(3):
        for number in range(6):
            assert reader.read(number, 8, 1) == b"%d" % number
            assert opened() <= 2
    assert opened() == 2
    reader.close()
    assert opened() == 0
