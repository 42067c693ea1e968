-- Which of the files beside this one were applied.

CREATE TABLE IF NOT EXISTS voltmill_schema (
    version integer PRIMARY KEY,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamp with time zone NOT NULL DEFAULT now()
);
