"""Answers to the prompts of a data file, generated greedily and scored against its references: `eval --data`."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from lm_eval.api.instance import Instance

from lonas_edge.bench.statistics import standard_error
from lonas_edge.data.encoding import Prompting, prompt_of
from lonas_edge.data.language import MESSAGES, prompting_of, question_and_reference, read_examples
from lonas_edge.data.templates import choose_prompt
from lonas_edge.errors import UsageError, raise_all
from lonas_edge.evaluate.answer_metrics import EXACT_MATCH, choose_metric
from lonas_edge.evaluate.answers import BatchedLM, LoggedTarget, skip_too_long
from lonas_edge.evaluate.compare import Answers, TaskAnswers
from lonas_edge.evaluate.options import EvalSettings
from lonas_edge.evaluate.results import Metric, SkippedSample, TaskResult
from lonas_edge.evaluate.targets import Target
from lonas_edge.progress import Progress

_ROOM, _FEWEST = 2, 32  # an answer may have twice the tokens of the longest reference, and 32 at least


class AnswerEvaluation:
    """Evaluates language models on a data file."""

    def __init__(self, settings: EvalSettings, targets: Sequence[Target], _progress: Progress):
        """Read the file, and choose examples and metrics; render the prompts, which a chat template may refuse.

        Raises:
            LonasEdgeError: If examples have no reference (all are listed), or there is no such metric.
        """
        assert settings.data
        path, self._prompt = settings.data, settings.prompt
        kind, examples = read_examples(path)
        self._conversations = path if kind == MESSAGES else None
        chosen = settings.choose(path.stem, len(examples))
        references = {index: question_and_reference(examples[index])[1] for index in chosen}
        empty = [index for index, text in references.items() if not text.strip()]
        if not settings.skips_empty or len(empty) == len(references):
            problems = [f"example {index + 1}" for index in empty]
            raise_all(f"{path}: the reference answer is empty:", problems, "Expected examples that end with an answer.")
        self.task, self._references = path.stem, {index: text for index, text in references.items() if index not in empty}
        self._examples = {index: examples[index] for index in self._references}
        metrics = [choose_metric(name, list(self._references.values())) for name in settings.metrics]
        names = [name for metric in metrics for name in metric.figures]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UsageError(f"--metric {', '.join(sorted(twice))}: given twice, or two functions have this name")
        self._figures = {name: (score, metric.share) for metric in metrics for name, score in metric.figures.items()}
        self._prompts = {target.name: self._render(target) for target in targets}

    def prompt_of(self, target: Target) -> str:
        """Return the name of the prompt template."""
        return choose_prompt(self._prompt, target.prompt, conversations=self._conversations)

    def run(self, logged: LoggedTarget, progress: Progress) -> list[TaskAnswers]:
        """Evaluate a target. Prompts that leave no room for an answer are skipped, never cut."""
        target, prompts = logged.target, self._prompts[logged.target.name]
        encoded = target.tokenizer(list(self._references.values()), add_special_tokens=False)["input_ids"]
        limit = min(max(_FEWEST, _ROOM * max(map(len, encoded))), target.max_length // 2)
        special = not self._conversations  # a chat template has its special tokens
        lengths = {
            index: len(target.tokenizer(prompt, add_special_tokens=special)["input_ids"]) + limit
            for index, prompt in prompts.items()
        }
        kept, skipped = skip_too_long(target, self.task, lengths)
        options = {"until": [], "max_gen_toks": limit, "do_sample": False}
        requests = [Instance("generate_until", {}, (prompts[index], options), 0, (self.task, index, 1)) for index in kept]
        model = BatchedLM(logged, lambda name, done: progress(f"{target.name}  {name}", done), special)
        lead = self._prompting(target).template.lead.strip()  # of the training: no part of the answer
        answers = [text.strip().removeprefix(lead).strip() for text in model.generate_until(requests)]
        return self._score(dict(zip(kept, answers, strict=True)), skipped)

    def _prompting(self, target: Target) -> Prompting:
        return prompting_of(self.prompt_of(target), target.record, target.tokenizer)

    def _render(self, target: Target) -> dict[int, str]:
        prompting = self._prompting(target)
        return {index: prompt_of(example, prompting, target.tokenizer) for index, example in self._examples.items()}

    def _score(self, answers: Mapping[int, str], skipped: tuple[SkippedSample, ...]) -> list[TaskAnswers]:
        """Score the answers; each figure of a metric has a result of its own, and the first one the sample log."""
        texts, references = list(answers.values()), [self._references[index] for index in answers]
        pairs = list(zip(texts, references, strict=True))
        scores = {name: np.array([score(*pair) for pair in pairs]) for name, (score, _) in self._figures.items()}
        rows = [dict(zip(scores, map(float, row), strict=True)) for row in zip(*scores.values(), strict=True)]
        samples = [
            {"doc_id": index, "reference": reference, "answer": answer, **row}
            for (index, answer), reference, row in zip(answers.items(), references, rows, strict=True)
        ]
        results, indices, given = list[TaskAnswers](), np.array([*answers]), np.array(texts, dtype=object)
        for name, (_, share) in self._figures.items():
            result = TaskResult.of(
                name,
                name,
                {name: Metric(float(scores[name].mean()), standard_error(scores[name]))},
                share,
                questions=len(texts),
                skipped=skipped,
                harness=False,
                classes=_classes(name, references, scores[name]),
            )
            compared = Answers(name, indices, scores[name], given, unit=100 if share else 1)
            results.append(TaskAnswers(result, [] if results else samples, compared))
        return results


def _classes(name: str, references: Sequence[str], scores: np.ndarray) -> dict[str, tuple[int, float]]:
    """Examples and accuracy in percent by class, where the references are few and occur often, as those of classes do."""
    counts = Counter(references)
    if name != EXACT_MATCH or len(counts) ** 2 > len(references):
        return {}
    found = np.array(references)
    return {each: (count, 100 * float(scores[found == each].mean())) for each, count in sorted(counts.items())}
