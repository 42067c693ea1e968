-- A serverless SQL pool of Synapse: views over the lake, where the files are read by each query. Run in a database of
-- its own, once, with your account and container in LOCATION. The workspace's identity reads: it needs the role Storage
-- Blob Data Reader on the container.
-- day and shard are those of the path: a query that names them opens no other files. day is the day of arrival, so cut
-- by day first and by event_time then. While voltmill compact runs, a merged file stands beside those it replaces for
-- some seconds, and a query sees their rows twice.

CREATE MASTER KEY;
GO

CREATE DATABASE SCOPED CREDENTIAL voltmill_lake WITH IDENTITY = 'Managed Identity';
GO

CREATE EXTERNAL DATA SOURCE voltmill_lake WITH (
    LOCATION = 'https://ACCOUNT.dfs.core.windows.net/CONTAINER/lake',
    CREDENTIAL = voltmill_lake
);
GO

CREATE VIEW dbo.predictions AS
SELECT
    f.*,
    CAST(f.filepath(1) AS date) AS day,
    f.filepath(2) AS shard
FROM OPENROWSET(
    BULK 'predictions/date=*/shard=*/*.parquet',
    DATA_SOURCE = 'voltmill_lake',
    FORMAT = 'PARQUET'
) WITH (
    device_id varchar(256) COLLATE Latin1_General_100_BIN2_UTF8,
    event_time datetime2(6),
    target varchar(16) COLLATE Latin1_General_100_BIN2_UTF8,
    model_sha256 varchar(64) COLLATE Latin1_General_100_BIN2_UTF8,
    value real,
    lo90 real,
    hi90 real,
    unit varchar(16) COLLATE Latin1_General_100_BIN2_UTF8,
    model_name varchar(128) COLLATE Latin1_General_100_BIN2_UTF8,
    model_version varchar(64) COLLATE Latin1_General_100_BIN2_UTF8,
    mode varchar(16) COLLATE Latin1_General_100_BIN2_UTF8,
    quality_bits bigint,
    source varchar(64) COLLATE Latin1_General_100_BIN2_UTF8,
    source_partition varchar(1024) COLLATE Latin1_General_100_BIN2_UTF8,
    source_offset bigint
) AS f;
GO

-- Without the lists of cell voltages and temperatures: OPENROWSET reads them as JSON where they are asked for.
CREATE VIEW dbo.telemetry AS
SELECT
    f.*,
    CAST(f.filepath(1) AS date) AS day,
    f.filepath(2) AS shard
FROM OPENROWSET(
    BULK 'telemetry/date=*/shard=*/*.parquet',
    DATA_SOURCE = 'voltmill_lake',
    FORMAT = 'PARQUET'
) WITH (
    device_id varchar(256) COLLATE Latin1_General_100_BIN2_UTF8,
    event_time datetime2(6),
    ingest_time datetime2(6),
    current_ampere real,
    voltage_volt real,
    quality_bits bigint
) AS f;
GO

CREATE VIEW dbo.soc_over_time AS
SELECT
    device_id,
    LEFT(device_id, CHARINDEX('/', CONCAT(device_id, '/')) - 1) AS gateway,
    event_time,
    value AS soc_percent,
    lo90 AS soc_lo90,
    hi90 AS soc_hi90,
    model_name,
    mode,
    quality_bits,
    day,
    shard
FROM dbo.predictions
WHERE target = 'soc' AND value IS NOT NULL AND mode IN ('live', 'fallback');
GO

-- Of all samples that arrived, also those that were refused and so have no prediction: counted by the day of arrival.
CREATE VIEW dbo.telemetry_quality AS
WITH counted AS (
    SELECT
        LEFT(device_id, CHARINDEX('/', CONCAT(device_id, '/')) - 1) AS gateway,
        day,
        quality_bits,
        COUNT_BIG(*) AS samples
    FROM dbo.telemetry
    GROUP BY LEFT(device_id, CHARINDEX('/', CONCAT(device_id, '/')) - 1), day, quality_bits
)

SELECT
    gateway,
    day,
    SUM(samples) AS samples,
    SUM(CASE WHEN quality_bits = 0 THEN samples ELSE 0 END) AS clean,
    SUM(CASE WHEN quality_bits & 1 <> 0 THEN samples ELSE 0 END) AS duplicate,
    SUM(CASE WHEN quality_bits & 2 <> 0 THEN samples ELSE 0 END) AS late,
    SUM(CASE WHEN quality_bits & 4 <> 0 THEN samples ELSE 0 END) AS out_of_order,
    SUM(CASE WHEN quality_bits & 8 <> 0 THEN samples ELSE 0 END) AS clock_skew,
    SUM(CASE WHEN quality_bits & 16 <> 0 THEN samples ELSE 0 END) AS gap_before,
    SUM(CASE WHEN quality_bits & 32 <> 0 THEN samples ELSE 0 END) AS range,
    SUM(CASE WHEN quality_bits & 64 <> 0 THEN samples ELSE 0 END) AS rate,
    SUM(CASE WHEN quality_bits & 128 <> 0 THEN samples ELSE 0 END) AS stuck,
    SUM(CASE WHEN quality_bits & 256 <> 0 THEN samples ELSE 0 END) AS sign_suspect,
    SUM(CASE WHEN quality_bits & 512 <> 0 THEN samples ELSE 0 END) AS cell_count_changed,
    SUM(CASE WHEN quality_bits & 1024 <> 0 THEN samples ELSE 0 END) AS sum_mismatch,
    SUM(CASE WHEN quality_bits & 2048 <> 0 THEN samples ELSE 0 END) AS unit_converted,
    SUM(CASE WHEN quality_bits & 4096 <> 0 THEN samples ELSE 0 END) AS reissued,
    SUM(CASE WHEN quality_bits & 8192 <> 0 THEN samples ELSE 0 END) AS unknown_cell,
    SUM(CASE WHEN quality_bits & 16384 <> 0 THEN samples ELSE 0 END) AS out_of_domain,
    SUM(CASE WHEN quality_bits & 32768 <> 0 THEN samples ELSE 0 END) AS warm_up,
    SUM(CASE WHEN quality_bits & 65536 <> 0 THEN samples ELSE 0 END) AS model_failed,
    SUM(CASE WHEN quality_bits & 131072 <> 0 THEN samples ELSE 0 END) AS partial_session
FROM counted
GROUP BY gateway, day;
GO
