-- Views for reports; docs/database.md tells what each column means. In force are the modes live and fallback: what
-- shadow models and replays say is left out. A gateway is the first part of a device_id; an id of one part is its own.

-- The newest value of a target is found in it at once, whatever lies between; a target that comes once a session, too.
CREATE INDEX predictions_in_force ON dbo.predictions (target, device_id, event_time)
INCLUDE (value, lo90, hi90, mode, model_name, quality_bits)
WHERE value IS NOT NULL AND mode IN (N'live', N'fallback');
GO

-- What is cut by days reads this alone; the columns of the key are part of it.
CREATE INDEX predictions_by_time ON dbo.predictions (event_time) INCLUDE (value, mode, quality_bits);
GO

CREATE INDEX alerts_open ON dbo.alerts (device_id) WHERE closed_at IS NULL;
GO

-- A table, kept by the trigger, for this server finds distinct values only by reading all rows.
-- IGNORE_DUP_KEY: two writers may meet a new module at the same time.
CREATE TABLE dbo.modules (
    device_id nvarchar(256) COLLATE Latin1_General_100_BIN2 NOT NULL,
    gateway AS LEFT(device_id, CHARINDEX(N'/', CONCAT(device_id, N'/')) - 1),
    CONSTRAINT modules_key PRIMARY KEY CLUSTERED (device_id) WITH (IGNORE_DUP_KEY = ON)
);
GO

CREATE TRIGGER dbo.predictions_modules ON dbo.predictions AFTER INSERT AS
BEGIN
    SET NOCOUNT ON;
    INSERT INTO dbo.modules (device_id)
    SELECT DISTINCT i.device_id
    FROM inserted AS i
    WHERE NOT EXISTS (SELECT 1 FROM dbo.modules AS m WHERE m.device_id = i.device_id);
END;
GO

INSERT INTO dbo.modules (device_id) SELECT DISTINCT device_id FROM dbo.predictions;
GO

CREATE VIEW dbo.open_alerts AS
SELECT
    alert_id,
    device_id,
    LEFT(device_id, CHARINDEX(N'/', CONCAT(device_id, N'/')) - 1) AS gateway,
    code,
    severity,
    CASE severity WHEN N'critical' THEN 1 WHEN N'alarm' THEN 2 WHEN N'warning' THEN 3 ELSE 4 END AS severity_rank,
    opened_at,
    value,
    [limit],
    quality_bits
FROM dbo.alerts
WHERE closed_at IS NULL;
GO

-- The newest time first, then the row: among rows of one time the order is not that of an index.
CREATE VIEW dbo.module_latest AS
SELECT
    m.device_id,
    m.gateway,
    newest.event_time AS last_time,
    newest.quality_bits,
    soc.event_time AS soc_time,
    soc.value AS soc_percent,
    soc.lo90 AS soc_lo90,
    soc.hi90 AS soc_hi90,
    soc.model_name AS soc_model,
    soh.event_time AS soh_time,
    soh.value AS soh_percent,
    soh.lo90 AS soh_lo90,
    soh.hi90 AS soh_hi90,
    soh.model_name AS soh_model,
    rul.event_time AS rul_time,
    rul.value AS rul_cycles,
    rul.lo90 AS rul_lo90,
    rul.hi90 AS rul_hi90,
    rul.model_name AS rul_model,
    (SELECT COUNT(*) FROM dbo.alerts AS a WHERE a.device_id = m.device_id AND a.closed_at IS NULL) AS open_alerts
FROM dbo.modules AS m
CROSS APPLY (
    SELECT TOP (1) p.event_time, p.quality_bits
    FROM dbo.predictions AS p
    WHERE
        p.device_id = m.device_id
        AND p.mode IN (N'live', N'fallback')
        AND p.event_time = (
            SELECT TOP (1) q.event_time
            FROM dbo.predictions AS q
            WHERE q.device_id = m.device_id AND q.mode IN (N'live', N'fallback')
            ORDER BY q.event_time DESC
        )
    ORDER BY
        CASE WHEN p.target = N'soc' THEN 0 ELSE 1 END,
        p.target,
        CASE WHEN p.value IS NULL THEN 1 ELSE 0 END,
        p.mode DESC,
        p.model_sha256
) AS newest
OUTER APPLY (
    SELECT TOP (1) p.event_time, p.value, p.lo90, p.hi90, p.model_name
    FROM dbo.predictions AS p
    WHERE
        p.device_id = m.device_id
        AND p.target = N'soc'
        AND p.value IS NOT NULL
        AND p.mode IN (N'live', N'fallback')
        AND p.event_time = (
            SELECT TOP (1) q.event_time
            FROM dbo.predictions AS q
            WHERE
                q.device_id = m.device_id
                AND q.target = N'soc'
                AND q.value IS NOT NULL
                AND q.mode IN (N'live', N'fallback')
            ORDER BY q.event_time DESC
        )
    ORDER BY p.mode DESC, p.model_sha256
) AS soc
OUTER APPLY (
    SELECT TOP (1) p.event_time, p.value, p.lo90, p.hi90, p.model_name
    FROM dbo.predictions AS p
    WHERE
        p.device_id = m.device_id
        AND p.target = N'soh'
        AND p.value IS NOT NULL
        AND p.mode IN (N'live', N'fallback')
        AND p.event_time = (
            SELECT TOP (1) q.event_time
            FROM dbo.predictions AS q
            WHERE
                q.device_id = m.device_id
                AND q.target = N'soh'
                AND q.value IS NOT NULL
                AND q.mode IN (N'live', N'fallback')
            ORDER BY q.event_time DESC
        )
    ORDER BY p.mode DESC, p.model_sha256
) AS soh
OUTER APPLY (
    SELECT TOP (1) p.event_time, p.value, p.lo90, p.hi90, p.model_name
    FROM dbo.predictions AS p
    WHERE
        p.device_id = m.device_id
        AND p.target = N'rul'
        AND p.value IS NOT NULL
        AND p.mode IN (N'live', N'fallback')
        AND p.event_time = (
            SELECT TOP (1) q.event_time
            FROM dbo.predictions AS q
            WHERE
                q.device_id = m.device_id
                AND q.target = N'rul'
                AND q.value IS NOT NULL
                AND q.mode IN (N'live', N'fallback')
            ORDER BY q.event_time DESC
        )
    ORDER BY p.mode DESC, p.model_sha256
) AS rul;
GO

CREATE VIEW dbo.soc_over_time AS
SELECT
    device_id,
    LEFT(device_id, CHARINDEX(N'/', CONCAT(device_id, N'/')) - 1) AS gateway,
    event_time,
    value AS soc_percent,
    lo90 AS soc_lo90,
    hi90 AS soc_hi90,
    model_name,
    mode,
    quality_bits
FROM dbo.predictions
WHERE target = N'soc' AND value IS NOT NULL AND mode IN (N'live', N'fallback');
GO

-- The slope of the line of least squares through all values of a model up to this one; the mean of the last five.
CREATE VIEW dbo.soh_trend AS
WITH aged AS (
    SELECT
        device_id,
        event_time,
        value,
        lo90,
        hi90,
        model_name,
        model_version,
        model_sha256,
        DATEDIFF_BIG(
            SECOND,
            FIRST_VALUE(event_time) OVER (PARTITION BY device_id, model_name ORDER BY event_time),
            event_time
        ) / 31557600e0
        AS years
    FROM dbo.predictions
    WHERE target = N'soh' AND value IS NOT NULL AND mode IN (N'live', N'fallback')
),

summed AS (
    SELECT
        device_id,
        event_time,
        value,
        lo90,
        hi90,
        model_name,
        model_version,
        AVG(CAST(value AS float(53))) OVER (
            PARTITION BY device_id, model_name
            ORDER BY event_time, model_sha256
            ROWS BETWEEN 4 PRECEDING AND CURRENT ROW
        ) AS mean_percent,
        COUNT(*) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS n,
        SUM(years) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS t,
        SUM(years * years) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS tt,
        SUM(CAST(value AS float(53))) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS y,
        SUM(years * value) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS ty
    FROM aged
)

SELECT
    device_id,
    LEFT(device_id, CHARINDEX(N'/', CONCAT(device_id, N'/')) - 1) AS gateway,
    event_time,
    value AS soh_percent,
    lo90 AS soh_lo90,
    hi90 AS soh_hi90,
    model_name,
    model_version,
    mean_percent,
    CASE WHEN n >= 3 THEN (n * ty - t * y) / NULLIF(n * tt - t * t, 0) END AS trend_percent_per_year
FROM summed;
GO

-- Those with the fewest cycles left first.
CREATE VIEW dbo.rul_ranking AS
SELECT
    RANK() OVER (ORDER BY rul_cycles) AS rul_rank,
    device_id,
    gateway,
    rul_cycles,
    rul_lo90,
    rul_hi90,
    rul_time,
    rul_model,
    soh_percent,
    soh_time
FROM dbo.module_latest
WHERE rul_cycles IS NOT NULL;
GO

CREATE VIEW dbo.fleet_summary AS
SELECT
    COUNT(*) AS modules,
    MIN(last_time) AS oldest_last_time,
    MAX(last_time) AS newest_last_time,
    COUNT(soc_percent) AS modules_with_soc,
    MIN(soc_percent) AS soc_lowest_percent,
    AVG(soc_percent) AS soc_mean_percent,
    MAX(soc_percent) AS soc_highest_percent,
    COUNT(soh_percent) AS modules_with_soh,
    MIN(soh_percent) AS soh_lowest_percent,
    AVG(soh_percent) AS soh_mean_percent,
    COUNT(CASE WHEN soh_percent < 80 THEN 1 END) AS modules_below_80_percent_soh,
    COUNT(rul_cycles) AS modules_with_rul,
    MIN(rul_cycles) AS rul_lowest_cycles,
    (SELECT COUNT(*) FROM dbo.open_alerts) AS open_alerts,
    (SELECT COUNT(*) FROM dbo.open_alerts WHERE severity_rank = 1) AS open_critical_alerts
FROM dbo.module_latest;
GO

CREATE VIEW dbo.gateway_quality AS
WITH counted AS (
    SELECT
        device_id,
        CAST(event_time AS date) AS day,
        target,
        quality_bits,
        COUNT_BIG(*) AS predictions,
        COUNT_BIG(value) AS valued
    FROM dbo.predictions
    WHERE mode IN (N'live', N'fallback')
    GROUP BY device_id, CAST(event_time AS date), target, quality_bits
)

SELECT
    LEFT(device_id, CHARINDEX(N'/', CONCAT(device_id, N'/')) - 1) AS gateway,
    day,
    target,
    SUM(predictions) AS predictions,
    SUM(predictions - valued) AS without_value,
    SUM(CASE WHEN quality_bits = 0 THEN predictions ELSE 0 END) AS clean,
    SUM(CASE WHEN quality_bits & 1 <> 0 THEN predictions ELSE 0 END) AS duplicate,
    SUM(CASE WHEN quality_bits & 2 <> 0 THEN predictions ELSE 0 END) AS late,
    SUM(CASE WHEN quality_bits & 4 <> 0 THEN predictions ELSE 0 END) AS out_of_order,
    SUM(CASE WHEN quality_bits & 8 <> 0 THEN predictions ELSE 0 END) AS clock_skew,
    SUM(CASE WHEN quality_bits & 16 <> 0 THEN predictions ELSE 0 END) AS gap_before,
    SUM(CASE WHEN quality_bits & 32 <> 0 THEN predictions ELSE 0 END) AS range,
    SUM(CASE WHEN quality_bits & 64 <> 0 THEN predictions ELSE 0 END) AS rate,
    SUM(CASE WHEN quality_bits & 128 <> 0 THEN predictions ELSE 0 END) AS stuck,
    SUM(CASE WHEN quality_bits & 256 <> 0 THEN predictions ELSE 0 END) AS sign_suspect,
    SUM(CASE WHEN quality_bits & 512 <> 0 THEN predictions ELSE 0 END) AS cell_count_changed,
    SUM(CASE WHEN quality_bits & 1024 <> 0 THEN predictions ELSE 0 END) AS sum_mismatch,
    SUM(CASE WHEN quality_bits & 2048 <> 0 THEN predictions ELSE 0 END) AS unit_converted,
    SUM(CASE WHEN quality_bits & 4096 <> 0 THEN predictions ELSE 0 END) AS reissued,
    SUM(CASE WHEN quality_bits & 8192 <> 0 THEN predictions ELSE 0 END) AS unknown_cell,
    SUM(CASE WHEN quality_bits & 16384 <> 0 THEN predictions ELSE 0 END) AS out_of_domain,
    SUM(CASE WHEN quality_bits & 32768 <> 0 THEN predictions ELSE 0 END) AS warm_up,
    SUM(CASE WHEN quality_bits & 65536 <> 0 THEN predictions ELSE 0 END) AS model_failed,
    SUM(CASE WHEN quality_bits & 131072 <> 0 THEN predictions ELSE 0 END) AS partial_session
FROM counted
GROUP BY LEFT(device_id, CHARINDEX(N'/', CONCAT(device_id, N'/')) - 1), day, target;
GO
