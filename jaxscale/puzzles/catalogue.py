"""The ten puzzles in order of difficulty: names, ideas, and what to think about when a check fails. No jax."""

from dataclasses import dataclass
from pathlib import Path

EXERCISES = Path(__file__).parent / "exercises"
CHAPTERS = {
    2: "the four cases",
    4: "data parallel and FSDP",
    5: "tensor and sequence parallel",
}


@dataclass(frozen=True)
class Puzzle:
    """One exercise.

    Attributes:
        function: what the learner's file must define, and the grader calls.
        line: what it is about, in a line.
        idea: the collective that it turns on.
        chapter: of the course.
        think: check -> what to think about when it fails; never the solution.
    """

    number: int
    name: str
    function: str
    line: str
    idea: str
    chapter: int
    think: dict[str, str]

    @property
    def file(self) -> Path:
        """The exercise as it is shipped."""
        return EXERCISES / f"{self.number:02d}_{self.name.replace('-', '_')}.py"


PUZZLES = (
    Puzzle(
        1, "specs", "specs", "read out[i_data, k_tensor]: which device holds which block",
        "nothing is sent (case 1)", 2,
        {
            "layout": "Read the subscripts dim by dim: the first entry of a P is for i, the second for k; in a tuple "
            "the order counts.",
            "communication": "A result that is laid out otherwise than its operands must be sent there. Which axes, in "
            "which order, cut i and k in the operands that have them?",
        },
    ),
    Puzzle(
        2, "operands", "layouts", "lay out the operands so that scores need nothing from elsewhere",
        "nothing is sent (case 1)", 2,
        {
            "communication": "Which dims do q and k share with the scores, and which one is summed? A cut through "
            "the summed dim, or one that the result does not have, must be mended by sending.",
            "memory": "Nothing is sent, but devices hold more than their block of scores is made of. Which batch "
            "rows and which heads does a device need?",
        },
    ),
    Puzzle(
        3, "partial-sums", "project", "partial sums: keep your rows of the total",
        "one reduce-scatter (case 3)", 2,
        {
            "numbers": "Each device has one term of the sum. Have all the terms met, each once, in the rows you "
            "return?",
            "layout": "Each device is to return its own B/n rows.",
            "communication": "You keep B/n rows of the sum. Why should the other rows of it come to you?",
        },
    ),
    Puzzle(
        4, "all-reduce", "all_reduce", "all-reduce from ppermute",
        "2(n-1) ring steps of 1/n of the array", 4,
        {
            "numbers": "Follow one chunk: where does its sum start, whom does it visit, and who has it when it is "
            "whole?",
            "communication": "A device need not see whole arrays, only sums. How many bytes does a step send if only "
            "one chunk goes round?",
        },
    ),
    Puzzle(
        5, "fsdp", "layer", "FSDP's way there and way back",
        "all-gather, then reduce-scatter (case 4)", 4,
        {
            "numbers": "On the way back each device has a gradient from its own rows. Is one device's gradient the "
            "whole one? And has each device what belongs to the rows of w that it owns?",
            "communication": "The way back of a gather has the gather's size, not more: a device needs only the "
            "gradient of what it owns.",
        },
    ),
    Puzzle(
        6, "accumulation", "gradients", "many microbatches, one sum over devices",
        "one all-reduce, after the loop", 4,
        {
            "numbers": "Sum over microbatches and over devices: is each of them counted, and once?",
            "communication": "What is sent inside a loop is sent each time round. Does it have to be inside?",
            "memory": "Something of every microbatch is alive at one time: activations, where they are one batch again "
            "or where a Python loop writes all of them into one long program; gradients, where they are stacked before "
            "they are added. A lax.scan works them off one by one, and its carry is one sum.",
        },
    ),
    Puzzle(
        7, "megatron", "mlp", "an MLP over two matmuls with one collective",
        "one all-reduce for two matmuls", 5,
        {
            "numbers": "What is gelu applied to: whole sums? And what is each device's h · down: the whole result, "
            "or a term of it?",
            "communication": "Cut up so that a device has whole columns of h; how must down be cut to want just "
            "those?",
            "memory": "Each device is to hold 1/n of each weight. Are both cut?",
        },
    ),
    Puzzle(
        8, "cross-entropy", "cross_entropy", "the loss, with the vocabulary split",
        "three all-reduces of one number a row", 5,
        {
            "numbers": "Whose largest logit is subtracted: this device's, or the row's? Which devices add something "
            "for the target? And is what was subtracted put back?",
            "communication": "Of each row only a largest and two sums need to cross: nothing with V in its size, and "
            "not every device's own number.",
            "memory": "Some devices hold more than their own part of the vocabulary.",
        },
    ),
    Puzzle(
        9, "collective-matmul", "matmul", "a matmul whose all-gather is hidden in ring steps",
        "n-1 ring steps instead of an all-gather", 5,
        {
            "numbers": "After s steps round the ring, whose block do you hold, and which rows of y are they?",
            "communication": "n blocks are multiplied, but one of them is your own: how many have to arrive?",
            "memory": "All of x is on a device at one time. What may be forgotten once it is multiplied?",
        },
    ),
    Puzzle(
        10, "ring-attention", "attention", "attention over a sequence that is split: the online softmax",
        "n-1 ring steps of keys and values", 5,
        {
            "numbers": "When the largest score grows, both sums were made with the old one: by what factor do they "
            "change?",
            "communication": "The last block met need not be handed on, and the sums need not travel at all.",
            "memory": "Blocks of k and v pile up on a device, or scores of [T/n, T] do. lax.fori_loop holds one "
            "carry; a Python loop is one long program, in which all the blocks may arrive at once.",
        },
    ),
)  # fmt: skip


def find(name: str) -> Puzzle:
    """By name or number. Raises ValueError with what there is."""
    for puzzle in PUZZLES:
        if name in (puzzle.name, str(puzzle.number), puzzle.file.name):
            return puzzle
    raise ValueError(f"no puzzle {name!r}; there are {', '.join(p.name for p in PUZZLES)}, or 1 to {len(PUZZLES)}")
