"""What a run reads: rows to train on, and what its evaluations measure."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from jaxscale import config as cfg
from jaxscale.data.rows import RowSource
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.rollouts.worth import Judges
from jaxscale.training.evaluation import Measurer, ValidationLoss, open_measurers
from jaxscale.training.feed import open_run_tokenizer, open_source
from jaxscale.training.log_probs import References


@dataclass(frozen=True)
class Inputs:
    """A run's data, opened.

    Attributes:
        tokenizer: the one that made the tokens; None: they carry none.
        judges: what says how good samples are, of a run that trains on samples.
    """

    rows: RowSource
    tokenizer: Tokenizer | None
    judges: Judges
    measurers: list[Measurer]

    def with_references(self, references: References) -> "Inputs":
        """The same with the reference column that the objective reads beside the data."""
        measurers = [
            replace(one, rows=references.added(one.rows, "validation")) if isinstance(one, ValidationLoss) else one
            for one in self.measurers
        ]
        return replace(self, rows=references.added(self.rows, "train"), measurers=measurers)


@contextlib.contextmanager
def open_inputs(config: cfg.Config, say: Callable[[str], None]) -> Iterator[Inputs]:
    """Open the data, and start the processes of reward functions; these end with the context.

    Raises:
        ValueError: data, abilities or rewards that cannot be used.
    """
    rows, tokenizer = open_source(config, "train", say=say), open_run_tokenizer(config)
    assert rows is not None
    with contextlib.closing(Judges(config, tokenizer, say)) as judges:
        yield Inputs(rows, tokenizer, judges, open_measurers(config, tokenizer, judges, say=say))
