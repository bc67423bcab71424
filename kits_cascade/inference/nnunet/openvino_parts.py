"""A network of OpenVINO's in two parts: its encoder in single precision, and all behind it in bfloat16.

Rounding to eight bits near the image moves masses that hang in the balance; behind the encoder it hardly does, and
most of the time is spent there: docs/benchmarks.md. OpenVINO has a mark for operations that shall stay exact, but
the activation behind a normalisation loses it. So the graph is cut in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from kits_cascade.inference.nnunet.kernels import rounded_kernels
from kits_cascade.volumes.volume import Array

# What a decoder begins with: a transposed convolution, or an interpolation.
_UPSAMPLING: Final = frozenset({"ConvolutionBackpropData", "GroupConvolutionBackpropData", "Interpolate"})
_CONSTANT: Final = "Constant"
_CONVOLUTION: Final = "Convolution"
_SCALING: Final = frozenset({"Multiply", "BatchNormInference"})


class TwoParts:
    """Two compiled models as one: what the first answers is shown to the second."""

    def __init__(self, encoder: Any, rest: Any) -> None:
        self._models = (encoder, rest)
        self._requests: tuple[Any, Any] | None = None

    def __call__(self, tile: Array) -> Any:
        """The answer of the second; none of its memory is shared."""
        if self._requests is None:
            self._requests = self._connected()
        encoder, rest = self._requests
        encoder.infer([tile], share_inputs=True, share_outputs=True)
        return rest.infer()

    def _connected(self) -> tuple[Any, Any]:
        """What the first writes is where the second reads."""
        encoder, rest = (model.create_infer_request() for model in self._models)
        for number in range(len(self._models[0].outputs)):
            rest.set_input_tensor(number, encoder.get_output_tensor(number))
        return encoder, rest

    def release_memory(self) -> None:
        """Of both; the requests go too, since they hold what passes from one to the other."""
        self._requests = None
        for model in self._models:
            model.release_memory()


def cut(model: Any, *, rounded: bool = False) -> tuple[Any, Any] | None:
    """The encoder, and what is behind it, as models; None where nothing is upsampled. The model itself stays whole.

    ``rounded``: features pass from one to the other in bfloat16, which takes half of the memory.
    """
    from openvino import Model, Type, opset13

    model = _folded(model)
    operations = model.get_ordered_ops()
    encoder = _encoder(operations)
    crossing: dict[tuple[str, int], list[Any]] = {}
    for operation in operations:
        for place in operation.inputs() if operation.get_name() not in encoder else ():
            source = place.get_source_output()
            if source.get_node().get_name() in encoder:
                crossing.setdefault((source.get_node().get_name(), source.get_index()), []).append(place)
    if not crossing:
        return None
    features, given = [], []
    for places in crossing.values():
        source = places[0].get_source_output()
        exact = source.get_element_type()
        kind = Type.bf16 if rounded and exact == Type.f32 else exact
        features.append(opset13.convert(source, kind))
        given.append(opset13.parameter(source.get_shape(), kind))
        again = opset13.convert(given[-1], exact)
        for place in places:
            place.replace_source_output(again.output(0))
    first = Model(features, model.get_parameters(), "encoder")
    return first, Model(model.get_results(), given, "rest")


def rounded_behind_encoder(model: Any) -> Any:
    """A copy whose kernels behind the encoder have values of bfloat16, as little off together as can be.

    One of a single tap has no neighbours to hand its error to, and often makes the answer itself: what bfloat16 leaves
    out of it becomes a second kernel, whose outcome is added.
    """
    from openvino import Type, opset13

    model = _folded(model)
    operations = model.get_ordered_ops()
    encoder = _encoder(operations)
    for operation in operations:
        if operation.get_type_name() != _CONVOLUTION or operation.get_name() in encoder:
            continue
        source, readers = operation.input_value(1).get_node(), list(operation.output(0).get_target_inputs())
        plain = source.get_type_name() == _CONSTANT and source.get_element_type() == Type.f32
        if not plain or _is_scaled(readers):
            continue
        kernels = source.data
        rounded = rounded_kernels(kernels)
        operation.input(1).replace_source_output(opset13.constant(rounded).output(0))
        if kernels[0, 0].size == 1:
            how = operation.get_attributes()
            steps = [how[name] for name in ("strides", "pads_begin", "pads_end", "dilations")]
            small = opset13.convolution(operation.input_value(0), opset13.constant(kernels - rounded), *steps)
            whole = opset13.add(operation.output(0), small)
            for reader in readers:
                reader.replace_source_output(whole.output(0))
    return model


def _is_scaled(readers: Sequence[Any]) -> bool:
    """Whether the engine will multiply the kernels by what follows, such as a batch norm, and round them again."""
    for place in readers:
        reader = place.get_node()
        if reader.get_type_name() in _SCALING:
            return True
        if reader.get_type_name() == "Add" and _is_scaled(list(reader.output(0).get_target_inputs())):
            return True
    return False


def _folded(model: Any) -> Any:
    """A copy; what is computed of constants alone is a constant there."""
    from openvino.passes import ConstantFolding, Manager

    model = model.clone()
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    return model


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
