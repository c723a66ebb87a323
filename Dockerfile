# The onedl stack on CPUs:
#   docker build -t mmvitattn . && docker run --rm -it -v "$PWD:/workspace" mmvitattn bash
# On CUDA GPUs: build with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 and run with
# --gpus all. Not built so far: no Docker daemon was at hand. `make smoke` ran the same installation.
FROM python:3.11-slim-bookworm

# What opencv-python is linked with.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH="torch==2.14.1 torchvision==0.29.1"
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m pip install --no-cache-dir $TORCH --index-url $TORCH_INDEX

WORKDIR /opt/mmvitattn
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE model-index.yml ./
COPY mmvitattn mmvitattn
COPY configs configs
COPY tools tools
COPY tests/smoke.py tests/smoke.py
RUN python -m pip install --no-cache-dir -e '.[onedl]' && python -I tests/smoke.py

WORKDIR /workspace
CMD ["mmvitattn"]
