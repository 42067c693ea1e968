"""The chaos suite: a live flow under kill -9, outages and restarts, compared row by row with what was published.

    make chaos [SEED=n] [KILLS=n]       the long form: every scenario and fault, a table, tests/chaos/latest.json

A publisher keeps a ledger of what it sent and what the broker confirmed; a driver breaks things at
times drawn from the seed; a checker compares ledger, lake, dead letters and database at the end.
"""
