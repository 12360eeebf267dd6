"""Choose how each weight matrix of an IR is stored."""

from dataclasses import dataclass

from lonas_edge.errors import raise_all
from lonas_edge.formats import PER_CHANNEL, WeightFormat, indivisible
from lonas_edge.network.materialize import MaterializedModel

_GROUP_SIZES = (256, 128, 64, 32, 16, PER_CHANNEL)  # proposed if another size does not fit

Shapes = dict[str, tuple[int, ...]]  # [rows, columns] by tensor name


@dataclass(frozen=True)
class Scheme:
    """Storage of a weight matrix: `group_size` columns share a scale (or `PER_CHANNEL`); None for formats without groups."""

    weight_format: WeightFormat
    group_size: int | None = None


def choose_schemes(model: MaterializedModel, weight_format: WeightFormat) -> dict[str, Scheme]:
    """Choose the scheme of every weight matrix by tensor name.

    If the adapter was trained for this format, the layers that its training kept in INT8 get the format of the embedding.
    """
    matrices, layers = weight_matrices(model), layer_matrices(model)
    if weight_format.group_sizes:
        layers = grouped_matrices(model)
    group, formatted = weight_format.group_size(shape[1] for shape in layers.values()), set(layers)
    if model.source.trained_as == weight_format.name:
        formatted = {name for name in layers if model.original(name).removesuffix(".weight") not in model.source.int8_layers}
    schemes = {}
    for name in matrices:
        chosen = weight_format.chosen(name not in formatted, group)
        schemes[name] = Scheme(chosen, group if chosen.group_sizes else None)
    schemes[head_matrix(model)] = head_scheme(model, weight_format)
    return schemes


def weight_matrices(model: MaterializedModel) -> Shapes:
    """Return the shapes of the weight matrices of an IR, which has no unused ones."""
    unused = model.source.architecture.unused
    return {name: shape for name, shape in model.shapes.items() if len(shape) == 2 and model.original(name) not in unused}


def layer_matrices(model: MaterializedModel) -> Shapes:
    """Return the shapes of the weight matrices of decoder layers: all but embeddings and head."""
    split = model.source.architecture.split
    return {name: shape for name, shape in weight_matrices(model).items() if split(name)[0]}


def grouped_matrices(model: MaterializedModel) -> Shapes:
    """Return the shapes of the matrices of decoder layers that formats with groups apply to."""
    eight_bits = model.source.architecture.eight_bits
    return {name: shape for name, shape in layer_matrices(model).items() if model.original(name) not in eight_bits}


def head_matrix(model: MaterializedModel) -> str:
    """Return the name of the matrix that is multiplied in the head: a tied head's is the embedding's."""
    family = model.source.architecture.family
    own = f"{family.head}.weight"
    return own if own in model.shapes else f"{family.embedding}.weight"


def head_scheme(model: MaterializedModel, weight_format: WeightFormat) -> Scheme:
    """Return the storage of the head."""
    return Scheme(*weight_format.of_head(model.shapes[head_matrix(model)][1]))


def check_group_size(model: MaterializedModel, weight_format: WeightFormat, group_size: int | None) -> None:
    """Refuse a group size that does not divide the input width of every layer; name these widths and sizes that fit."""
    if group_size is None:
        return
    layers: dict[int, list[str]] = {}
    for name, shape in grouped_matrices(model).items():
        layers.setdefault(shape[1], []).append(name.removesuffix(".weight"))
    problems = []
    for width in indivisible(layers, group_size):
        first, *others = layers[width]
        problems.append(f"{width} columns: {first}" + (f" and {len(others)} more" if others else ""))
    fitting = [str(size) for size in _GROUP_SIZES if not indivisible(layers, size)]
    raise_all(
        f"{model.source.folder}: --group-size {group_size} does not divide the input width of every layer of the "
        f"{model.subnetwork.name} sub-network ({weight_format.name}):",
        problems,
        f"Use one of {', '.join(fitting)}.",
    )
