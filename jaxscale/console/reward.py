"""What is said of scores."""

from typing import Any


def lines(summary: dict[str, Any]) -> list[str]:
    """Of all texts, and of the pairs where there are any."""
    summary_lines = [f"{summary['model']}: {summary['texts']:,} texts, mean score {summary['mean']:.4f}, "
             f"standard deviation {summary['std']:.4f}"]  # fmt: skip
    if "pairs" in summary:
        summary_lines.append(
            f"{summary['pairs']:,} pairs: accuracy {summary['accuracy']:.1%}, margin {summary['margin']:.4f} "
            f"(chosen {summary['chosen']:.4f}, rejected {summary['rejected']:.4f})"
        )
    return summary_lines
