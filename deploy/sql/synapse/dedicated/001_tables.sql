-- A dedicated SQL pool of Synapse: predictions as they are in the lake. Run once in the pool, with sqlcmd or Synapse
-- Studio: it has no DDL in transactions, so voltmill db apply does not do it. Running it again makes what is missing.

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
    source_offset bigint NOT NULL
)
WITH (DISTRIBUTION = HASH (device_id), CLUSTERED COLUMNSTORE INDEX ORDER (event_time));
GO

-- The manifest: which files of the lake were loaded, by the numbers they hold (connectors/lake_files.py). A merged file
-- holds the numbers of those it was made of, so what was loaded before a compaction is known after it.
IF OBJECT_ID(N'dbo.loaded_files', N'U') IS NULL
CREATE TABLE dbo.loaded_files (
    store nvarchar(200) COLLATE Latin1_General_100_BIN2 NOT NULL,
    shard nvarchar(20) COLLATE Latin1_General_100_BIN2 NOT NULL,
    first_number bigint NOT NULL,
    last_number bigint NOT NULL,
    path nvarchar(1000) NOT NULL,
    loaded_at datetime2(0) NOT NULL
)
WITH (DISTRIBUTION = ROUND_ROBIN, HEAP);
GO

-- One row, which each load changes first: so loads come one after the other, from the check to the commit.
IF OBJECT_ID(N'dbo.load_turn', N'U') IS NULL
CREATE TABLE dbo.load_turn (
    turn bigint NOT NULL
)
WITH (DISTRIBUTION = ROUND_ROBIN, HEAP);
GO

IF NOT EXISTS (SELECT 1 FROM dbo.load_turn)
INSERT INTO dbo.load_turn (turn) VALUES (0);
GO

IF OBJECT_ID(N'dbo.voltmill_load', N'P') IS NOT NULL
DROP PROCEDURE dbo.voltmill_load;
GO

-- Load one file: each of its rows is there once, whatever was loaded before, and wherever this is ended.
-- @url: of the file. @store, @shard, @first, @last: what its path says. @credential: the text in COPY's CREDENTIAL.
-- Keys are not enforced here, so rows whose key is there are left out: those of a merged file that were loaded alone.
CREATE PROCEDURE dbo.voltmill_load
    @url nvarchar(1000),
    @store nvarchar(200),
    @shard nvarchar(20),
    @first bigint,
    @last bigint,
    @credential nvarchar(1000) = N'IDENTITY = ''Managed Identity'''
AS
BEGIN
    SET NOCOUNT ON;

    CREATE TABLE #stage (
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
        source_offset bigint NOT NULL
    )
    WITH (DISTRIBUTION = HASH (device_id), HEAP);

    DECLARE @copy nvarchar(4000);
    SET @copy = N'COPY INTO #stage FROM ''' + REPLACE(@url, N'''', N'''''')
        + N''' WITH (FILE_TYPE = ''PARQUET'', COMPRESSION = ''Snappy'', CREDENTIAL = (' + @credential + N'))';
    EXEC sp_executesql @copy;

    BEGIN TRANSACTION;

    UPDATE dbo.load_turn SET turn = turn + 1;

    INSERT INTO dbo.predictions (
        device_id,
        event_time,
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
    )
    SELECT
        s.device_id,
        s.event_time,
        s.target,
        s.model_sha256,
        s.value,
        s.lo90,
        s.hi90,
        s.unit,
        s.model_name,
        s.model_version,
        s.mode,
        s.quality_bits,
        s.source,
        s.source_partition,
        s.source_offset
    FROM #stage AS s
    WHERE
        NOT EXISTS (
            SELECT 1
            FROM dbo.predictions AS p
            WHERE
                p.device_id = s.device_id
                AND p.event_time = s.event_time
                AND p.target = s.target
                AND p.model_sha256 = s.model_sha256
        );

    INSERT INTO dbo.loaded_files (store, shard, first_number, last_number, path, loaded_at)
    SELECT @store, @shard, @first, @last, @url, GETUTCDATE()
    WHERE
        NOT EXISTS (
            SELECT 1
            FROM dbo.loaded_files AS f
            WHERE f.store = @store AND f.shard = @shard AND f.first_number = @first AND f.last_number = @last
        );

    COMMIT TRANSACTION;

    SELECT COUNT_BIG(*) AS rows_read FROM #stage;
END;
GO
