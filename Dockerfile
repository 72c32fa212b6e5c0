# distillstack in a container: `docker build --target cpu -t distillstack .`, or `--target cuda` for GPUs
# (`docker run --gpus all`). Work is done in /here, a directory that is yours to mount.
#
#   docker run --rm -v "$PWD:/here" distillstack -m ensemble.stack --oof model1.csv model2.csv --labels labels.csv --out runs/stack
#
# Written for the builder of Docker 23 and later. It was not built where it was written, for want of a daemon.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/here/.huggingface
WORKDIR /src

# The wheel is built apart, so that sources and build tools stay out of the image.
FROM base AS wheel
RUN pip install "hatchling>=1.27" build
COPY pyproject.toml README.md LICENSE distillstack.py ./
COPY data data
COPY ensemble ensemble
COPY distill distill
RUN python -m build --wheel --no-isolation --outdir /wheels

# PyTorch without CUDA: an index of CPU builds is named with --build-arg, where the usual one has CUDA builds alone.
FROM base AS cpu
ARG TORCH_INDEX=
COPY constraints.txt /src/
COPY --from=wheel /wheels /wheels
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep ^torch== /src/constraints.txt)" \
    && pip install -c /src/constraints.txt "$(ls /wheels/*.whl)[train]" && rm -rf /wheels
RUN useradd --create-home user
USER user
WORKDIR /here
ENTRYPOINT ["python"]
CMD ["-m", "distill.doctor", "--help"]

# PyTorch's Linux wheels bring CUDA's libraries with them; the driver is the host's. A compiler serves Triton's kernels.
FROM base AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /src/
COPY --from=wheel /wheels /wheels
RUN pip install -c /src/constraints.txt "$(ls /wheels/*.whl)[all]" && rm -rf /wheels
RUN useradd --create-home user
USER user
WORKDIR /here
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["python"]
CMD ["-m", "distill.doctor", "--help"]
