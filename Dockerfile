# dnascale with CUDA, for one GPU or a cluster.
#
#   docker build -t dnascale .
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" dnascale doctor
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" dnascale launch book data.path=data run.dir=runs/book
#
# PyTorch's wheels bring CUDA's libraries; the base has the compiler, for DeepSpeed's operators. The driver is the host's.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv g++ ninja-build libaio-dev \
 && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/dnascale/bin:$PATH \
    PYTHONUNBUFFERED=1
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY dnascale /src/dnascale
RUN python3 -m venv /opt/dnascale \
 && pip install --no-cache-dir --constraint /src/constraints.txt '/src[deepspeed,wandb,cloud]'

# Caches of compiled kernels belong to whoever runs, on a disk of the node.
ENV TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton
WORKDIR /work
ENTRYPOINT ["dnascale"]
CMD ["--help"]
