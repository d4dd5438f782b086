"""Pages of HTML that hold all they show: the reports of a store and of runs."""
