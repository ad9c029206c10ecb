"""The commands of an installed wheel. Each handles signals before its module is imported, since that takes a second."""

from __future__ import annotations

from pipeline.engine import interrupts


def build() -> int:
    """`openwit-build`: `python -m pipeline.build`."""
    interrupts.install("pipeline.build")
    from pipeline.build import main

    return interrupts.ending(main())


def doctor() -> int:
    """`openwit-doctor`: `python -m pipeline.doctor`."""
    interrupts.install("pipeline.doctor")
    from pipeline.doctor import main

    return interrupts.ending(main())


def explore() -> int:
    """`openwit-explore`: `python -m pipeline.explore`."""
    interrupts.install("pipeline.explore")
    from pipeline.explore import main

    return interrupts.ending(main())


def inspect() -> int:
    """`openwit-inspect`: `python -m pipeline.inspect_shards`."""
    interrupts.install("pipeline.inspect_shards")
    from pipeline.inspect_shards import main

    return interrupts.ending(main())
