"""TRL's own losses, gradients, log-probabilities and metrics of a tiny Llama, written as small files beside this one.

    python3.11 -m venv /tmp/trl
    /tmp/trl/bin/pip install -e '.[trl]'    # torch 2.13.0, trl 1.16.0, transformers 5.24.0, accelerate, datasets
    /tmp/trl/bin/python tests/objectives/oracle/make_numbers.py     # half a minute; needs no network

The test suite reads the files and needs neither torch nor trl. Every loss is what `compute_loss` of a trainer returns:
SFTTrainer, DPOTrainer, RewardTrainer, GRPOTrainer, and of `trl.experimental` CPOTrainer (simpo) and ORPOTrainer (orpo).

    llama/        the model, as `save_pretrained` writes it: 2 layers, D 32, 61 tokens, float32, nothing tied
    batches.npz   BATCH/ARRAY, rows padded on the right; what TRL says of the token at t+1 stands at t
    gradients.npz CASE/PARAMETER, every fourth row of some parameters; CASE/norms and CASE/largest, of all of them
    cases.json    each case's batch, settings, loss and metrics; the names of all parameters; versions
"""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from texts import ADVANTAGES, CHOSEN, END, EVEN, GROUPS, LENGTHS, PAD, REJECTED, ROW, SFT, SHIFTS, UNLIKE, Rows, padded
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

HERE = Path(__file__).parent
V, D = 61, 32
MODEL = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 128, "tie_word_embeddings": False, "pad_token_id": PAD,
    "eos_token_id": END, "bos_token_id": None,
}  # fmt: skip
MAX_COMPLETION = 32  # dr_grpo divides by it; the longest completion is 30
KEPT = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight",
        "model.norm.weight", "lm_head.weight", "score.weight")  # fmt: skip
COMMON = {
    "output_dir": "/tmp/trl-numbers", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
    "report_to": "none", "per_device_train_batch_size": 8, "disable_tqdm": True,
}  # fmt: skip


# --- the model, its reference, and the batches ------------------------------------------------------------------


def random_model() -> transformers.PreTrainedModel:
    """Weights large enough that probabilities are far from even; norms are not 1."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**MODEL, attn_implementation="eager"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_((0.5 if "embed_tokens" in name else 0.12) * torch.randn_like(p))
    return model


def loaded(kind: Any = transformers.LlamaForCausalLM, **options: Any) -> transformers.PreTrainedModel:
    return kind.from_pretrained(HERE / "llama", attn_implementation="eager", dtype=torch.float32, **options)


def reference_model() -> transformers.PreTrainedModel:
    """Every weight times 0.6: another distribution, which needs no file."""
    model = loaded()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.6)
    return model.eval()


def reward_model() -> transformers.PreTrainedModel:
    """The same body and a score, which is stored in batches.npz."""
    model = loaded(transformers.LlamaForSequenceClassification, num_labels=1)
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(score()))
    return model


def score() -> np.ndarray:
    return (0.3 * np.random.default_rng(7).standard_normal((1, D))).astype(np.float32)


def of_all_tokens(model: transformers.PreTrainedModel, examples: Rows, name: str = "log_probs") -> np.ndarray:
    """What a trainer's patched model says of each real token, as the trainer calls it."""
    batch = padded(examples)
    tokens = torch.tensor(batch["tokens"], dtype=torch.long)
    real = torch.arange(tokens.shape[1]) < torch.tensor(batch["prompt"] + batch["completion"])[:, None]
    labels = tokens.masked_fill(~real, -100)
    with torch.no_grad():
        found = model(tokens, attention_mask=real.long(), labels=labels, use_cache=False, fused_lm_head=True)
    values = np.zeros(tokens.shape, np.float32)
    values[:, :-1] = found[name].numpy()[:, -(tokens.shape[1] - 1) :]
    return values


# --- trainers ---------------------------------------------------------------------------------------------------


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    vocabulary = {f"t{i}": i for i in range(END)} | {"<end>": END, "<pad>": PAD}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")


TEXT = [{"prompt": "t1 t2", "completion": "t3", "chosen": "t3 t4", "rejected": "t5"}] * 8


def trainer_of(kind: Any, config: Any, model: Any, columns: tuple[str, ...], **more: Any) -> Any:
    """Its dataset is made up: the batches are given to `compute_loss`."""
    data = datasets.Dataset.from_list([{name: row[name] for name in columns} for row in TEXT])
    trainer = kind(model=model, args=config, train_dataset=data, processing_class=tokenizer(), **more)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


class Numbers:
    """What is written in the end."""

    def __init__(self) -> None:
        self.batches: dict[str, np.ndarray] = {"score": score()}
        self.gradients: dict[str, np.ndarray] = {}
        self.cases: dict[str, dict[str, Any]] = {}
        self.parameters: dict[str, list[str]] = {}

    def add_batch(self, name: str, **arrays: np.ndarray) -> None:
        self.batches |= {f"{name}/{key}": value for key, value in arrays.items()}

    def add(self, case: str, batch: str, settings: dict[str, Any], trainer: Any, inputs: Callable[[], dict]) -> None:
        """One call of `compute_loss`, its gradient, and what it logs of it."""
        trainer.model.zero_grad()
        metrics = (trainer._metrics if hasattr(trainer, "_metrics") else trainer._stored_metrics)["train"]
        metrics.clear()
        loss = trainer.compute_loss(trainer.model, inputs())
        loss.backward()
        found = {name: p.grad.numpy().copy() for name, p in trainer.model.named_parameters()}
        self.parameters.setdefault("score" if "score.weight" in found else "lm_head", [*found])
        self.gradients |= {f"{case}/{n}": g[::4] if g.shape[0] > 1 else g for n, g in found.items() if n in KEPT}
        self.gradients[f"{case}/norms"] = np.array([np.linalg.norm(g.astype(np.float64)) for g in found.values()])
        self.gradients[f"{case}/largest"] = np.array([np.abs(g).max() for g in found.values()])
        logged = {key: float(np.mean(values)) for key, values in metrics.items() if key != "num_tokens"}
        self.cases[case] = {"batch": batch, "settings": settings, "loss": loss.item(), "metrics": logged}
        print(f"{case:34} {loss.item():.7f}")

    def write(self) -> None:
        np.savez_compressed(HERE / "batches.npz", **self.batches)
        np.savez_compressed(HERE / "gradients.npz", **self.gradients)
        names = ("torch", "trl", "transformers", "accelerate", "datasets")
        about = {"versions": {n: metadata.version(n) for n in names}, "max_completion": MAX_COMPLETION}
        about |= {"parameters": self.parameters, "cases": self.cases}
        (HERE / "cases.json").write_text(json.dumps(about, indent=1) + "\n")


# --- the cases --------------------------------------------------------------------------------------------------


def sft(numbers: Numbers) -> None:
    trainer = trainer_of(SFTTrainer, SFTConfig(**COMMON), loaded(), ("prompt", "completion"))
    for name, examples in (("sft", SFT), ("lengths", LENGTHS)):
        rows = [{"input_ids": p + a, "labels": [-100] * len(p) + a} for p, a in examples]
        log_p, entropy = (of_all_tokens(trainer.model, examples, of) for of in ("log_probs", "entropy"))
        numbers.add_batch(name, **padded(examples), log_p=log_p, entropy=entropy)
        numbers.add(f"sft {name}", name, {"kind": "sft"}, trainer, lambda rows=rows: trainer.data_collator(rows))


def pairs(chosen: Rows, rejected: Rows) -> list[dict[str, list[int]]]:
    both = zip(chosen, rejected, strict=True)
    return [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for (p, c), (_, r) in both]


def dpo(numbers: Numbers) -> None:
    kinds = {
        "sigmoid": {"loss_type": ["sigmoid"]},
        "ipo": {"loss_type": ["ipo"]},
        "hinge": {"loss_type": ["hinge"], "beta": 0.5},  # some pairs are beyond the hinge
        "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
        "sigmoid sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
    }
    columns = ("prompt", "chosen", "rejected")
    for name, options in kinds.items():
        options = {"beta": 0.1, **options}
        config = DPOConfig(**COMMON, **options)
        trainer = trainer_of(DPOTrainer, config, loaded(), columns, ref_model=reference_model())
        for batch, chosen, rejected in (("pairs", CHOSEN, REJECTED), ("even", EVEN, UNLIKE)):
            if name == "sigmoid":
                log_p, entropy = (of_all_tokens(trainer.model, chosen + rejected, x) for x in ("log_probs", "entropy"))
                reference = of_all_tokens(trainer.ref_model, chosen + rejected)
                numbers.add_batch(batch, **padded(chosen + rejected), log_p=log_p, entropy=entropy, reference=reference)
            if batch == "pairs" or "sft" in name:
                case, rows = f"dpo {name}{' even' * (batch == 'even')}", pairs(chosen, rejected)
                numbers.add(
                    case, batch, {"kind": "dpo", **options}, trainer, lambda t=trainer, r=rows: t.data_collator(r)
                )


def without_reference(numbers: Numbers) -> None:
    """Of CPOTrainer simpo and smoothed labels, which DPOTrainer's sigmoid ignores; orpo of ORPOTrainer.

    ORPOTrainer trains the prompt too.
    """
    columns, common = ("prompt", "chosen", "rejected"), {"kind": "dpo"}
    simpo = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0}
    smoothed = {"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.1, "cpo_alpha": 0.0}
    trainers = {
        "simpo": (trainer_of(CPOTrainer, CPOConfig(**COMMON, **simpo), loaded(), columns), simpo),
        "smoothed": (trainer_of(CPOTrainer, CPOConfig(**COMMON, **smoothed), loaded(), columns), smoothed),
        "orpo": (trainer_of(ORPOTrainer, ORPOConfig(**COMMON, beta=0.1), loaded(), columns), {"beta": 0.1}),
    }

    def rows(chosen: Rows, rejected: Rows) -> list[dict[str, list[int]]]:
        out = []
        for (p, c), (_, r) in zip(chosen, rejected, strict=True):
            row = {}
            for name, answer in (("chosen", c), ("rejected", r)):
                row[f"{name}_input_ids"], row[f"{name}_labels"] = p + answer, [-100] * len(p) + answer
                row[f"{name}_attention_mask"] = [1] * len(p + answer)
            out.append(row)
        return out

    for name, (trainer, options) in trainers.items():
        of_pairs = rows(CHOSEN, REJECTED)
        numbers.add(f"dpo {name}", "pairs", common | options, trainer, lambda t=trainer, r=of_pairs: t.data_collator(r))
    of_even = rows(EVEN, UNLIKE)
    numbers.add("dpo orpo even", "even", common | options, trainer, lambda: trainer.data_collator(of_even))


def reward(numbers: Numbers) -> None:
    rows = [{"chosen_ids": p + c, "rejected_ids": p + r} for (p, c), (_, r) in zip(CHOSEN, REJECTED, strict=True)]
    for name, centre in (("plain", None), ("centred", 0.01)):
        config = RewardConfig(**COMMON, center_rewards_coefficient=centre)
        trainer = trainer_of(RewardTrainer, config, reward_model(), ("prompt", "chosen", "rejected"))
        settings = {"kind": "reward", "centre": centre or 0.0}
        numbers.add(f"reward {name}", "pairs", settings, trainer, lambda t=trainer: t.data_collator(rows))
        with torch.no_grad():
            inputs = trainer.data_collator(rows)
            numbers.add_batch("pairs", rewards=trainer.model(**inputs, use_cache=False).logits[:, 0].numpy())


def grpo_inputs() -> dict[str, torch.Tensor]:
    """Prompts padded on the left, completions on the right, as the trainer's rollouts are."""
    longest_p, longest_c = max(len(p) for p, _ in GROUPS), max(len(c) for _, c in GROUPS)
    left = [[PAD] * (longest_p - len(p)) + p for p, _ in GROUPS]
    right = [c + [PAD] * (longest_c - len(c)) for _, c in GROUPS]
    return {
        "prompt_ids": torch.tensor(left),
        "prompt_mask": torch.tensor([[0] * (longest_p - len(p)) + [1] * len(p) for p, _ in GROUPS]),
        "completion_ids": torch.tensor(right),
        "completion_mask": torch.tensor([[1] * len(c) + [0] * (longest_c - len(c)) for _, c in GROUPS]),
        "advantages": torch.from_numpy(ADVANTAGES),
        "num_items_in_batch": torch.tensor(sum(len(c) for _, c in GROUPS)),
    }


def in_rows(values: np.ndarray) -> np.ndarray:
    """[rows, completion] -> [rows, ROW], where the target of each token stands."""
    out = np.zeros((len(GROUPS), ROW), np.float32)
    for row, value, (prompt, answer) in zip(out, values, GROUPS, strict=True):
        row[len(prompt) - 1 : len(prompt) + len(answer) - 1] = value[: len(answer)]
    return out


def grpo_trainer(temperature: float, model: Any, **options: Any) -> Any:
    """Made with beta 0, which loads no reference by its name; the log-probabilities of one are given."""
    config = GRPOConfig(**COMMON, num_generations=4, temperature=temperature, epsilon=0.2, epsilon_high=0.28,
                        beta=0.0, max_completion_length=MAX_COMPLETION, **options)  # fmt: skip
    return trainer_of(GRPOTrainer, config, model, ("prompt",), reward_funcs=lambda completions, **_: [0.0] * 8)


def grpo(numbers: Numbers) -> None:
    for batch, temperature in (("groups", 1.0), ("tempered", 0.7)):
        trainers = {of: grpo_trainer(temperature, of()) for of in (loaded, reference_model)}
        inputs, found = grpo_inputs(), {}
        with torch.no_grad():
            for of, trainer in trainers.items():
                ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
                mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
                keep = inputs["completion_ids"].shape[1]
                found[of] = trainer._get_per_token_logps_and_entropies(
                    trainer.model, ids, mask, keep, compute_entropy=True
                )[:2]
        log_p, entropy = found[loaded]
        generator = torch.Generator().manual_seed(round(10 * temperature))
        noise = 0.15 * torch.randn(log_p.shape, generator=generator)
        inputs["old_per_token_logps"] = log_p - torch.from_numpy(SHIFTS)[:, None] + noise
        inputs["ref_per_token_logps"] = found[reference_model][0]
        columns = {"log_p": log_p, "entropy": entropy, "old": inputs["old_per_token_logps"],
                   "reference": inputs["ref_per_token_logps"]}  # fmt: skip
        numbers.add_batch(batch, **padded(GROUPS), advantages=ADVANTAGES, temperature=np.float32(temperature),
                          **{name: in_rows(value.numpy()) for name, value in columns.items()})  # fmt: skip
        for case, options, beta in grpo_cases(batch):
            trainer = grpo_trainer(temperature, loaded(), **options)
            trainer.beta = beta
            settings = {"kind": "grpo", "clip": [0.2, 0.28], "kl": beta, **options}
            dropped = ("old_per_token_logps",) if case.endswith("first") else ()
            numbers.add(case, batch, settings, trainer,
                        lambda d=dropped, i=inputs: {k: v for k, v in i.items() if k not in d})  # fmt: skip


def grpo_cases(batch: str) -> list[tuple[str, dict[str, Any], float]]:
    plain, sequence = {"use_bias_correction_kl": False}, {"importance_sampling_level": "sequence"}
    if batch == "tempered":
        return [
            ("tempered dapo", {"loss_type": "dapo"} | plain, 0.0),
            ("tempered dapo kl", {"loss_type": "dapo"} | plain, 0.1),
            ("tempered gspo", {"loss_type": "grpo"} | plain | sequence, 0.0),
        ]
    out = []
    for aggregate in ("grpo", "bnpo", "dr_grpo", "dapo"):
        kind = {"loss_type": aggregate}
        out.append((f"grpo {aggregate}", kind | plain, 0.0))
        out.append((f"grpo {aggregate} kl", kind | plain, 0.1))
        out.append((f"grpo {aggregate} kl ratio", kind | {"use_bias_correction_kl": True}, 0.1))
    gspo = [(f"gspo {a}{' kl' * (b > 0)}", {"loss_type": a} | plain | sequence, b)
            for a, b in (("grpo", 0.0), ("grpo", 0.1), ("dapo", 0.0))]  # fmt: skip
    ratio = ("gspo grpo kl ratio", {"loss_type": "grpo", "use_bias_correction_kl": True} | sequence, 0.1)
    return [*out, *gspo, ratio, ("grpo dapo first", {"loss_type": "dapo"} | plain, 0.0)]


def main() -> None:
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    random_model().save_pretrained(HERE / "llama")
    (HERE / "llama" / "generation_config.json").unlink(missing_ok=True)
    numbers = Numbers()
    for cases in (sft, dpo, without_reference, reward, grpo):
        cases(numbers)
    numbers.write()


if __name__ == "__main__":
    main()
