"""SmolLM3: LLaMA with some layers without positions (NoPE).

`no_rope_layers` in the configuration has 0 for a layer whose queries and keys are not rotated, else 1. Elastic widths do not
affect it, and a layer without attention keeps its entry in the list.

Source: the configuration and modeling files of transformers 5.5.
"""

from lonas_edge.families.llama import Llama, class_names


class SmolLM3(Llama):
    """SmolLM3."""

    titles = {"smollm3": "SmolLM3"}
    class_names = {"smollm3": class_names("SmolLM3")}
