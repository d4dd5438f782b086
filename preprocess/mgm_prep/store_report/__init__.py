"""The report of a store: one page of HTML."""
