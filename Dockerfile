# Three images from one file:
#   docker build --target driftd .         the daemon (default target)
#   docker build --target mlflow .         an MLflow server that speaks PostgreSQL and S3
#   docker build --target object-store .   the compose stack's S3 store, without root
# Versions are full tags. For production add the digest your registry shows: `python:3.11.18-slim-bookworm@sha256:..`.
ARG PYTHON_TAG=3.11.18-slim-bookworm
ARG VERSITYGW_TAG=v1.8.0

# ---- installs from hashes; nothing of these stages but the finished folders reaches an image
FROM python:${PYTHON_TAG} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_LINK_MODE=copy
WORKDIR /build
COPY requirements-install.lock ./
RUN python -m venv /tools && /tools/bin/pip install --quiet --no-deps --require-hashes -r requirements-install.lock

FROM tools AS builder
COPY requirements.lock ./
COPY deploy/image/postgres.lock deploy/image/
# --no-build: every dependency is a wheel, so no compiler is needed here and none can sneak in.
RUN python -m venv --without-pip /opt/driftd \
    && /tools/bin/uv pip install --quiet --python /opt/driftd/bin/python --no-build --no-deps --require-hashes \
       --compile-bytecode -r requirements.lock -r deploy/image/postgres.lock
COPY pyproject.toml README.md LICENSE ./
COPY monitor monitor
COPY retrain retrain
COPY serving serving
RUN VIRTUAL_ENV=/tools /tools/bin/uv build --quiet --wheel --python /tools/bin/python --no-build-isolation --out-dir /wheels \
    && /tools/bin/uv pip install --quiet --python /opt/driftd/bin/python --no-deps --compile-bytecode /wheels/*.whl \
    && /opt/driftd/bin/driftd --version

FROM tools AS mlflow-builder
COPY deploy/image/mlflow.lock deploy/image/
RUN python -m venv --without-pip /opt/mlflow \
    && /tools/bin/uv pip install --quiet --python /opt/mlflow/bin/python --no-build --no-deps --require-hashes \
       --compile-bytecode -r deploy/image/mlflow.lock

# ---- what both Python images stand on: no pip, an init that reaps what ended jobs leave behind
FROM python:${PYTHON_TAG} AS runtime
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && python -m pip uninstall -y -q pip
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true
STOPSIGNAL SIGTERM

FROM runtime AS mlflow
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="driftd-mlflow" \
      org.opencontainers.image.description="MLflow server with the PostgreSQL and S3 clients" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10003 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mlflow
COPY --from=mlflow-builder /opt/mlflow /opt/mlflow
ENV PATH=/opt/mlflow/bin:$PATH HOME=/tmp
USER 10003:10003
WORKDIR /tmp
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --retries=5 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
ENTRYPOINT ["tini", "--", "mlflow"]
CMD ["server", "--host", "0.0.0.0", "--port", "5000"]

FROM versity/versitygw:${VERSITYGW_TAG} AS object-store
# A bucket is a folder. A new named volume takes owner and content from here, so no step needs root.
USER root
RUN mkdir -p /data/mlflow && chown -R 10002:10002 /data
USER 10002:10002

FROM runtime AS driftd
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="driftd" \
      org.opencontainers.image.description="Watches deployed machine-learning models and retrains them when they get worse" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --home-dir /var/lib/driftd --shell /usr/sbin/nologin driftd \
    && install -d -o driftd -g driftd -m 0750 /var/lib/driftd /var/lib/driftd-lake
COPY --from=builder /opt/driftd /opt/driftd
# The state folder is `.driftd` below the working folder unless the configuration says otherwise.
ENV PATH=/opt/driftd/bin:$PATH HOME=/var/lib/driftd DRIFTD_CONFIG=/etc/driftd/config.toml
USER 10001:10001
WORKDIR /var/lib/driftd
VOLUME ["/var/lib/driftd"]
EXPOSE 9464
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
ENTRYPOINT ["tini", "--", "driftd"]
CMD ["run"]
