"""What the benchmarks share: fio, the servers under test, rounds, counts, the report and the plot."""
