"""Multi-view testing, metrics, frozen features and the linear probe."""
