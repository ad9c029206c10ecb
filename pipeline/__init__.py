"""From web archives to balanced image-text shards.

The way of the data, one file a stage: gather -> match -> dedup -> balance -> fetch -> dedup_images -> publish.
Read `build.py` first: it alone knows the order. Below the stages lie the sources, the Beam helpers (`steps`), and at
the bottom the formats, hashes and kernels, which know nothing of Beam.
"""

__version__ = "0.1.0"
