-- Views for reports over what was loaded: those of Azure SQL (../../mssql), without alerts, which are not in the lake's
-- predictions. In force are the modes live and fallback. Run after 001_tables.sql; running it again makes them anew.

IF OBJECT_ID(N'dbo.rul_ranking', N'V') IS NOT NULL
DROP VIEW dbo.rul_ranking;
GO

IF OBJECT_ID(N'dbo.module_latest', N'V') IS NOT NULL
DROP VIEW dbo.module_latest;
GO

IF OBJECT_ID(N'dbo.soc_over_time', N'V') IS NOT NULL
DROP VIEW dbo.soc_over_time;
GO

IF OBJECT_ID(N'dbo.soh_trend', N'V') IS NOT NULL
DROP VIEW dbo.soh_trend;
GO

IF OBJECT_ID(N'dbo.gateway_quality', N'V') IS NOT NULL
DROP VIEW dbo.gateway_quality;
GO

-- A columnstore has no order by module: all rows are ranked, at once in all distributions.
CREATE VIEW dbo.module_latest AS
WITH ranked AS (
    SELECT
        p.device_id,
        p.event_time,
        p.target,
        p.value,
        p.lo90,
        p.hi90,
        p.model_name,
        p.quality_bits,
        CASE WHEN p.value IS NOT NULL THEN ROW_NUMBER() OVER (
            PARTITION BY p.device_id, p.target, CASE WHEN p.value IS NULL THEN 1 ELSE 0 END
            ORDER BY p.event_time DESC, p.mode DESC, p.model_sha256
        ) END AS place,
        ROW_NUMBER() OVER (
            PARTITION BY p.device_id
            ORDER BY
                p.event_time DESC,
                CASE WHEN p.target = N'soc' THEN 0 ELSE 1 END,
                p.target,
                CASE WHEN p.value IS NULL THEN 1 ELSE 0 END,
                p.mode DESC,
                p.model_sha256
        ) AS last_place
    FROM dbo.predictions AS p
    WHERE p.mode IN (N'live', N'fallback')
)

SELECT
    r.device_id,
    LEFT(r.device_id, CHARINDEX(N'/', CONCAT(r.device_id, N'/')) - 1) AS gateway,
    MAX(CASE WHEN r.last_place = 1 THEN r.event_time END) AS last_time,
    MAX(CASE WHEN r.last_place = 1 THEN r.quality_bits END) AS quality_bits,
    MAX(CASE WHEN r.place = 1 AND r.target = N'soc' THEN r.event_time END) AS soc_time,
    MAX(CASE WHEN r.place = 1 AND r.target = N'soc' THEN r.value END) AS soc_percent,
    MAX(CASE WHEN r.place = 1 AND r.target = N'soc' THEN r.lo90 END) AS soc_lo90,
    MAX(CASE WHEN r.place = 1 AND r.target = N'soc' THEN r.hi90 END) AS soc_hi90,
    MAX(CASE WHEN r.place = 1 AND r.target = N'soc' THEN r.model_name END) AS soc_model,
    MAX(CASE WHEN r.place = 1 AND r.target = N'soh' THEN r.event_time END) AS soh_time,
    MAX(CASE WHEN r.place = 1 AND r.target = N'soh' THEN r.value END) AS soh_percent,
    MAX(CASE WHEN r.place = 1 AND r.target = N'soh' THEN r.lo90 END) AS soh_lo90,
    MAX(CASE WHEN r.place = 1 AND r.target = N'soh' THEN r.hi90 END) AS soh_hi90,
    MAX(CASE WHEN r.place = 1 AND r.target = N'soh' THEN r.model_name END) AS soh_model,
    MAX(CASE WHEN r.place = 1 AND r.target = N'rul' THEN r.event_time END) AS rul_time,
    MAX(CASE WHEN r.place = 1 AND r.target = N'rul' THEN r.value END) AS rul_cycles,
    MAX(CASE WHEN r.place = 1 AND r.target = N'rul' THEN r.lo90 END) AS rul_lo90,
    MAX(CASE WHEN r.place = 1 AND r.target = N'rul' THEN r.hi90 END) AS rul_hi90,
    MAX(CASE WHEN r.place = 1 AND r.target = N'rul' THEN r.model_name END) AS rul_model
FROM ranked AS r
GROUP BY r.device_id;
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
