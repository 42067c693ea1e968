-- The tables that voltmill writes. Texts are compared byte by byte: quicker than by a language, and the same after an
-- upgrade of the system. IF NOT EXISTS: a database that an earlier version wrote has the first one already.

CREATE TABLE IF NOT EXISTS predictions (
    device_id text COLLATE "C" NOT NULL,
    event_time timestamp with time zone NOT NULL,
    target text COLLATE "C" NOT NULL,
    model_sha256 text COLLATE "C" NOT NULL,
    value real,
    lo90 real,
    hi90 real,
    unit text COLLATE "C" NOT NULL,
    model_name text COLLATE "C" NOT NULL,
    model_version text COLLATE "C" NOT NULL,
    mode text COLLATE "C" NOT NULL,
    quality_bits bigint NOT NULL,
    source text COLLATE "C" NOT NULL,
    source_partition text COLLATE "C" NOT NULL,
    source_offset bigint NOT NULL,
    PRIMARY KEY (device_id, event_time, target, model_sha256)
);

CREATE TABLE IF NOT EXISTS alerts (
    alert_id text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    code text COLLATE "C" NOT NULL,
    severity text COLLATE "C" NOT NULL,
    opened_at timestamp with time zone NOT NULL,
    closed_at timestamp with time zone,
    value real,
    "limit" real,
    quality_bits bigint NOT NULL,
    PRIMARY KEY (alert_id)
);
