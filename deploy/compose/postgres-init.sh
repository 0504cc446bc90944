#!/bin/sh
# Run once by the postgres image, on an empty volume: one role and database per service, named alike. Each role owns
# its own database and may not enter the other's. Passwords come from the services' own secret files.
set -eu
for service in driftd mlflow; do
    password=$(sed -n 's/^password=//p' "/run/secrets/${service}_pg_service.conf")
    psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --set name="$service" --set password="$password" \
        --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
