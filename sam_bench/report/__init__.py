"""From `result.json` and `metrics.csv` to tables, statistics, figures and a page. Imports no torch."""
