"""What a rollout says at its end."""

from typing import Any


def lines(summary: dict[str, Any]) -> list[str]:
    """Of its model and samples, and of their rewards where it has any."""
    number = f"{summary['samples']} sample{'s' if summary['samples'] > 1 else ''}"
    summary_lines = [
        f"{summary['model']}: {summary['prompts']} prompts, {number} each",
        f"{summary['mean_tokens']:.1f} tokens a sample, {summary['cut_off']:.1%} cut off, "
        f"{summary['distinct']:.1%} distinct within a prompt",
    ]
    if summary["no_reward"] is None:
        return summary_lines
    if summary["reward"] is None:
        return [*summary_lines, "no sample has a reward"]
    best = ", ".join(f"{value:.4g} of {n}" for n, value in summary["best_of"].items())
    return [*summary_lines, f"mean reward {summary['reward']:.4g}, {summary['no_reward']} without; the best: {best}"]
