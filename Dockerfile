# kdlab in a container. Checked with hadolint; never built by its authors, who had no Docker at hand.
#
# CPU:  docker build -t kdlab .
#       docker run --init --rm --shm-size=2g -v "$PWD:/data" kdlab run digits/quickstart
# GPU:  docker build --build-arg BASE=nvidia/cuda:VERSION-base-ubuntu24.04 -t kdlab:cuda .
#       docker run --init --rm --shm-size=2g --gpus all -v "$PWD:/data" kdlab:cuda doctor
#
# BASE is any Debian or Ubuntu whose python3 is 3.11 or newer. torch's wheels for Linux bring CUDA; an index of builds
# for the CPU makes the first image much smaller: --build-arg PIP_EXTRA_INDEX_URL=...
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# python3: Debian's is new enough. libgl1, libglib2.0-0: OpenCV links them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL=
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY kdlab kdlab
COPY recipes recipes
COPY results/reference results/reference
RUN python3 -m venv /opt/kdlab \
    && /opt/kdlab/bin/pip install --no-cache-dir -c constraints.txt .
ENV PATH=/opt/kdlab/bin:$PATH

# runs/, results/ and the cache lie in /data, so a folder mounted there keeps them. Give it to the user of the image, or
# run as your own: docker run --user "$(id -u):$(id -g)" ...
RUN useradd --create-home --uid 10001 kdlab && mkdir /data && chown kdlab: /data
USER 10001
WORKDIR /data
ENV KDLAB_CACHE=/data/.kdlab-cache TORCH_HOME=/data/.kdlab-cache/torch

ENTRYPOINT ["kdlab"]
CMD ["--help"]
