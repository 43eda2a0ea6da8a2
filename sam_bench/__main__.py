"""python -m sam_bench optimizer=rst schedule=linear: the one trainer entry point, see `sam_bench.command`."""

from sam_bench.command import console

if __name__ == "__main__":
    console()
