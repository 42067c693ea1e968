-- Views for reports; docs/database.md tells what each column means. In force are the modes live and fallback: what
-- shadow models and replays say is left out. A gateway is the first part of a device_id; an id of one part is its own.
-- They are read with the rights of their owner, so who makes reports needs SELECT on the views alone.

-- The newest value of a target is found in it at once, whatever lies between; a target that comes once a session, too.
CREATE INDEX predictions_in_force ON predictions (target, device_id, event_time)
WHERE value IS NOT NULL AND mode IN ('live', 'fallback');

-- Rows are written about in the order of time: the bounds of each 32 pages tell where an hour or a day lies, and cost
-- next to nothing to keep.
CREATE INDEX predictions_by_time ON predictions
USING brin (event_time, ((event_time AT TIME ZONE 'UTC')::date)) WITH (pages_per_range = 32);

CREATE INDEX alerts_open ON alerts (device_id) WHERE closed_at IS NULL;

-- From one device_id to the next by the primary key: a DISTINCT would read every row.
CREATE VIEW modules AS
WITH RECURSIVE found AS (
    (SELECT p.device_id FROM predictions AS p ORDER BY p.device_id LIMIT 1)
    UNION ALL
    SELECT (SELECT p.device_id FROM predictions AS p WHERE p.device_id > f.device_id ORDER BY p.device_id LIMIT 1)
    FROM found AS f
    WHERE f.device_id IS NOT NULL
)

SELECT
    device_id,
    split_part(device_id, '/', 1) AS gateway
FROM found
WHERE device_id IS NOT NULL;

CREATE VIEW open_alerts AS
SELECT
    alert_id,
    device_id,
    split_part(device_id, '/', 1) AS gateway,
    code,
    severity,
    CASE severity WHEN 'critical' THEN 1 WHEN 'alarm' THEN 2 WHEN 'warning' THEN 3 ELSE 4 END AS severity_rank,
    opened_at,
    value,
    "limit",
    quality_bits
FROM alerts
WHERE closed_at IS NULL;

CREATE VIEW module_latest AS
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
    (SELECT count(*) FROM alerts AS a WHERE a.device_id = m.device_id AND a.closed_at IS NULL) AS open_alerts
FROM modules AS m
CROSS JOIN LATERAL (
    SELECT p.event_time, p.quality_bits
    FROM predictions AS p
    WHERE p.device_id = m.device_id AND p.mode IN ('live', 'fallback')
    ORDER BY p.event_time DESC, p.target <> 'soc', p.target, p.value IS NULL, p.mode DESC, p.model_sha256
    LIMIT 1
) AS newest
LEFT JOIN LATERAL (
    SELECT p.event_time, p.value, p.lo90, p.hi90, p.model_name
    FROM predictions AS p
    WHERE p.device_id = m.device_id AND p.target = 'soc' AND p.value IS NOT NULL AND p.mode IN ('live', 'fallback')
    ORDER BY p.event_time DESC, p.mode DESC, p.model_sha256
    LIMIT 1
) AS soc ON true
LEFT JOIN LATERAL (
    SELECT p.event_time, p.value, p.lo90, p.hi90, p.model_name
    FROM predictions AS p
    WHERE p.device_id = m.device_id AND p.target = 'soh' AND p.value IS NOT NULL AND p.mode IN ('live', 'fallback')
    ORDER BY p.event_time DESC, p.mode DESC, p.model_sha256
    LIMIT 1
) AS soh ON true
LEFT JOIN LATERAL (
    SELECT p.event_time, p.value, p.lo90, p.hi90, p.model_name
    FROM predictions AS p
    WHERE p.device_id = m.device_id AND p.target = 'rul' AND p.value IS NOT NULL AND p.mode IN ('live', 'fallback')
    ORDER BY p.event_time DESC, p.mode DESC, p.model_sha256
    LIMIT 1
) AS rul ON true;

CREATE VIEW soc_over_time AS
SELECT
    device_id,
    split_part(device_id, '/', 1) AS gateway,
    event_time,
    value AS soc_percent,
    lo90 AS soc_lo90,
    hi90 AS soc_hi90,
    model_name,
    mode,
    quality_bits
FROM predictions
WHERE target = 'soc' AND value IS NOT NULL AND mode IN ('live', 'fallback');

-- The slope of the line of least squares through all values of a model up to this one; the mean of the last five.
CREATE VIEW soh_trend AS
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
        extract(
            EPOCH FROM event_time
            - first_value(event_time) OVER (PARTITION BY device_id, model_name ORDER BY event_time)
        )::double precision / 31557600
        AS years
    FROM predictions
    WHERE target = 'soh' AND value IS NOT NULL AND mode IN ('live', 'fallback')
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
        avg(value::double precision) OVER (
            PARTITION BY device_id, model_name
            ORDER BY event_time, model_sha256
            ROWS BETWEEN 4 PRECEDING AND CURRENT ROW
        ) AS mean_percent,
        count(*) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS n,
        sum(years) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS t,
        sum(years * years) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS tt,
        sum(value::double precision) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS y,
        sum(years * value) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS ty
    FROM aged
)

SELECT
    device_id,
    split_part(device_id, '/', 1) AS gateway,
    event_time,
    value AS soh_percent,
    lo90 AS soh_lo90,
    hi90 AS soh_hi90,
    model_name,
    model_version,
    mean_percent,
    CASE WHEN n >= 3 THEN (n * ty - t * y) / nullif(n * tt - t * t, 0) END AS trend_percent_per_year
FROM summed;

-- Those with the fewest cycles left first.
CREATE VIEW rul_ranking AS
SELECT
    rank() OVER (ORDER BY rul_cycles) AS rul_rank,
    device_id,
    gateway,
    rul_cycles,
    rul_lo90,
    rul_hi90,
    rul_time,
    rul_model,
    soh_percent,
    soh_time
FROM module_latest
WHERE rul_cycles IS NOT NULL;

CREATE VIEW fleet_summary AS
SELECT
    count(*) AS modules,
    min(last_time) AS oldest_last_time,
    max(last_time) AS newest_last_time,
    count(soc_percent) AS modules_with_soc,
    min(soc_percent) AS soc_lowest_percent,
    avg(soc_percent) AS soc_mean_percent,
    max(soc_percent) AS soc_highest_percent,
    count(soh_percent) AS modules_with_soh,
    min(soh_percent) AS soh_lowest_percent,
    avg(soh_percent) AS soh_mean_percent,
    count(CASE WHEN soh_percent < 80 THEN 1 END) AS modules_below_80_percent_soh,
    count(rul_cycles) AS modules_with_rul,
    min(rul_cycles) AS rul_lowest_cycles,
    (SELECT count(*) FROM open_alerts) AS open_alerts,
    (SELECT count(*) FROM open_alerts WHERE severity_rank = 1) AS open_critical_alerts
FROM module_latest;

CREATE VIEW gateway_quality AS
WITH counted AS (
    SELECT
        device_id,
        (event_time AT TIME ZONE 'UTC')::date AS day,
        target,
        quality_bits,
        count(*) AS predictions,
        count(value) AS valued
    FROM predictions
    WHERE mode IN ('live', 'fallback')
    GROUP BY 1, 2, 3, 4
)

SELECT
    split_part(device_id, '/', 1) AS gateway,
    day,
    target,
    sum(predictions)::bigint AS predictions,
    sum(predictions - valued)::bigint AS without_value,
    sum(CASE WHEN quality_bits = 0 THEN predictions ELSE 0 END)::bigint AS clean,
    sum(CASE WHEN quality_bits & 1 <> 0 THEN predictions ELSE 0 END)::bigint AS duplicate,
    sum(CASE WHEN quality_bits & 2 <> 0 THEN predictions ELSE 0 END)::bigint AS late,
    sum(CASE WHEN quality_bits & 4 <> 0 THEN predictions ELSE 0 END)::bigint AS out_of_order,
    sum(CASE WHEN quality_bits & 8 <> 0 THEN predictions ELSE 0 END)::bigint AS clock_skew,
    sum(CASE WHEN quality_bits & 16 <> 0 THEN predictions ELSE 0 END)::bigint AS gap_before,
    sum(CASE WHEN quality_bits & 32 <> 0 THEN predictions ELSE 0 END)::bigint AS range,
    sum(CASE WHEN quality_bits & 64 <> 0 THEN predictions ELSE 0 END)::bigint AS rate,
    sum(CASE WHEN quality_bits & 128 <> 0 THEN predictions ELSE 0 END)::bigint AS stuck,
    sum(CASE WHEN quality_bits & 256 <> 0 THEN predictions ELSE 0 END)::bigint AS sign_suspect,
    sum(CASE WHEN quality_bits & 512 <> 0 THEN predictions ELSE 0 END)::bigint AS cell_count_changed,
    sum(CASE WHEN quality_bits & 1024 <> 0 THEN predictions ELSE 0 END)::bigint AS sum_mismatch,
    sum(CASE WHEN quality_bits & 2048 <> 0 THEN predictions ELSE 0 END)::bigint AS unit_converted,
    sum(CASE WHEN quality_bits & 4096 <> 0 THEN predictions ELSE 0 END)::bigint AS reissued,
    sum(CASE WHEN quality_bits & 8192 <> 0 THEN predictions ELSE 0 END)::bigint AS unknown_cell,
    sum(CASE WHEN quality_bits & 16384 <> 0 THEN predictions ELSE 0 END)::bigint AS out_of_domain,
    sum(CASE WHEN quality_bits & 32768 <> 0 THEN predictions ELSE 0 END)::bigint AS warm_up,
    sum(CASE WHEN quality_bits & 65536 <> 0 THEN predictions ELSE 0 END)::bigint AS model_failed,
    sum(CASE WHEN quality_bits & 131072 <> 0 THEN predictions ELSE 0 END)::bigint AS partial_session
FROM counted
GROUP BY 1, 2, 3;
