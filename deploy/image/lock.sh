#!/bin/sh
# Rewrites the lock files of the images from their .in files; run it after `make lock`.
set -eu
cd "$(dirname "$0")/../.."
compile() {
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-header -c requirements.lock "$@"
}
compile deploy/image/postgres.in -o deploy/image/postgres.lock
compile deploy/image/mlflow.in -c deploy/image/postgres.lock -o deploy/image/mlflow.lock
