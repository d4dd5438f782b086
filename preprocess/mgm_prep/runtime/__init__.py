"""The Dask cluster, the lock of a store, signals, and the crash journal."""
