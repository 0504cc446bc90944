#!/bin/sh
# Starts the S3 store with the keys of the credentials file: versitygw reads them from its environment only, and this
# way they stand neither in docker-compose.yml nor in `docker inspect`.
set -eu
key() { sed -n "s/^$1 *= *//p" /run/secrets/s3_credentials; }
ROOT_ACCESS_KEY=$(key aws_access_key_id)
ROOT_SECRET_KEY=$(key aws_secret_access_key)
export ROOT_ACCESS_KEY ROOT_SECRET_KEY
exec versitygw --port :7070 --region us-east-1 --health /healthz posix /data
