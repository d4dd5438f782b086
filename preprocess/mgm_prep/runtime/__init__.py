"""Where and how work runs: the Dask cluster, the lock of a store, the crash journal."""
