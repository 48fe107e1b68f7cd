"""Our formulas give TRL's losses and metrics from TRL's own log-probabilities: the conventions are the same ones.

`oracle/make_numbers.py` made the numbers; `test_trl.py` holds the objectives against them.
"""

import numpy as np
import pytest
from objectives import formulas
from objectives.oracle_files import CASES, MAX_COMPLETION, batch_of, chosen_and_rejected, trained

POLICY = [name for name, case in CASES.items() if case["settings"]["kind"] == "grpo"]
PREFERENCES = [name for name, case in CASES.items() if case["settings"]["kind"] == "dpo"]
REWARDS = [name for name, case in CASES.items() if case["settings"]["kind"] == "reward"]


def agree(ours, theirs):
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["sft", "lengths"])
def test_supervised(name):
    batch, case = batch_of(name), CASES[f"sft {name}"]
    agree(formulas.sft(batch["log_p"], trained(batch)), case["loss"])
    agree(batch["entropy"][trained(batch)].mean(), case["metrics"]["entropy"])


def loss_of(name):
    """Of a case's settings in TRL's names, the arguments of `formulas.preference`."""
    settings = CASES[name]["settings"]
    losses = settings.get("loss_type", "orpo")  # what ORPOTrainer has, which has no such setting
    losses = [losses] if isinstance(losses, str) else losses
    sft = dict(zip(losses, settings.get("loss_weights", [1.0]), strict=True)).get("sft", 0.0)
    given = {"gamma": settings.get("simpo_gamma", 0.0), "label_smoothing": settings.get("label_smoothing", 0.0)}
    return {"loss": losses[0], "beta": settings["beta"], "sft": sft} | given


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences(name):
    case, options = CASES[name], loss_of(name)
    needs_reference = isinstance(case["settings"].get("loss_type"), list)  # DPOTrainer's
    chosen, rejected = chosen_and_rejected(case["batch"], reference=needs_reference, prompt=options["loss"] == "orpo")
    agree(formulas.preference(chosen, rejected, **options), case["loss"])
    if options["loss"] not in formulas.MEANS or needs_reference:
        ours = formulas.preference_metrics(chosen, rejected, beta=options["beta"])
        agree(ours["accuracy"], case["metrics"]["rewards/accuracies"])
        agree(ours["chosen_reward"], case["metrics"]["rewards/chosen"])
        assert ours["margin"] == pytest.approx(case["metrics"]["rewards/margins"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", REWARDS)
def test_rewards(name):
    case, rewards = CASES[name], batch_of("pairs")["rewards"]
    chosen, rejected = np.split(rewards, 2)
    agree(formulas.reward(chosen, rejected, centre=case["settings"]["centre"]), case["loss"])
    agree((chosen > rejected).mean(), case["metrics"]["accuracy"])
    agree(rewards.mean(), case["metrics"]["mean_reward"])


@pytest.mark.parametrize("name", POLICY)
def test_policy_gradients(name):
    case = CASES[name]
    settings, batch = case["settings"], batch_of(case["batch"])
    options = {
        "old": batch["log_p"] if name.endswith("first") else batch["old"],
        "reference": batch["reference"] if settings["kl"] else None,
        "clip": settings["clip"],
        "kl_times_ratio": settings["use_bias_correction_kl"],
        "sequence": settings.get("importance_sampling_level") == "sequence",
    }
    of_all = (batch["log_p"], trained(batch), batch["advantages"])
    aggregate = {"kl": settings["kl"], "aggregate": settings["loss_type"], "max_completion": MAX_COMPLETION}
    agree(formulas.policy(*of_all, **options, **aggregate), case["loss"])
    ours = formulas.policy_metrics(*of_all, **options, entropy=batch["entropy"])
    logged = {"low": "clip_ratio/low_mean", "high": "clip_ratio/high_mean", "entropy": "entropy", "kl": "kl"}
    for key, value in ours.items():
        agree(value, case["metrics"][logged[key]])


def test_the_batches_try_what_they_should():
    """Completions of 1 and 30 tokens, both clips and what they leave, a hinge with pairs on both sides."""
    for name in ("lengths", "pairs", "groups"):
        assert {1, 30} <= set(batch_of(name)["completion"])
    for name in ("groups", "tempered"):
        batch = batch_of(name)
        mask, positive = trained(batch), batch["advantages"][:, None] > 0
        for sequence in (False, True):
            r = formulas.ratios(batch["log_p"], batch["old"], mask, sequence=sequence)
            mask_r = mask[:, :1] | True if sequence else mask
            for beyond in (r < 0.8, r > 1.28):
                assert (beyond & mask_r & positive).any()
                assert (beyond & mask_r & (batch["advantages"][:, None] < 0)).any()
    chosen, rejected = chosen_and_rejected("pairs", reference=True)
    h = formulas.ratio(chosen, mean=False) - formulas.ratio(rejected, mean=False)
    assert (0.5 * h > 1).any()
    assert (0.5 * h < 1).any()
