#!/bin/sh
# Makes the secret files of docker-compose.yml that are not there yet; existing ones stay as they are.
#
#   sh deploy/compose/make-secrets.sh [FOLDER]      default: deploy/compose/secrets
#
# The folder is closed to other users (0700). The files in it are readable (0444), because Compose mounts them with
# their owner and mode, and each container runs under its own user id; a container sees only those it is given.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder/alertmanager"  # yours to fill: the token files that dashboards/alertmanager/alertmanager.yml names
chmod 0700 "$folder"
chmod 0755 "$folder/alertmanager"

random() { LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c "$1"; }
made() { # name: content on stdin
    if [ -e "$folder/$1" ]; then
        cat >/dev/null
        echo "kept $folder/$1"
    else
        cat >"$folder/$1"
        chmod 0444 "$folder/$1"
        echo "made $folder/$1"
    fi
}
# A libpq service file: host, user and password stay out of URLs, environments and process lists.
service() { printf '[%s]\nhost=postgres\nport=5432\ndbname=%s\nuser=%s\npassword=%s\n' "$1" "$1" "$1" "$(random 40)"; }

random 40 | made postgres_password
service driftd | made driftd_pg_service.conf
service mlflow | made mlflow_pg_service.conf
printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$(random 20)" "$(random 40)" | made s3_credentials
random 24 | made grafana_admin_password
random 48 | made driftd_token
