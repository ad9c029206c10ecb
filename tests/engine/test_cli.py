"""Flags: an unknown flag is refused with the nearest known one, and Beam's own flags are passed on."""

from __future__ import annotations

import pytest

from pipeline import inspect_shards, options
from pipeline.engine.cli import UsageError
from queries import build as queries


def build(*more: str) -> object:
    return options.parse(["--input", "a.warc.gz", "--output", "out", *more])[0].beam


def make_list(*more: str) -> object:
    return queries.parse(["--output", "out", *more])[0].beam


@pytest.mark.parametrize("parse", [build, make_list])
def test_beams_own_flags_go_through_also_those_like_ours(parse) -> None:
    given = ("--job_endpoint=embed", "--environment_type=LOOPBACK", "--num_workers=3", "--flink_master", "host:8081")
    assert parse("--runner=portable", *given) == given


@pytest.mark.parametrize(
    ("parse", "flag", "near"),
    [
        (build, "--quries", "--queries"),
        (build, "--flink_mastr=x", "--flink_master"),
        (make_list, "--pageview", "--pageviews"),
        (make_list, "--flink_mastr=x", "--flink_master"),
        (lambda flag: inspect_shards.parse(["info", "out", flag]), "--jsn", "--json"),
    ],
)
def test_a_misspelt_flag_is_refused_with_the_nearest(parse, flag: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"^unknown flag {flag.split('=')[0]}: did you mean {near}\\?$"):
        parse(flag)


def test_a_misspelt_flag_is_told_before_what_is_missing() -> None:
    with pytest.raises(UsageError, match="did you mean --output"):
        options.parse(["--input", "a.warc.gz", "--otput", "out"])
    with pytest.raises(UsageError, match="did you mean --runner"):
        build("--runer", "flink", "--parallelism=2")


@pytest.mark.parametrize("parse", [build, make_list])
def test_a_word_too_many_is_refused(parse) -> None:
    with pytest.raises(UsageError, match="unexpected argument 'word'|unrecognized arguments: word"):
        parse("--seed=1" if parse is build else "--size=1", "word")


@pytest.mark.parametrize("parse", [build, make_list])
def test_a_short_flag_among_beams_is_refused(parse) -> None:
    with pytest.raises(UsageError, match="^unknown flag -q"):
        parse("--num_workers", "3", "-q")


def test_a_negative_number_is_a_value() -> None:
    with pytest.raises(UsageError, match="^--seed -1: must be a whole number of at least 0"):
        build("--seed", "-1")


def test_the_help_is_named_where_a_value_is_missing() -> None:
    with pytest.raises(UsageError, match=r"--cap: expected one argument \(see python -m pipeline.build --help\)"):
        build("--cap")
