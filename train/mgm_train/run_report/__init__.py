"""The report of runs: one page of HTML."""
