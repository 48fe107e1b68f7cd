"""What a clock says: benchmarks that each leave a `BenchRecord` behind."""
