"""Options of `draft`. No torch: the command line imports this module."""

from pydantic.dataclasses import dataclass

from lonas_edge.options import LARGEST_SEED, Options, UserPath, option


@dataclass(frozen=True, kw_only=True)
class DraftOptions(Options):
    """The model, its prompts and the output."""

    exported: UserPath = option(argument=True, help="Directory of a language model for OpenVINO, also of `optimum-cli`.")
    data: UserPath = option(exists=True, metavar="DATA", help="Conversations or instructions, whose prompts the model answers.")
    output: UserPath = option(metavar="DIR", help="Directory to write. The same command continues an interrupted run.")
    overwrite: bool = option(False, panel="Output", help="Replace an existing output.")
    seed: int = option(42, hidden=True, minimum=0, maximum=LARGEST_SEED, help="Random seed.")
