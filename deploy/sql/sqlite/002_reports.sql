-- Views for reports; docs/database.md tells what each column means. In force are the modes live and fallback: what
-- shadow models and replays say is left out. A gateway is the first part of a device_id; an id of one part is its own.
-- The rows lie in the order of time. An index by device would triple the time to write them, so a view that looks for
-- what is newest reads the whole table, once: about a second for a million rows.

CREATE INDEX alerts_open ON alerts_rows (device_id) WHERE closed_at IS NULL;

CREATE VIEW modules AS
SELECT DISTINCT
    device_id,
    substr(device_id, 1, instr(device_id || '/', '/') - 1) AS gateway
FROM predictions_rows;

CREATE VIEW open_alerts AS
SELECT
    alert_id,
    device_id,
    substr(device_id, 1, instr(device_id || '/', '/') - 1) AS gateway,
    code,
    severity,
    CASE severity WHEN 'critical' THEN 1 WHEN 'alarm' THEN 2 WHEN 'warning' THEN 3 ELSE 4 END AS severity_rank,
    opened_at,
    value,
    "limit",
    quality_bits
FROM alerts
WHERE closed_at IS NULL;

-- newest: of each module and model the newest row with a value and the newest one without; beside max(), SQLite takes
-- the other columns from the row of the maximum (https://sqlite.org/lang_select.html#bareagg).
CREATE VIEW module_latest AS
WITH newest AS (
    SELECT
        device_id,
        key_labels_id,
        labels_id,
        max(event_time) AS event_time,
        value,
        lo90,
        hi90,
        quality_bits
    FROM predictions_rows
    WHERE labels_id IN (SELECT id FROM predictions_labels WHERE mode IN ('live', 'fallback'))
    GROUP BY device_id, key_labels_id, value IS NULL
),

ranked AS (
    SELECT
        n.*,
        k.target,
        l.model_name,
        CASE WHEN n.value IS NOT NULL THEN row_number() OVER (
            PARTITION BY n.device_id, k.target, n.value IS NULL ORDER BY n.event_time DESC, l.mode DESC, k.model_sha256
        ) END AS place,
        row_number() OVER (
            PARTITION BY n.device_id
            ORDER BY n.event_time DESC, k.target <> 'soc', k.target, n.value IS NULL, l.mode DESC, k.model_sha256
        ) AS last_place
    FROM newest AS n
    JOIN predictions_key_labels AS k ON k.id = n.key_labels_id
    JOIN predictions_labels AS l ON l.id = n.labels_id
)

SELECT
    device_id,
    substr(device_id, 1, instr(device_id || '/', '/') - 1) AS gateway,
    max(CASE WHEN last_place = 1 THEN event_time END) AS last_time,
    max(CASE WHEN last_place = 1 THEN quality_bits END) AS quality_bits,
    max(CASE WHEN place = 1 AND target = 'soc' THEN event_time END) AS soc_time,
    max(CASE WHEN place = 1 AND target = 'soc' THEN value END) AS soc_percent,
    max(CASE WHEN place = 1 AND target = 'soc' THEN lo90 END) AS soc_lo90,
    max(CASE WHEN place = 1 AND target = 'soc' THEN hi90 END) AS soc_hi90,
    max(CASE WHEN place = 1 AND target = 'soc' THEN model_name END) AS soc_model,
    max(CASE WHEN place = 1 AND target = 'soh' THEN event_time END) AS soh_time,
    max(CASE WHEN place = 1 AND target = 'soh' THEN value END) AS soh_percent,
    max(CASE WHEN place = 1 AND target = 'soh' THEN lo90 END) AS soh_lo90,
    max(CASE WHEN place = 1 AND target = 'soh' THEN hi90 END) AS soh_hi90,
    max(CASE WHEN place = 1 AND target = 'soh' THEN model_name END) AS soh_model,
    max(CASE WHEN place = 1 AND target = 'rul' THEN event_time END) AS rul_time,
    max(CASE WHEN place = 1 AND target = 'rul' THEN value END) AS rul_cycles,
    max(CASE WHEN place = 1 AND target = 'rul' THEN lo90 END) AS rul_lo90,
    max(CASE WHEN place = 1 AND target = 'rul' THEN hi90 END) AS rul_hi90,
    max(CASE WHEN place = 1 AND target = 'rul' THEN model_name END) AS rul_model,
    (SELECT count(*) FROM alerts_rows AS a WHERE a.device_id = ranked.device_id AND a.closed_at IS NULL) AS open_alerts
FROM ranked
GROUP BY device_id;

CREATE VIEW soc_over_time AS
SELECT
    device_id,
    substr(device_id, 1, instr(device_id || '/', '/') - 1) AS gateway,
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
        (event_time - first_value(event_time) OVER (PARTITION BY device_id, model_name ORDER BY event_time))
        / 31557600e6
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
        avg(value) OVER (
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
        sum(value) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS y,
        sum(years * value) OVER (
            PARTITION BY device_id, model_name ORDER BY event_time, model_sha256 ROWS UNBOUNDED PRECEDING
        ) AS ty
    FROM aged
)

SELECT
    device_id,
    substr(device_id, 1, instr(device_id || '/', '/') - 1) AS gateway,
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

-- Counted by the number of the day first: to make a date of each row takes longer than all the rest.
CREATE VIEW gateway_quality AS
WITH counted AS (
    SELECT
        device_id,
        event_time / 86400000000 AS day,
        key_labels_id,
        quality_bits,
        count(*) AS predictions,
        count(value) AS valued
    FROM predictions_rows
    WHERE labels_id IN (SELECT id FROM predictions_labels WHERE mode IN ('live', 'fallback'))
    GROUP BY 1, 2, 3, 4
)

SELECT
    substr(c.device_id, 1, instr(c.device_id || '/', '/') - 1) AS gateway,
    date(c.day * 86400, 'unixepoch') AS day,
    k.target,
    sum(predictions) AS predictions,
    sum(predictions - valued) AS without_value,
    sum(CASE WHEN quality_bits = 0 THEN predictions ELSE 0 END) AS clean,
    sum(CASE WHEN quality_bits & 1 <> 0 THEN predictions ELSE 0 END) AS duplicate,
    sum(CASE WHEN quality_bits & 2 <> 0 THEN predictions ELSE 0 END) AS late,
    sum(CASE WHEN quality_bits & 4 <> 0 THEN predictions ELSE 0 END) AS out_of_order,
    sum(CASE WHEN quality_bits & 8 <> 0 THEN predictions ELSE 0 END) AS clock_skew,
    sum(CASE WHEN quality_bits & 16 <> 0 THEN predictions ELSE 0 END) AS gap_before,
    sum(CASE WHEN quality_bits & 32 <> 0 THEN predictions ELSE 0 END) AS range,
    sum(CASE WHEN quality_bits & 64 <> 0 THEN predictions ELSE 0 END) AS rate,
    sum(CASE WHEN quality_bits & 128 <> 0 THEN predictions ELSE 0 END) AS stuck,
    sum(CASE WHEN quality_bits & 256 <> 0 THEN predictions ELSE 0 END) AS sign_suspect,
    sum(CASE WHEN quality_bits & 512 <> 0 THEN predictions ELSE 0 END) AS cell_count_changed,
    sum(CASE WHEN quality_bits & 1024 <> 0 THEN predictions ELSE 0 END) AS sum_mismatch,
    sum(CASE WHEN quality_bits & 2048 <> 0 THEN predictions ELSE 0 END) AS unit_converted,
    sum(CASE WHEN quality_bits & 4096 <> 0 THEN predictions ELSE 0 END) AS reissued,
    sum(CASE WHEN quality_bits & 8192 <> 0 THEN predictions ELSE 0 END) AS unknown_cell,
    sum(CASE WHEN quality_bits & 16384 <> 0 THEN predictions ELSE 0 END) AS out_of_domain,
    sum(CASE WHEN quality_bits & 32768 <> 0 THEN predictions ELSE 0 END) AS warm_up,
    sum(CASE WHEN quality_bits & 65536 <> 0 THEN predictions ELSE 0 END) AS model_failed,
    sum(CASE WHEN quality_bits & 131072 <> 0 THEN predictions ELSE 0 END) AS partial_session
FROM counted AS c
JOIN predictions_key_labels AS k ON k.id = c.key_labels_id
GROUP BY 1, 2, 3;
