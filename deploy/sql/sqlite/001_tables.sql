-- The tables that voltmill writes, and the views that read them under the names of their schemas.
-- Times are whole microseconds of UTC since 1970. Labels stand beside the rows: connectors/sql_sqlite.py tells why.
-- IF NOT EXISTS: a file that an earlier version made has these already.

CREATE TABLE IF NOT EXISTS predictions_rows (
    device_id TEXT NOT NULL,
    event_time INTEGER NOT NULL,
    value REAL,
    lo90 REAL,
    hi90 REAL,
    quality_bits INTEGER,
    source_offset INTEGER,
    key_labels_id INTEGER NOT NULL,
    labels_id INTEGER,
    PRIMARY KEY (event_time, device_id, key_labels_id)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS predictions_key_labels (
    id INTEGER PRIMARY KEY,
    target TEXT,
    model_sha256 TEXT,
    UNIQUE (target, model_sha256)
);

CREATE TABLE IF NOT EXISTS predictions_labels (
    id INTEGER PRIMARY KEY,
    unit TEXT,
    model_name TEXT,
    model_version TEXT,
    mode TEXT,
    source TEXT,
    source_partition TEXT,
    UNIQUE (unit, model_name, model_version, mode, source, source_partition)
);

CREATE VIEW IF NOT EXISTS predictions AS
SELECT
    r.device_id,
    r.event_time,
    k.target,
    k.model_sha256,
    r.value,
    r.lo90,
    r.hi90,
    l.unit,
    l.model_name,
    l.model_version,
    l.mode,
    r.quality_bits,
    l.source,
    l.source_partition,
    r.source_offset
FROM predictions_rows AS r
JOIN predictions_key_labels AS k ON k.id = r.key_labels_id
JOIN predictions_labels AS l ON l.id = r.labels_id;

-- In whole numbers, for the doubles of strftime('%f') round to milliseconds.
CREATE VIEW IF NOT EXISTS predictions_readable AS
SELECT
    device_id,
    strftime('%Y-%m-%dT%H:%M:%S', event_time / 1000000, 'unixepoch')
        || printf('.%06dZ', event_time % 1000000) AS event_time,
    target,
    model_sha256,
    value,
    lo90,
    hi90,
    unit,
    model_name,
    model_version,
    mode,
    quality_bits,
    source,
    source_partition,
    source_offset
FROM predictions;

CREATE TABLE IF NOT EXISTS alerts_rows (
    alert_id TEXT NOT NULL,
    device_id TEXT,
    opened_at INTEGER,
    closed_at INTEGER,
    value REAL,
    "limit" REAL,
    quality_bits INTEGER,
    labels_id INTEGER,
    PRIMARY KEY (alert_id)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS alerts_labels (
    id INTEGER PRIMARY KEY,
    code TEXT,
    severity TEXT,
    UNIQUE (code, severity)
);

CREATE VIEW IF NOT EXISTS alerts AS
SELECT
    r.alert_id,
    r.device_id,
    l.code,
    l.severity,
    r.opened_at,
    r.closed_at,
    r.value,
    r."limit",
    r.quality_bits
FROM alerts_rows AS r
JOIN alerts_labels AS l ON l.id = r.labels_id;

CREATE VIEW IF NOT EXISTS alerts_readable AS
SELECT
    alert_id,
    device_id,
    code,
    severity,
    strftime('%Y-%m-%dT%H:%M:%S', opened_at / 1000000, 'unixepoch')
        || printf('.%06dZ', opened_at % 1000000) AS opened_at,
    strftime('%Y-%m-%dT%H:%M:%S', closed_at / 1000000, 'unixepoch')
        || printf('.%06dZ', closed_at % 1000000) AS closed_at,
    value,
    "limit",
    quality_bits
FROM alerts;
