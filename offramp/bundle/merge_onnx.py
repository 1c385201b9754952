"""Segments that follow each other as one model, the exits between them left out; down to the plain network."""

from collections.abc import Sequence
from dataclasses import replace

from offramp.bundle.manifest import SegmentSpec


def fuse(models: Sequence[bytes], specs: Sequence[SegmentSpec]) -> tuple[bytes, SegmentSpec]:
    """One ONNX model that computes what these segments do up to the exit of the last; what only others need is gone.

    Args:
        models: the contents of their files, in the order in which they run.
        specs: their entries in the manifest.
    Returns:
        The model, and its entry: what the first segment takes, under other names, and what the last one gives.
    Raises:
        ValueError: if there are no segments.
        ImportError: if onnx is not installed, with the command that installs it.
    """
    try:
        import onnx
        from onnx import compose
    except ImportError:
        raise ImportError("putting segments together needs onnx: pip install 'offramp[export]'") from None
    if not models or len(models) != len(specs):
        raise ValueError(f"there must be as many models as specs, and at least one: got {len(models)} and {len(specs)}")
    fused, whole = onnx.load_model_from_string(models[0]), specs[0]
    for data, spec in zip(models[1:], specs[1:], strict=True):
        following = onnx.load_model_from_string(data)
        outputs, inputs = whole.gives_state + whole.gives_carry, spec.takes_state + spec.takes_carry
        before = f"before_{spec.exit}/"  # both have a `logits`
        fused = compose.merge_models(
            fused,
            following,
            io_map=[(output.name, input_of_next.name) for output, input_of_next in zip(outputs, inputs, strict=True)],
            outputs=[port.name for port in following.graph.output],
            prefix1=before,
        )
        takes_state, takes_carry = (
            tuple(replace(port, name=before + port.name) for port in ports)
            for ports in (whole.takes_state, whole.takes_carry)
        )
        whole = replace(spec, takes_state=takes_state, takes_carry=takes_carry)
    return fused.SerializeToString(), whole
