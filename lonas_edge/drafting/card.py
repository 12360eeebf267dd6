"""How a draft is shown: its figures as a table, its use in Python, its model card."""

from lonas_edge.exporting.drafts import DraftRecord
from lonas_edge.tables import MISSING, Table

DRAFT_SECTION = "## Faster with a draft model"  # of the model's card
_USE = """\
```python
import openvino_genai

draft = openvino_genai.draft_model("{draft}", "CPU")
pipe = openvino_genai.LLMPipeline("{model}", "CPU", draft_model=draft{properties})
print(pipe.generate("The sun is", max_new_tokens=32, num_assistant_tokens={tokens}))
```
"""
_CARD = """\
---
library_name: openvino
tags: [openvino, speculative-decoding]
pipeline_tag: text-generation
---
# Draft model of `{model}`

It proposes tokens, and the model checks several of them in one pass. Alone it is of no use.

{section}
{table}

Greedy answers to {timed} held-out prompts of `{data}`, one at a time, medians;
{processor}, {threads} threads, openvino_genai {version}.
"""


def speed_table(record: DraftRecord) -> Table:
    """Return the speed with each number of proposed tokens."""
    rows = []
    for speed in record.speeds:
        ratio, low, high = speed.tpot_ratio
        shown = f"{ratio:.2f}x [{low:.2f}, {high:.2f}]" if speed is not record.speeds[0] else MISSING
        figures = (f"{speed.tpot_ms:.2f}", shown, f"{speed.answer_ms:.0f}", f"{speed.tokens_per_pass:.2f}")
        number = str(speed.num_assistant_tokens or "no draft") + (f", {speed.precision}" if speed.precision else "")
        rows.append((number, *figures, f"{speed.identical:.0%}"))
    headings = ("proposed tokens", "TPOT ms", "TPOT ratio [95 %]", "answer ms", "tokens a pass", "identical answers")
    return Table(headings, rows)


def draft_section(model: str, draft: str, record: DraftRecord) -> str:
    """State the gain, and show the use in Python of two directories."""
    properties = "".join(f', {name}="{value}"' for name, value in record.properties.items())
    use = _USE.format(model=model, draft=draft, tokens=record.num_assistant_tokens, properties=properties)
    return f"{record.verdict}\n\n{use}"


def draft_card(model: str, record: DraftRecord) -> str:
    """Return the model card of a draft as Markdown, with the metadata block that model hubs read."""
    conditions = record.conditions
    return _CARD.format(
        model=model,
        section=draft_section(model, "THIS_DIRECTORY", record),
        table="\n".join(speed_table(record).to_markdown()),
        timed=record.prompts["timed"],
        data=conditions["data"],
        processor=conditions["machine"]["processor"],
        threads=conditions["threads"],
        version=conditions["versions"]["openvino-genai"],
    )
