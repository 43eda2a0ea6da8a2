"""What the speed claims rest on: `make bench` measures all of it, `python -m benchmarks.step` and the like a part."""
