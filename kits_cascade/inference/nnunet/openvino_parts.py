"""A network of OpenVINO's in two parts: its encoder in single precision, and all behind it in bfloat16.

Rounding to eight bits near the image moves masses that hang in the balance; behind the encoder it hardly does, and
most of the time is spent there: docs/benchmarks.md. OpenVINO has a mark for operations that shall stay exact, but
the activation behind a normalisation loses it. So the graph is cut in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from kits_cascade.volumes.volume import Array

# What a decoder begins with: a transposed convolution, or an interpolation.
_UPSAMPLING: Final = frozenset({"ConvolutionBackpropData", "GroupConvolutionBackpropData", "Interpolate"})
_CONSTANT: Final = "Constant"


class TwoParts:
    """Two compiled models as one: what the first answers is shown to the second."""

    def __init__(self, encoder: Any, rest: Any) -> None:
        self._models = (encoder, rest)
        self._requests: tuple[Any, Any] | None = None

    def __call__(self, tile: Array) -> Any:
        """The answer of the second; none of its memory is shared."""
        if self._requests is None:
            first, second = (model.create_infer_request() for model in self._models)
            self._requests = first, second
        encoder, rest = self._requests
        features = encoder.infer([tile], share_inputs=True, share_outputs=True)
        return rest.infer([features[number] for number in range(len(features))], share_inputs=True)

    def release_memory(self) -> None:
        """Of both; the requests go too, since they hold what passes from one to the other."""
        self._requests = None
        for model in self._models:
            model.release_memory()


def cut(model: Any) -> tuple[Any, Any] | None:
    """The encoder, and what is behind it, as models; None where nothing is upsampled. The model itself stays whole."""
    from openvino import Model, opset13
    from openvino.passes import ConstantFolding, Manager

    model = model.clone()
    passes = Manager()
    passes.register_pass(ConstantFolding())  # what is computed of constants alone is no part of it
    passes.run_passes(model)
    operations = model.get_ordered_ops()
    encoder = _encoder(operations)
    crossing = [
        (place, place.get_source_output())
        for operation in operations
        if operation.get_name() not in encoder
        for place in operation.inputs()
        if place.get_source_output().get_node().get_name() in encoder
    ]
    if not crossing:
        return None
    features = {(source.get_node().get_name(), source.get_index()): source for _, source in crossing}
    given = {
        name: opset13.parameter(source.get_shape(), source.get_element_type()) for name, source in features.items()
    }
    first = Model(list(features.values()), model.get_parameters(), "encoder")
    for place, source in crossing:
        place.replace_source_output(given[source.get_node().get_name(), source.get_index()].output(0))
    return first, Model(model.get_results(), list(given.values()), "rest")


def _encoder(operations: Sequence[Any]) -> set[str]:
    """The names of operations that lead to one that upsamples, and follow none; constants belong to neither part."""
    behind: set[str] = set()
    for operation in operations:
        if operation.get_type_name() in _UPSAMPLING or not behind.isdisjoint(_sources(operation)):
            behind.add(operation.get_name())
    before: set[str] = set()
    for operation in reversed(operations):
        if operation.get_type_name() in _UPSAMPLING or operation.get_name() in before:
            before.update(_sources(operation))
    constants = {operation.get_name() for operation in operations if operation.get_type_name() == _CONSTANT}
    return before - behind - constants


def _sources(operation: Any) -> list[str]:
    return [place.get_source_output().get_node().get_name() for place in operation.inputs()]
