"""The dangers of a kernel: memory that it must not touch, full tables, too large texts. And real data."""

from __future__ import annotations

import ctypes
import mmap
import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.engine import jit
from pipeline.text.matcher import MODES, Matcher, naive_match
from queries.load import load_queries
from tests.places import DATA

pytestmark = pytest.mark.skipif(not jit.available(), reason="numba is not installed, or switched off")

if jit.available():
    from pipeline.text import matcher_kernel, normalize_kernel

SOME_BYTES = np.frombuffer(b"abc,.;#\xc3\xa9\xe4\xb8\xad\xff\xf0", np.uint8)


@pytest.fixture(autouse=True)
def take_the_kernel(monkeypatch):
    modules = {module.__name__: module for module in (matcher_kernel, normalize_kernel)}
    monkeypatch.setattr(jit, "kernel", lambda name, rows: modules[name])


class Guarded:
    """Memory with a protected page after it: a read or write there ends the process."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        whole = -(-size // page) * page
        self._map = mmap.mmap(-1, whole + page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(address + whole), ctypes.c_size_t(page), 0) == 0
        self.address = address + whole - size  # so that it ends where the protected page begins
        self.size = size

    def filled(self, content: bytes) -> Guarded:
        ctypes.memmove(self.address, content, len(content))
        return self

    def array(self, dtype: np.dtype) -> np.ndarray:
        view = np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address)).view(dtype)
        view.flags.writeable = False
        return view


def guarded_texts(texts: list[bytes]) -> tuple[pa.Array, list[Guarded]]:
    """An Arrow array of strings. Each of its buffers ends at a protected page."""
    data = b"".join(texts)
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32).tobytes()
    memory = [Guarded(len(content)).filled(content) for content in (offsets, data or b"\0")]
    buffers = [pa.foreign_buffer(block.address, block.size, block) for block in memory]
    return pa.Array.from_buffers(pa.string(), len(texts), [None, *buffers]), memory


def random_texts(rng: np.random.Generator) -> list[bytes]:
    """Texts of tokens with lengths near the edges of a machine word. Some have bytes that are not UTF-8."""
    texts = []
    for _ in range(rng.integers(1, 12)):
        lengths = rng.choice([0, 1, 7, 8, 9, 15, 16, 17, 22, 23, 24, 25, 40, 200], rng.integers(0, 8))
        tokens = [bytes(rng.choice(SOME_BYTES, length)) for length in lengths]
        texts.append(b" ".join(tokens))
    return texts


@pytest.mark.parametrize("mode", MODES)
def test_never_reads_past_a_buffer(mode):
    rng = np.random.default_rng(5)
    queries = ["a", "b a", "abc", "c" * 24, "ab" * 8, "\u00e9", "\u4e2d", "a" * 23, "x" * 100]
    built = Matcher.build(pa.array(queries), mode=mode)
    memory = [Guarded(table.nbytes).filled(table.tobytes()) for table in built._tables]
    built._tables = matcher_kernel.Tables(
        *(block.array(table.dtype) for block, table in zip(memory, built._tables, strict=True))
    )
    for _ in range(100):
        raw = random_texts(rng)
        texts, held = guarded_texts(raw)
        found = built.match(texts)
        assert len(found) == len(raw)
        assert len(held) == 2
        try:
            decoded = [text.decode() for text in raw]
        except UnicodeDecodeError:
            continue
        assert found.to_pylist() == [naive_match(text, queries, mode) for text in decoded]


@pytest.mark.parametrize("mode", MODES)
def test_prepared_texts_end_in_padding(mode):
    texts = pa.array(["a.b c" * 3, "", "#,#"])
    prepare = matcher_kernel.space_out if mode == "metaclip" else (lambda a: normalize_kernel.segment(a, False, True))
    data, offsets, most = prepare(texts)
    assert len(data) == offsets[-1] + normalize_kernel.PADDING
    rows = [bytes(data[offsets[row] : offsets[row + 1]]) for row in range(3)]
    assert all(not row or row.endswith(b" ") for row in rows)
    assert most == max(row.count(b" ") for row in rows)


def test_writes_stay_within_the_room_given():
    tables = Matcher.build(pa.array(["a", "b", "a b"]), mode="wide")._tables
    texts = pa.array(["a b"] * 10)
    data, offsets, most = normalize_kernel.segment(texts, False, True)
    for room in range(0, 40):
        values, sizes = np.full(room + 8, -7, np.int32), np.zeros(10, np.int64)
        prepared = matcher_kernel._Texts(normalize_kernel.frozen(data), normalize_kernel.frozen(offsets), most)
        shift = matcher_kernel._shift(tables.first_edges)
        row, written = matcher_kernel._match(prepared, tables, shift, 0, values[:room], sizes)
        assert (row, written) == (min(room // 3, 10), 3 * min(room // 3, 10))
        assert (values[room:] == -7).all()
        assert values[:written].reshape(-1, 3).tolist() == [[0, 1, 2]] * row


@pytest.mark.parametrize("kinds", [1, 3, 1000])
def test_ids_are_sorted_and_kept_once(kinds):
    random = np.random.default_rng(0)
    box, ranked = np.empty(matcher_kernel._SOME, np.int32), np.full(matcher_kernel._SOME, np.int32(-1))
    for count in [*range(40), 15, 16, 17, 31, 32, 33]:
        values = random.integers(0, kinds, count + 6).astype(np.int32)
        before = values.copy()
        end = matcher_kernel._sort_once(values, 3, 3 + count, box, ranked)
        assert values[3:end].tolist() == sorted(set(before[3 : 3 + count].tolist()))
        assert (values[:3] == before[:3]).all() and (values[3 + count :] == before[3 + count :]).all()
        assert (ranked == -1).all()


def test_an_edge_without_its_bit_is_not_taken():
    """Only the bits of `first_edges` decide if neighbours are checked together."""
    matcher = Matcher.build(pa.array(["a", "b", "a b", "a b c"]), mode="wide")
    texts = pa.array(["a b c", "b a", "a c"])
    assert matcher.match(texts).to_pylist() == [[0, 1, 2, 3], [0, 1], [0]]
    matcher._tables = matcher._tables._replace(first_edges=normalize_kernel.frozen(np.zeros(1, np.uint64)))
    assert matcher.match(texts).to_pylist() == [[0, 1], [0, 1], [0]]


@pytest.mark.parametrize("mode", MODES)
def test_texts_that_are_too_much(mode):
    # One text of 200,000 tokens, each of which begins many queries; more matches than were made room for.
    queries = [" ".join(["a"] * length) for length in range(1, 30)] + [f"{number} a" for number in range(2_000)]
    texts = ["a " * 200_000, " ".join(map(str, range(2_000))), "x" * 3_000_000, "1 a, " * 1_000, ""]
    found = Matcher.build(pa.array(queries), mode=mode).match(pa.array(texts)).to_pylist()
    assert found[0] == list(range(29))
    assert found[1] == found[2] == found[4] == []
    assert found[3] == ([0, 30] if mode == "metaclip" else [0, 29 + 1])


def test_all_queries_of_one_form():
    queries = ["a."] * 30_000 + ["b a"]
    built = Matcher.build(pa.array(queries))
    found = built.match(pa.array(["x", "b a", "a a a"]))
    assert pc.list_value_length(found).to_pylist() == [0, 30_001, 30_000]
    assert found[1].as_py() == list(range(30_001))


def test_a_list_whose_tokens_were_counted_too_low(monkeypatch):
    queries = [f"token{number} next{number}" for number in range(3_000)]
    first, count = [8], matcher_kernel._slots  # the first table is the table of the tokens
    monkeypatch.setattr(matcher_kernel, "_slots", lambda entries: first.pop() if first else count(entries))
    built = Matcher.build(pa.array(queries))
    assert not first
    assert built.match(pa.array(["token7 next7", "token7"])).to_pylist() == [[7], []]


def test_tokens_that_differ_in_their_last_byte_only():
    # Equal hashes cannot be constructed here. Equal lengths and beginnings can, at every length.
    queries = [f"{'x' * length}{end}" for length in range(60) for end in "ab"]
    built = Matcher.build(pa.array(queries))
    texts = [f"{query} {query}c" for query in queries]
    assert built.match(pa.array(texts)).to_pylist() == [[number] for number in range(len(queries))]


def test_a_long_token_is_compared_by_its_bytes():
    token = "x" * 30
    built = Matcher.build(pa.array([token]))
    other = built._tables.long_bytes.copy()
    other[-1] = ord("y")  # as if the hashes of two tokens were equal
    assert built.match(pa.array([token])).to_pylist() == [[0]]
    built._tables = built._tables._replace(long_bytes=normalize_kernel.frozen(other))
    assert built.match(pa.array([token])).to_pylist() == [[]]


def test_one_matcher_in_several_threads():
    built = Matcher.build(pa.array([f"w{number}" for number in range(5_000)] + ["w1 w2"]))
    rng = np.random.default_rng(2)
    texts = pa.array([" ".join(f"w{number}" for number in rng.integers(0, 9_000, 20)) for _ in range(3_000)])
    expected, results = built.match(texts), {}

    def work(number: int) -> None:
        results[number] = built.match(texts)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result.equals(expected) for result in results.values())
    assert len(results) == 4


def test_each_kernel_is_compiled_once(tmp_path):
    queries = pa.array(["dog", "hot dog", "a" * 30])
    texts = pa.array(["hot dog, " + "a" * 30, "\u00e9"])
    for mode in MODES:
        built = Matcher.build(queries, mode=mode, case="fold")
        built.save(tmp_path / mode)
        for matcher in (built, Matcher.load(tmp_path / mode)):
            for array in (texts, texts.slice(1), texts.cast(pa.large_string())):
                matcher.match(array)
    kernels = [matcher_kernel._match, matcher_kernel._build, matcher_kernel._space_out]
    for kernel in [*kernels, normalize_kernel._segment, normalize_kernel._find_unsettled]:
        assert len(kernel.signatures) == 1, kernel


@pytest.mark.parametrize("mode", MODES)
def test_real_texts_and_queries(mode):
    texts_at, queries_at = DATA / "captions" / "gcc_validation.parquet", DATA / "queries" / "queries_assembled.tsv.gz"
    if not (texts_at.exists() and queries_at.exists()):
        pytest.skip(f"no real data in {DATA}: set OPENWIT_DATA to the data folder")
    queries = load_queries(str(queries_at)).queries
    texts = pq.read_table(texts_at, columns=["text"])["text"]
    built = Matcher.build(queries, mode=mode)
    assert built.nbytes <= 64 * 2**20
    found = built.match(texts)
    sizes, ids = zip(*(built._match_plain(chunk) for chunk in texts.chunks), strict=True)
    assert pc.list_value_length(found).to_pylist() == np.concatenate(sizes).tolist()
    assert found.flatten().to_pylist() == np.concatenate(ids).tolist()
    entries = queries.to_pylist()
    for number in (0, 5_000, 12_000) if mode == "metaclip" else ():  # the oracle takes 30 ms for each text
        assert found[number].as_py() == naive_match(texts[number].as_py(), entries, mode)
