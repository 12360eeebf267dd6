"""SmolLM3: LLaMA with some layers that know no positions (NoPE).

`no_rope_layers` in the configuration has 0 for a layer whose queries and keys are not rotated, 1 for the others. No width
touches that, and a layer without attention keeps its place in the list.

Source: the configuration and modeling files of transformers 5.5.
"""

from lonas_edge.families.llama import Llama, class_names


class SmolLM3(Llama):
    """SmolLM3."""

    titles = {"smollm3": "SmolLM3"}
    class_names = {"smollm3": class_names("SmolLM3")}
