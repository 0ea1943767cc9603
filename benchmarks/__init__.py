"""Speed and memory, always as ratios of things measured in one run: `python -m benchmarks.<name> --help`."""
