"""What a step costs on 8, 64 and 512 devices, estimated from its measured time on one.

Assumptions: every device computes as large a part as the one that was measured. A reduction is a ring: each rank sends
2(n - 1)/n times the gradient in fp32, in 2(n - 1) messages. Nothing overlaps with the backward pass, so these are upper
bounds.
"""

import argparse
import csv
from pathlib import Path

DEVICES = (8, 64, 512)
# reductions per step, by whether ε is each rank's own
METHODS = {"sgd": (1, 1), "sam": (1, 2), "rst": (1, 1.5), "gsam": (2, 2)}


def bytes_per_reduction(parameters: int, devices: int) -> float:
    """What each rank sends to reduce an fp32 gradient in a ring."""
    return 4 * parameters * 2 * (devices - 1) / devices


def reduction_seconds(parameters: int, devices: int, bandwidth: float, latency: float) -> float:
    """The time of a ring reduction without overlap; bandwidth in bytes per second, latency in seconds per message."""
    return bytes_per_reduction(parameters, devices) / bandwidth + 2 * (devices - 1) * latency


def table(steps: dict[str, float], parameters: int, bandwidth: float, latency: float) -> str:
    """A row per method: its measured step, and the estimates relative to it.

    Args:
        steps: milliseconds per step on one device.
        parameters: of the network.
        bandwidth: bytes per second.
        latency: seconds per message.
    """
    head = ["", "measured ms on 1", *(f"× on {n}" for n in DEVICES)]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for name, of_kinds in METHODS.items():
        for label, reductions in zip((name, f"{name}, one ε"), dict.fromkeys(of_kinds), strict=False):
            seconds = [reductions * reduction_seconds(parameters, n, bandwidth, latency) for n in DEVICES]
            slower = [f"{1 + each * 1e3 / steps[name]:.3f}" for each in seconds]
            lines.append(f"| {label} | {steps[name]:.1f} | {' | '.join(slower)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=Path, help="a file of benchmarks.step")
    parser.add_argument("--parameters", type=int, required=True, help="of the network")
    parser.add_argument("--gigabytes-per-second", type=float, default=1.25, help="of the link (default: 10 Gbit/s)")
    parser.add_argument("--microseconds", type=float, default=50.0, help="per message")
    args = parser.parse_args()
    steps = {row["optimizer"]: float(row["step_ms"]) for row in csv.DictReader(args.steps.open())}
    print(table(steps, args.parameters, args.gigabytes_per_second * 1e9, args.microseconds * 1e-6))


if __name__ == "__main__":
    main()
