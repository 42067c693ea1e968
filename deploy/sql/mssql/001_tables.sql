-- The tables that voltmill writes. Texts are Unicode and compared by code point, as everywhere else. A clustered key
-- may have 900 bytes: device_id takes 512 of them (256 bytes of UTF-8 at most), target 32, model_sha256 128.
-- Each statement stands alone: GO parts them for sqlcmd and for voltmill alike.

IF OBJECT_ID(N'dbo.predictions', N'U') IS NULL
CREATE TABLE dbo.predictions (
    device_id nvarchar(256) COLLATE Latin1_General_100_BIN2 NOT NULL,
    event_time datetime2(6) NOT NULL,
    target nvarchar(16) COLLATE Latin1_General_100_BIN2 NOT NULL,
    model_sha256 nvarchar(64) COLLATE Latin1_General_100_BIN2 NOT NULL,
    value real NULL,
    lo90 real NULL,
    hi90 real NULL,
    unit nvarchar(16) COLLATE Latin1_General_100_BIN2 NOT NULL,
    model_name nvarchar(128) COLLATE Latin1_General_100_BIN2 NOT NULL,
    model_version nvarchar(64) COLLATE Latin1_General_100_BIN2 NOT NULL,
    mode nvarchar(16) COLLATE Latin1_General_100_BIN2 NOT NULL,
    quality_bits bigint NOT NULL,
    source nvarchar(64) COLLATE Latin1_General_100_BIN2 NOT NULL,
    source_partition nvarchar(1024) COLLATE Latin1_General_100_BIN2 NOT NULL,
    source_offset bigint NOT NULL,
    CONSTRAINT predictions_key PRIMARY KEY CLUSTERED (device_id, event_time, target, model_sha256)
);
GO

IF OBJECT_ID(N'dbo.alerts', N'U') IS NULL
CREATE TABLE dbo.alerts (
    alert_id nvarchar(64) COLLATE Latin1_General_100_BIN2 NOT NULL,
    device_id nvarchar(256) COLLATE Latin1_General_100_BIN2 NOT NULL,
    code nvarchar(64) COLLATE Latin1_General_100_BIN2 NOT NULL,
    severity nvarchar(16) COLLATE Latin1_General_100_BIN2 NOT NULL,
    opened_at datetime2(6) NOT NULL,
    closed_at datetime2(6) NULL,
    value real NULL,
    [limit] real NULL,
    quality_bits bigint NOT NULL,
    CONSTRAINT alerts_key PRIMARY KEY CLUSTERED (alert_id)
);
GO
