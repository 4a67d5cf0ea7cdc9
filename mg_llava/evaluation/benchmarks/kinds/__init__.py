"""The kinds of benchmarks, one module each; a new one derives from `Benchmark` or `TableBenchmark`."""
