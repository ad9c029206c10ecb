"""jit: kernels are found, one variable switches them off, and they work with a read-only cache folder."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.engine import jit
from pipeline.stages.run import KERNELS
from tests.places import ROOT

needs_kernels = pytest.mark.skipif(not jit.available(), reason="numba is not installed or OPENWIT_NO_KERNELS is set")


def run(code: str, **environment: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_kernels
def test_every_kernel_that_is_called_on_its_own_has_a_plain_twin():
    warmed = [name for name in jit.kernel_modules() if hasattr(importlib.import_module(name), "warm")]
    assert "pipeline.text.matcher_kernel" in warmed and "pipeline.sources.wat_kernel" in warmed
    for name in warmed:
        assert importlib.util.find_spec(name.removesuffix("_kernel")) is not None, name


@needs_kernels
def test_workers_can_load_the_kernels_of_select():
    assert all(hasattr(importlib.import_module(name), "warm") for name in KERNELS) and len(KERNELS) > 5


def test_the_names_of_kernels_in_the_sources_are_those_of_files():
    paths = [path for package in jit.PACKAGES for path in (ROOT / package).rglob("*.py")]
    named = {name for path in paths for name in re.findall(r"jit\.kernel\(\s*[\"']([^\"']*)", path.read_text())}
    assert len(named) > 9 and named <= set(jit.kernel_modules())


def test_kernels_are_off_by_a_variable():
    kernel = "jit.kernel('pipeline.engine.hashing_kernel', 10**9)"
    code = f"from pipeline.engine import jit; print(jit.available(), {kernel}, jit.warm())"
    assert run(code, OPENWIT_NO_KERNELS="1") == "False None {}"


def test_plain_functions_never_load_numba():
    modules = "pipeline.engine.hashing, pipeline.stages.selection, pipeline.text.clean, pipeline.text.language"
    code = f"import sys, {modules}; print('numba' in sys.modules)"
    assert run(code) == "False"


def test_the_state_of_a_kernel_holds_every_file_that_is_compiled_into_it(monkeypatch):
    below = jit._with_imports("pipeline.text.matcher_kernel")
    assert {"pipeline.text.normalize_kernel", "pipeline.text.characters", "pipeline.text.folding"} <= below
    assert "pipeline.engine.jit" not in below
    before, real = jit._state("pipeline.text.matcher_kernel"), jit._file_of
    changed = {"pipeline.text.folding": real("pipeline.text.clean")}
    monkeypatch.setattr(jit, "_file_of", lambda name: changed.get(name) or real(name))
    assert jit._state("pipeline.text.matcher_kernel") != before


def test_the_command_of_the_set_up_knows_the_same_states():
    """Else it removes all compiled kernels as old ones, and compiles them again."""
    as_command = runpy.run_path(jit.__file__)
    for name in jit.kernel_modules():
        assert as_command["_state"](name) == jit._state(name)


def test_old_states_of_the_sources_leave_the_cache_and_the_present_ones_stay(tmp_path):
    present = tmp_path / f"kernels-{jit._state('pipeline.text.clean_kernel')}"
    inner = tmp_path / f"kernels-{jit._state('pipeline.sources.simd_kernel')}"  # of a file that other kernels include
    old = tmp_path / "kernels-0123456789ab"
    for folder in (present, inner, old):
        folder.mkdir()
        (folder / "f.nbi").touch()
    (tmp_path / "jit.cpython-311.pyc").touch()
    assert jit.remove_stale_kernels(tmp_path) == 1
    assert present.exists() and inner.exists() and not old.exists()
    assert (tmp_path / "jit.cpython-311.pyc").exists()


@needs_kernels
def test_few_rows_stay_on_the_plain_way():
    call = "jit.kernel('pipeline.engine.hashing_kernel', 10)"
    code = f"import sys; from pipeline.engine import jit; print({call}, 'numba' in sys.modules)"
    assert run(code) == "None False"


@needs_kernels
def test_a_loaded_kernel_is_taken_for_few_rows():
    module = jit.kernel("pipeline.engine.hashing_kernel", jit.FEW_ROWS)
    assert module is not None and jit.kernel("pipeline.engine.hashing_kernel", 1) is module


@needs_kernels
def test_without_a_place_for_the_cache(monkeypatch):
    """numba raises at decoration if it can write no cache folder. `njit` then compiles without a cache."""
    import numba

    real = numba.njit

    def without_locator(*arguments, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*arguments, **options)

    monkeypatch.setattr(numba, "njit", without_locator)

    @jit.njit
    def double(x):
        return 2 * x

    assert double(21) == 42


@pytest.fixture
def no_root_yet() -> Iterator[None]:
    jit._cache_root.cache_clear()
    yield
    jit._cache_root.cache_clear()


@pytest.mark.usefixtures("no_root_yet")
def test_a_read_only_install_keeps_its_kernels_in_the_users_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(jit, "OWN_CACHE", tmp_path / "file" / "pipeline" / "__pycache__")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert jit._cache_root() == tmp_path / "cache" / "openwit"
    assert (tmp_path / "cache" / "openwit").stat().st_mode & 0o077 == 0  # pickles are read from it
    jit._cache_root.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert jit._cache_root() is None
    jit._cache_root.cache_clear()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "named"))
    assert jit._cache_root() == tmp_path / "named"
