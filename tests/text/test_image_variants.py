"""Variants of an image: which URLs share a key, and which of them is the largest."""

from __future__ import annotations

import importlib
import time
from types import ModuleType, SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import hashing, jit
from pipeline.text import clean_rules, image_variants
from pipeline.text.image_variants import FULL, variant_of

# URLs of one image, from the largest to the smallest.
VARIANTS = [
    ("https://a.example/x.jpg", "http://a.example/x.jpg"),
    ("http://a.example:8080/x.jpg", "http://a.example:8080/x.jpg?utm_medium=rss&utm_source=feed"),
    ("https://a.example/x.jpg?b=1&c=2", "https://a.example/x.jpg?b=1&fbclid=AA&c=2"),
    (
        "https://a.example/wp-content/uploads/x.jpg",
        "https://a.example/wp-content/uploads/x-scaled.jpg",
        "https://a.example/wp-content/uploads/x-1024x683.jpg",
        "https://a.example/wp-content/uploads/x-150x150.jpg",
    ),
    (
        "https://i0.wp.com/a.example/x.jpg?ssl=1",
        "https://i2.wp.com/a.example/x.jpg?resize=640%2C480",
        "https://i1.wp.com/a.example/x.jpg?w=300",
    ),
    (
        "https://upload.wikimedia.org/wikipedia/commons/a/ab/Dog.jpg",
        "https://upload.wikimedia.org/wikipedia/commons/thumb/a/ab/Dog.jpg/640px-Dog.jpg",
        "https://upload.wikimedia.org/wikipedia/commons/thumb/a/ab/Dog.jpg/lossy-page1-220px-Dog.jpg",
    ),
    (
        "https://live.staticflickr.com/65535/12_ab_b.jpg",
        "https://live.staticflickr.com/65535/12_ab.jpg",
        "https://live.staticflickr.com/65535/12_ab_m.jpg",
        "https://live.staticflickr.com/65535/12_ab_s.jpg",
    ),
    ("https://1.bp.blogspot.com/-a/b/c/s1600/x.jpg", "https://1.bp.blogspot.com/-a/b/c/w320-h240/x.jpg"),
    ("https://i.pinimg.com/originals/aa/bb/c.jpg", "https://i.pinimg.com/736x/aa/bb/c.jpg"),
    ("https://pbs.twimg.com/media/A.jpg:large", "https://pbs.twimg.com/media/A.jpg:small"),
    (
        "https://res.cloudinary.com/demo/image/upload/v1/x.jpg",
        "https://res.cloudinary.com/demo/image/upload/c_fill,w_300,h_200/v1/x.jpg",
    ),
    (
        "https://cdn.shopify.com/s/files/1/x.jpg?v=1",
        "https://cdn.shopify.com/s/files/1/x_600x600.jpg?v=1",
        "https://cdn.shopify.com/s/files/1/x_small.jpg?v=1",
    ),
    (
        "https://m.media-amazon.com/images/I/71a+b.jpg",
        "https://m.media-amazon.com/images/I/71a+b._AC_SX679_.jpg",
        "https://m.media-amazon.com/images/I/71a+b._UY218_.jpg",
    ),
    (
        "https://static.wixstatic.com/media/x.jpg",
        "https://static.wixstatic.com/media/x.jpg/v1/fill/w_300,h_200,al_c/x.jpg",
    ),
    ("https://images.unsplash.com/photo-1?q=80", "https://images.unsplash.com/photo-1?auto=format&w=400&h=800"),
]
OTHERS = [
    ("https://a.example/x.jpg", "https://b.example/x.jpg"),
    ("https://a.example/x.jpg?id=1", "https://a.example/x.jpg?id=2"),
    ("https://a.example/x.jpg?w=1", "https://a.example/x.jpg?w=2"),  # no known service
    ("https://a.example/x-300x200", "https://a.example/x"),
    ("https://a.example/x-1x2.jpg", "https://a.example/x.jpg"),
    ("https://a.example/x.jpg", "https://a.example/X.jpg"),
    ("https://a.example/?utm=1", "https://a.example/"),
    ("https://i.pinimg.com/736x/aa/bb/c.jpg", "https://i.pinimg.com/736x/aa/bb/d.jpg"),
]


@pytest.mark.parametrize("urls", VARIANTS)
def test_variants_share_a_key_and_the_largest_is_first(urls: tuple[str, ...]) -> None:
    assert len({variant_of(url)[0] for url in urls}) == 1
    hashes, ranks = image_variants.variants(pa.array(urls))
    assert len(set(hashes.tolist())) == 1
    assert ranks.tolist() == sorted(ranks.tolist(), reverse=True) and len({*ranks.tolist()}) >= min(2, len(urls) - 1)


@pytest.mark.parametrize("urls", OTHERS)
def test_other_images_have_other_keys(urls: tuple[str, str]) -> None:
    first, second = urls
    assert variant_of(first)[0] != variant_of(second)[0]
    hashes, _ = image_variants.variants(pa.array(urls))
    assert len({*hashes.tolist()}) == 2


def test_a_url_without_a_size_names_the_image_itself() -> None:
    assert variant_of("https://a.example/x.jpg")[1] == FULL
    assert variant_of("https://i0.wp.com/a.example/x.jpg?w=99999")[1] == FULL - 1


PIECES = [*"ab12/.-_&=?x%", ".jpg", "-300x200.jpg", "-scaled", "utm_a=1", "fbclid", "w=300", "_b.jpg", "/thumb/a/ab/"]
HOSTS = [
    *("a.example", "i1.wp.com", "i.wp.com", "x.imgix.net", "upload.wikimedia.org", "live.staticflickr.com"),
    *(*image_variants._hosts(), "xi.pinimg.com", "i.pinimg.com:8080"),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(HOSTS), st.lists(st.sampled_from(PIECES), max_size=9)), max_size=20))
def test_a_column_gives_what_one_url_after_the_other_gives(found: list[tuple[str, list[str]]]) -> None:
    urls = [f"http{'s' * (len(pieces) % 2)}://{host}/{''.join(pieces)}" for host, pieces in found]
    urls = [clean_rules.canonical_url(url.encode())[0] for url in urls]
    expected = [variant_of(url) for url in urls]
    for kernel in _kernels():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image_variants, "jit", SimpleNamespace(kernel=lambda *_, kernel=kernel: kernel))
            _check_column(urls, expected)


def _kernels() -> list[ModuleType | None]:
    """None, and the compiled kernel where there is one."""
    return [None, importlib.import_module("pipeline.text.image_variants_kernel")] if jit.available() else [None]


def _check_column(urls: list[str], expected: list[tuple[str, int]]) -> None:
    hashes, ranks = image_variants.variants(pa.array(["", *urls], pa.string()).slice(1))
    assert hashes.tolist() == hashing.hash_strings(pa.array([key for key, _ in expected], pa.string()))[:, 0].tolist()
    sizes = [2 * size + url.startswith("https:") for url, (_, size) in zip(urls, expected, strict=True)]
    assert ranks.tolist() == sizes
    for key, _ in expected:
        again = variant_of(key)[0]
        assert variant_of(again)[0] == again or "-" in key  # a name may hold several sizes


@pytest.mark.parametrize("piece", ["-1x", "-", "a", "/", "&", "w_1,", "1", "_", "-10x10", "=", "px-"])
def test_hostile_urls_take_bounded_time(piece: str) -> None:
    hosts = ["a.example", *("x" * name.startswith(".") + name for name in image_variants._rules())]
    for start in (f"https://{host}/images/I/" for host in hosts):
        url = (start + piece * 2048)[:2048]
        begin = time.process_time()
        variant_of(url)
        image_variants.variants(pa.array([url]))
        assert time.process_time() - begin < 0.5
