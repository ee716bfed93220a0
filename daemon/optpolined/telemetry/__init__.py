"""What the daemon tells others: a status, a live view of it, metrics, and the report of a run."""
