"""Sources and sinks, one file per outside system."""
