# The container of a challenge platform, and of a clinic: `make image`, or `make image DEVICE=gpu`.
# It needs no network, an ordinary user, and nothing writable but /tmp and /output.
FROM python:3.12-slim AS build
ARG DEVICE=cpu
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# torch first, so that its layer stays when the package changes. The package index has it with CUDA, torch's own without.
# nnU-Net refuses 2.9, and would have pip put another one, with CUDA, over it.
ARG TORCH="torch>=2.4,!=2.9.*"
RUN if [ "$DEVICE" = gpu ]; then pip install "$TORCH"; \
    else pip install "$TORCH" --index-url https://download.pytorch.org/whl/cpu; fi
COPY pyproject.toml hatch_build.py README.md LICENSE /source/
COPY plans /source/plans
COPY kits_cascade /source/kits_cascade
# OpenVINO (the extra fast) predicts several times as fast on processors.
RUN if [ "$DEVICE" = gpu ]; then pip install /source; else pip install "/source[fast]"; fi

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 algorithm && mkdir -p /input /output /opt/algorithm && chown algorithm /output
COPY --from=build /opt/venv /opt/venv
# Networks of your own: put cascade.zip (kits-cascade models export) beside this file. Without it, the package's.
COPY LICENSE cascade.zi[p] /opt/algorithm/
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TMPDIR=/tmp \
    HOME=/tmp XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib \
    nnUNet_raw=/tmp/raw nnUNet_preprocessed=/tmp/preprocessed nnUNet_results=/tmp/results
USER algorithm
WORKDIR /tmp
ENTRYPOINT ["kits-cascade"]
CMD ["grand-challenge"]
