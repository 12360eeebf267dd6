"""Study: methods to recover a LoRA model from which attention blocks were removed, in plain PyTorch.

    python benchmarks/recovery_methods.py LORA --base models/smollm2-135m --removed 7,5,17 --data train.json \\
        --held-out held_out.json [--method lora|full] [--positions answers|all] [--share 1] [--local 120] \\
        [--extra generated.json] [--fade 60] [--gradual 6:80]
    python benchmarks/recovery_methods.py LORA --base models/smollm2-135m --removed "" --data train.json \\
        --held-out held_out.json --from-base --method full --positions answers --share 0 --output DIR

LORA is a PEFT adapter, the teacher. Its blocks are removed, and the network is trained: the adapter further, or all weights
(`--method full`). The loss is --share of KL from the teacher, over the tokens of answers or of all, and the rest cross-entropy
of the answers. `--local` trains the MLP and norm of each layer without attention first, so that they give its former output
from its former input. `--extra` replaces half of the examples. `--fade` lowers the removed attention to 0 over so many steps.
`--gradual 6:80` removes the first six blocks at the start, and the others after 80 steps.
`--from-base` trains the base model instead, without the adapter; as in the second example that is full fine-tuning, and LORA is
only compared with. `--output` keeps the model with the lowest held-out loss.
Prints JSON lines: loss and KL in nats per answer token of the held-out examples, seconds and training tokens.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

Example = tuple[list[int], int]  # tokens, and the length of the prompt
IGNORED, BATCH, EVERY = -100, 16, 60


class NoAttention(nn.Module):
    """In place of an attention block: adds nothing."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros((), dtype=hidden_states.dtype), None


class Fading(nn.Module):
    """An attention block whose output is scaled."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention, self.scale = attention, 1.0

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        output, weights = self.attention(*args, **kwargs)
        return output * self.scale, weights


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--extra", type=Path)
    parser.add_argument("--removed", type=lambda text: [int(part) for part in text.split(",") if part], required=True)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--from-base", action="store_true", help="with --method full")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--positions", choices=["answers", "all"], default="all")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--local", type=int, default=0, help="steps of block-wise distillation")
    parser.add_argument("--local-lr", type=float, default=1e-3)
    parser.add_argument("--fade", type=int, default=0)
    parser.add_argument("--gradual", type=lambda text: [int(part) for part in text.split(":")], help="BLOCKS:STEPS")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.from_base and arguments.method != "full":
        parser.error("--from-base needs --method full")
    return arguments


class Study:
    """A teacher, a student without some attention blocks, and the data."""

    def __init__(self, arguments: argparse.Namespace):
        torch.manual_seed(arguments.seed)
        self.arguments, self.rng = arguments, random.Random(str(arguments.seed))
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.base)
        self.train, self.held = self.encode(arguments.data), self.encode(arguments.held_out)
        self.extra = self.encode(arguments.extra) if arguments.extra else []
        self.teacher = self._lora().merge_and_unload().eval().requires_grad_(False)
        self.student = self._student()
        self.body = self.student if arguments.method == "full" else self.student.get_base_model()
        first = arguments.gradual[0] if arguments.gradual else len(arguments.removed)
        self.fading = [self._remove(self.body.model.layers[index]) for index in arguments.removed[:first]]
        self.later = arguments.removed[first:]
        self.tokens, self.start, self.lowest = 0, time.time(), math.inf

    def _base(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.arguments.base, dtype=torch.float32)

    def _lora(self) -> Any:
        return PeftModel.from_pretrained(self._base(), self.arguments.lora, is_trainable=True)

    def _student(self) -> Any:
        if self.arguments.method == "lora":
            return self._lora()
        model = self._base() if self.arguments.from_base else self._lora().merge_and_unload()
        return model.requires_grad_(True)

    def _remove(self, layer: Any) -> Any:
        layer.self_attn = Fading(layer.self_attn) if self.arguments.fade else NoAttention()
        return layer

    def encode(self, path: Path) -> list[Example]:
        found = []
        for example in json.loads(path.read_text()):
            prompt = f"Question: {example['instruction']}\nAnswer:"
            tokens = [*self.tokenizer(f"{prompt} {example['output']}").input_ids, self.tokenizer.eos_token_id]
            found.append((tokens, len(self.tokenizer(prompt).input_ids)))
        return found

    def batches(self) -> Iterator[list[Example]]:
        """Epochs of batches of similar length."""
        while True:
            pool = self.rng.sample(self.train, len(self.train))
            if self.extra:
                more = self.rng.sample(self.extra, min(len(self.extra), len(pool) // 2))
                pool = self.rng.sample([*pool[: len(pool) - len(more)], *more], len(pool))
            found = []
            for start in range(0, len(pool), 50 * BATCH):
                part = sorted(pool[start : start + 50 * BATCH], key=lambda example: len(example[0]))
                found += [part[index : index + BATCH] for index in range(0, len(part) - BATCH + 1, BATCH)]
            yield from self.rng.sample(found, len(found))

    def collate(self, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids, mask and labels, each [examples, tokens]."""
        shape = len(examples), max(len(tokens) for tokens, _ in examples)
        ids = torch.full(shape, self.tokenizer.eos_token_id)
        mask, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
        for index, (tokens, prompt) in enumerate(examples):
            ids[index, : len(tokens)] = torch.tensor(tokens)
            mask[index, : len(tokens)] = 1
            labels[index, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
        return ids, mask, labels

    def logits(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Logits [positions, vocabulary] that predict the chosen tokens."""
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
        logits: torch.Tensor = model.lm_head(hidden[chosen[:, 1:]])
        return logits

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Print loss and KL of the held-out answers; keep the best model."""
        self.student.eval()
        loss = kl = count = 0.0
        held = sorted(self.held, key=lambda example: len(example[0]))
        for start in range(0, len(held), 40):
            ids, mask, labels = self.collate(held[start : start + 40])
            own, teachers = (self.logits(model, ids, mask, labels != IGNORED) for model in (self.body, self.teacher))
            learned = labels[:, 1:][labels[:, 1:] != IGNORED]
            loss += F.cross_entropy(own, learned, reduction="sum").item()
            kl += divergence(teachers, own).sum().item()
            count += len(learned)
        seconds = round(time.time() - self.start)
        figures = {"loss": round(loss / count, 4), "kl": round(kl / count, 4), "seconds": seconds, "tokens": self.tokens}
        print(json.dumps({"step": step, **figures}), flush=True)
        if self.arguments.output and loss / count < self.lowest:
            self.lowest = loss / count
            self.student.save_pretrained(self.arguments.output)
            self.tokenizer.save_pretrained(self.arguments.output)

    def optimizer(self, parameters: list[nn.Parameter], lr: float, steps: int) -> tuple[Any, Any]:
        """AdamW with a warm-up of a twentieth of the steps, then half a cosine."""
        optimizer, warm = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0), max(1, steps // 20)

        def rate(step: int) -> float:
            return min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def distil_layers(self, source: Iterator[list[Example]]) -> None:
        """Block-wise distillation of the layers without attention: relative squared error per token."""
        arguments, layers = self.arguments, self.body.model.layers
        local = {index: layers[index] for index in arguments.removed}
        own = [[*layer.mlp.parameters(), *layer.post_attention_layernorm.parameters()] for layer in local.values()]
        trained = [parameter for each in own for parameter in each if parameter.requires_grad]
        optimizer, schedule = self.optimizer(trained, arguments.local_lr, arguments.local)
        for step in range(arguments.local):
            ids, mask, _ = self.collate(next(source))
            self.tokens += int(mask.sum())
            seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
            handles = [self.teacher.model.layers[index].register_forward_hook(_keeping(seen, index)) for index in local]
            with torch.no_grad():
                self.teacher.model(input_ids=ids, attention_mask=mask, use_cache=False)
            for handle in handles:
                handle.remove()
            optimizer.zero_grad()
            total = 0.0
            for index, layer in local.items():
                given, result = (states[mask.bool()] for states in seen[index])
                output = given + layer.mlp(layer.post_attention_layernorm(given))
                error = ((output - result).square().sum(-1) / (result - given).square().sum(-1)).mean()
                error.backward()
                total += error.item() / len(local)
            optimizer.step()
            schedule.step()
            if step in (0, arguments.local - 1):
                print(json.dumps({"local": step + 1, "error": round(total, 4)}), flush=True)

    def run(self) -> None:
        """Train and evaluate."""
        arguments, source = self.arguments, self.batches()
        self.evaluate(0)
        if arguments.local:
            self.distil_layers(source)
            self.evaluate(0)
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        optimizer, schedule = self.optimizer(trained, arguments.lr, arguments.steps)
        for step in range(arguments.steps):
            if arguments.gradual and step == arguments.gradual[1]:
                for index in self.later:
                    self._remove(self.body.model.layers[index])
                self.evaluate(step)
            for layer in self.fading if arguments.fade else ():
                layer.self_attn.scale = max(0.0, 1 - step / arguments.fade)
            ids, mask, labels = self.collate(next(source))
            self.tokens += int(mask.sum())
            self.student.train()
            chosen = mask.bool() if arguments.positions == "all" else labels != IGNORED
            own, learned = self.logits(self.body, ids, mask, chosen), labels[:, 1:][chosen[:, 1:]]
            loss = (1 - arguments.share) * F.cross_entropy(own, learned, ignore_index=IGNORED)
            if arguments.share:
                with torch.no_grad():
                    teachers = self.logits(self.teacher, ids, mask, chosen)
                loss = loss + arguments.share * divergence(teachers, own).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % EVERY == 0 or step + 1 == arguments.steps:
                self.evaluate(step + 1)


def _keeping(seen: dict[int, tuple[torch.Tensor, torch.Tensor]], index: int) -> Any:
    """A hook that keeps a layer's input and output."""

    def keep(_: Any, given: Any, result: Any) -> None:
        seen[index] = given[0], result[0] if isinstance(result, tuple) else result

    return keep


def divergence(teachers: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """KL of each position, nats."""
    p, q = teachers.log_softmax(-1), own.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


if __name__ == "__main__":
    Study(parse()).run()
