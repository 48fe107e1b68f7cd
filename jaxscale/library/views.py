"""Results as a notebook shows them: the verbs' own tables, as HTML or as text. No jax."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, Self

from jaxscale import config as cfg
from jaxscale.console import evaluate as console_evaluate
from jaxscale.console import explain as console_explain
from jaxscale.console import plan as console_plan
from jaxscale.console.recorded import as_html, as_text
from jaxscale.explain.story import Explanation
from jaxscale.predict.plan import Plan
from jaxscale.serving.evaluated import Evaluation

ROWS = 10  # of a plan


class View(ABC):
    """A result that shows itself: as HTML in a notebook, as text at a prompt."""

    @abstractmethod
    def show(self) -> None:
        """Print what the verb prints."""

    def _repr_html_(self) -> str:
        return as_html(self.show)

    def __repr__(self) -> str:
        return as_text(self.show)

    @classmethod
    def of(cls, base: Any, **more: Any) -> Self:
        """The same values, with those of the view."""
        return cls(**{f.name: getattr(base, f.name) for f in fields(base)}, **more)


@dataclass(frozen=True, repr=False)
class PlanView(View, Plan):
    """A `predict.plan.Plan`, for `config`. `advice`: what would do where nothing fits."""

    config: cfg.Config | None = None
    advice: list[str] = field(default_factory=list)

    def show(self) -> None:
        assert self.config is not None
        console_plan.show_plan(self.config, self, [], None, rows=ROWS, out=None, advice=self.advice)


@dataclass(frozen=True, repr=False)
class ExplanationView(View, Explanation):
    """An `explain.story.Explanation`; `backward`: show the backward pass too."""

    backward: bool = False

    def show(self) -> None:
        console_explain.show(self, backward=self.backward)


@dataclass(frozen=True, repr=False)
class EvaluationView(View, Evaluation):
    """A `serving.evaluated.Evaluation`."""

    def show(self) -> None:
        console_evaluate.show(self)
