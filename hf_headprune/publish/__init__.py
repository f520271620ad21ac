"""Say what was done: the report, measured latency, and the plots."""
