#!/bin/bash
# Runs once, when the cluster is made: our role (no superuser), its database, and the standby's role.
set -euo pipefail
psql -v ON_ERROR_STOP=1 -U postgres -v service="$SERVICE_PASSWORD" -v replicator="$REPLICATOR_PASSWORD" <<'SQL'
CREATE ROLE mdi LOGIN PASSWORD :'service';
GRANT pg_monitor TO mdi;
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'replicator';
CREATE DATABASE mdi OWNER mdi TEMPLATE template0 ENCODING 'UTF8';
\connect mdi
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
SQL
