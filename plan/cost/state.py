"""The state that some layers keep of a sequence in place of keys and values: its bytes, its traffic, its operations."""

from math import ceil

from prefold.plan.cost.attention import Ways
from prefold.plan.cost.workload import Workload, bytes_of
from prefold.plan.model.shape import Shape

# Engines, and transformers where a config says nothing else, keep what recurs in float32.
_RECURRENT = bytes_of("fp32")


def state_bytes(shape: Shape, workload: Workload, split: Ways) -> float:
    """Bytes of the states on a chip; a branch has a state of its own."""
    state = shape.state
    if state is None:
        return 0
    of_a_layer = state.recurrent * _RECURRENT + state.conv * bytes_of(workload.activations)
    return state.layers * of_a_layer * ceil(workload.batch / split.batch) / split.heads


def state_traffic(shape: Shape, workload: Workload, split: Ways) -> float:
    """Bytes of the states that a chip reads and writes: both in a decode step; a prefill begins without any."""
    return state_bytes(shape, workload, split) * (2 if workload.phase == "decode" else 1)


def state_flops(shape: Shape, workload: Workload) -> float:
    """Operations of updating the states and asking them: 2 each for every value and token, which is the least."""
    state = shape.state
    return 4 * state.layers * state.recurrent * workload.tokens if state else 0
