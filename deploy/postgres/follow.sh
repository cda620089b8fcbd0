#!/bin/bash
# The standby: copies the primary once, then follows it. Promote it with `pg_ctl promote` after the old primary is fenced.
set -euo pipefail
export PGDATA=/var/lib/postgresql/18/docker PGPASSFILE=/tmp/pgpass
primary="host=postgres user=replicator dbname=replication application_name=standby sslmode=verify-full sslrootcert=/run/tls/ca.pem"
install -m 0600 -o postgres /dev/null "$PGPASSFILE"
echo "postgres:5432:*:replicator:$REPLICATOR_PASSWORD" > "$PGPASSFILE"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  install -d -m 0700 -o postgres "$PGDATA"
  gosu postgres pg_basebackup -d "$primary" -D "$PGDATA" --wal-method=stream --write-recovery-conf --checkpoint=fast
fi
exec gosu postgres postgres -c hot_standby=on -c "primary_conninfo=$primary passfile=$PGPASSFILE" -c hba_file=/etc/mdi/pg_hba.conf \
  -c ssl=on -c ssl_cert_file=/run/tls/postgres.pem -c ssl_key_file=/run/tls/postgres.key -c max_locks_per_transaction=256
