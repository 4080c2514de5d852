"""A decoder as an OpenVINO model with its cache as a state, in the files that OpenVINO's programs load."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from transformers.exporters.exporter_openvino import OpenVINOExporter

from prefold.export.target import Target
from prefold.export.trace import trace

_MODEL = "openvino_model.xml"


def _write(model: Any, folder: Path, table: Collection[str], context: int) -> None:
    """Write graph and weights; the format has one file for all of these, which the runtime maps."""
    OpenVINOExporter.save_program(trace(OpenVINOExporter, model).program, folder / _MODEL)


def _stored(folder: Path, names: Collection[str]) -> dict[str, NDArray[np.uint8]]:
    wanted, found = {each: name for name in names for each in _constants(name)}, dict[str, NDArray[np.uint8]]()
    for node in openvino.Core().read_model(folder / _MODEL).get_ordered_ops():
        for name in wanted.keys() & node.output(0).get_names() if node.get_type_name() == "Constant" else ():
            found[wanted[name]] = node.data.reshape(-1).view(np.uint8)
    return found


def _constants(name: str) -> list[str]:
    """Return the names that the exporter may give a parameter's constant: one of 16 bits has its own."""
    module, _, parameter = name.rpartition(".")
    return [f"{module}.{each}_0:0".replace(".", "_") for each in (parameter, f"_16bit_{parameter}")]


TARGET = Target("openvino", "OpenVINO", "torch", True, _write, _stored)
