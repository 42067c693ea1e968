-- Which of the files beside this one were applied.

IF OBJECT_ID(N'dbo.voltmill_schema', N'U') IS NULL
CREATE TABLE dbo.voltmill_schema (
    version int NOT NULL CONSTRAINT voltmill_schema_key PRIMARY KEY,
    name nvarchar(100) NOT NULL,
    sha256 nchar(64) NOT NULL,
    applied_at datetime2(0) NOT NULL CONSTRAINT voltmill_schema_now DEFAULT SYSUTCDATETIME()
);
GO
