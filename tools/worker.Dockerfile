# A worker of Flink, Spark or Dataflow: Beam's own image, of the version that constraints.txt pins, and this package with
# the client of S3. Beam's image starts the worker (its entry point), so there is none here.
#     docker build -f tools/worker.Dockerfile -t REGISTRY/openwit-worker .
# Then --environment_type=DOCKER --environment_config=REGISTRY/openwit-worker, on Dataflow --sdk_container_image=...
# (docs/engines.md).
FROM apache/beam_python3.11_sdk:2.77.0
WORKDIR /opt/openwit
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY queries queries
COPY clip_train clip_train
RUN pip install --no-cache-dir -c constraints.txt ".[s3]"
# Outside the sources, so that the kernels are compiled for the installed package.
WORKDIR /
RUN python -m pipeline.engine.jit
