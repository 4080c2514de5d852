"""Options of a fold: one spelling for the commands, the API and the card."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from prefold.cli.main import app
from prefold.common.errors import UsageError
from prefold.convert import FoldOptions
from prefold.convert.options import DTYPES, PLACEMENTS, TABLE_DTYPES, flag
from prefold.runtime import storage_prefold


def flags(command: str) -> set[str]:
    """Return the options that a command takes."""
    commands: Any = typer.main.get_command(app)
    return {name for parameter in commands.commands[command].params for name in parameter.opts}


def test_convert_takes_every_field_and_inspect_those_that_change_its_answer():
    every = {flag(each.name) for each in fields(FoldOptions)}
    inspected = {flag(each.name) for each in fields(FoldOptions) if each.metadata["inspected"]}
    assert every <= flags("convert")
    assert every & flags("inspect") == inspected


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"dtype": "float8"}, "--dtype: 'float8' is none of float32, bfloat16, float16"),
        ({"table_dtype": "int4"}, "--table-dtype: 'int4' is none of"),
        ({"placement": "cloud"}, "--placement: 'cloud' is none of device, host, disk"),
        ({"quantize_residual": True}, "--quantize-residual: give --table-dtype, too"),
    ],
)
def test_what_no_model_folds_with_is_refused_at_once(options: dict[str, Any], line: str):
    with pytest.raises(UsageError, match=line):
        FoldOptions(**options)


def test_placements_are_the_runtimes():
    assert tuple(storage_prefold.PLACEMENTS) == PLACEMENTS


def test_a_command_is_for_a_shell_and_names_no_path_of_this_machine(tmp_path: Path):
    options = FoldOptions(adapter=tmp_path / "my lora", force=True, dtype="bfloat16")
    command = options.command("my model; rm -rf ~", None)
    assert shlex.split(command) == [
        "prefold", "convert", "my model; rm -rf ~", "OUT", "--dtype", "bfloat16", "--adapter", "my lora",
    ]  # fmt: skip
    assert "'my model; rm -rf ~'" in command


@given(
    st.builds(
        FoldOptions,
        merge_residual=st.booleans(),
        dtype=st.none() | st.sampled_from(DTYPES),
        max_table=st.none() | st.integers(1, 1 << 40),
        chunk_tokens=st.none() | st.integers(1, 1 << 20),
        placement=st.sampled_from(PLACEMENTS),
        table_dtype=st.sampled_from(TABLE_DTYPES),
        quantize_residual=st.booleans(),
        trust_remote_code=st.booleans(),
    )
)
def test_the_command_gives_the_same_options_again(options: FoldOptions):
    commands: Any = typer.main.get_command(app)
    words = shlex.split(options.command("org/name", "main"))
    given_to = commands.commands["convert"].make_context("convert", words[2:]).params
    assert FoldOptions(**{each.name: given_to[each.name] for each in fields(FoldOptions)}) == options
    assert (given_to["source"], given_to["revision"]) == ("org/name", "main")
