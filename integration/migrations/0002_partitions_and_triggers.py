"""What Django cannot declare: the partitioned tick tables, views for people, the batch id sequence, change triggers."""

from django.db import migrations

SHARED_COLUMNS = """
    ts_event bigint NOT NULL,
    ts_publish bigint NOT NULL,
    instrument_id integer NOT NULL,
    source_id integer NOT NULL,
    channel integer NOT NULL,
    session bigint NOT NULL,
    sequence bigint NOT NULL,
    batch_id bigint NOT NULL,
    conditions integer NOT NULL,
    flags integer NOT NULL,
    session_date date NOT NULL
"""

# No DEFAULT partition: with one, a late row can be neither attached nor detached. No index on the parent: a slice has BRIN while it is
# written and a covering index once it is finished.
TABLES = f"""
CREATE TABLE integration_trade ({SHARED_COLUMNS}, price bigint NOT NULL, size bigint NOT NULL, trade_id bigint NOT NULL)
  PARTITION BY RANGE (ts_event);
CREATE TABLE integration_quote ({SHARED_COLUMNS}, bid bigint NOT NULL, bid_size bigint NOT NULL, ask bigint NOT NULL, ask_size bigint NOT NULL)
  PARTITION BY RANGE (ts_event);
CREATE SEQUENCE integration_batch_id_seq OWNED BY integration_batch.id;
ALTER TABLE integration_batch ALTER COLUMN payload SET STORAGE EXTERNAL;
"""

# For people and SQL tools: decimals and times. Filter on ts_event, which prunes slices; the time column does not.
VIEWS = """
CREATE VIEW integration_trade_view AS
  SELECT t.ts_event, to_timestamp(t.ts_event / 1e9) AS event_time, t.instrument_id, i.name AS instrument, s.code AS source,
         t.price * 0.000000001 AS price, t.size * 0.000000001 AS size, t.channel, t.session, t.sequence, t.trade_id, t.conditions, t.flags,
         t.session_date, t.ts_publish, b.ts_received, b.ts_processed, t.batch_id
    FROM integration_trade t
    JOIN integration_instrument i ON i.id = t.instrument_id
    JOIN integration_source s ON s.id = t.source_id
    LEFT JOIN integration_batch b ON b.id = t.batch_id;
CREATE VIEW integration_quote_view AS
  SELECT q.ts_event, to_timestamp(q.ts_event / 1e9) AS event_time, q.instrument_id, i.name AS instrument, s.code AS source,
         q.bid * 0.000000001 AS bid, q.bid_size * 0.000000001 AS bid_size, q.ask * 0.000000001 AS ask, q.ask_size * 0.000000001 AS ask_size,
         q.channel, q.session, q.sequence, q.conditions, q.flags, q.session_date, q.ts_publish, b.ts_received, b.ts_processed, q.batch_id
    FROM integration_quote q
    JOIN integration_instrument i ON i.id = q.instrument_id
    JOIN integration_source s ON s.id = q.source_id
    LEFT JOIN integration_batch b ON b.id = q.batch_id;
"""

# Reference data is compiled by consumers; whatever path changes it (admin, SQL, import) raises the version.
REFERENCE_TABLES = ("venue", "instrument", "listing", "instrumentalias", "source", "sourcebinding")
REFERENCE_FUNCTION = """
CREATE FUNCTION integration_reference_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO integration_referenceversion (id, version) VALUES (1, 1)
    ON CONFLICT (id) DO UPDATE SET version = integration_referenceversion.version + 1;
  RETURN NULL;
END $$;
"""
TRIGGERS = "".join(
    f"CREATE TRIGGER reference_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON integration_{table}"
    " FOR EACH STATEMENT EXECUTE FUNCTION integration_reference_changed();\n"
    for table in REFERENCE_TABLES
)

UNDO = """
DROP VIEW integration_trade_view, integration_quote_view;
DROP TABLE integration_trade, integration_quote;
DROP SEQUENCE integration_batch_id_seq;
DROP FUNCTION integration_reference_changed CASCADE;
"""


class Migration(migrations.Migration):
    """Runs as the application's role, which owns the tables."""

    dependencies = [("integration", "0001_initial")]
    operations = [migrations.RunSQL(TABLES + VIEWS + REFERENCE_FUNCTION + TRIGGERS, UNDO)]
