"""The first step of inspecting, converting and verifying: open a source, resolve its class, and study it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedConfig

from prefold.convert.checkpoint.side_files import SideFiles, find_side_files
from prefold.convert.checkpoint.source import Source
from prefold.convert.checkpoint.tensor_names import live_names
from prefold.convert.model.load import ResolvedModel, load_config, require_text, resolve_dtype, resolve_model
from prefold.convert.model.skeleton import build_on_meta
from prefold.convert.options import FoldOptions
from prefold.convert.study import Study, study_model


@dataclass(frozen=True)
class Prepared:
    """A source, with or without its weights, and all that is known before one is read."""

    source: Source
    options: FoldOptions
    config: PreTrainedConfig
    resolved: ResolvedModel
    dtype: torch.dtype
    study: Study

    @cached_property
    def live(self) -> dict[str, str]:
        """The parameters that its tensors become, as ``live_names`` finds them."""
        return live_names(build_on_meta(self.resolved.model_class, self.config, self.dtype), self.source.entries)

    @cached_property
    def side(self) -> SideFiles:
        """The files that go along with its weights."""
        return find_side_files(self.source, trust_remote_code=self.options.trust_remote_code)


def prepare_source(source: Source, options: FoldOptions = FoldOptions()) -> Prepared:
    """Load the config of a source and study its model.

    Raises:
        UnsupportedModel: it cannot be folded.
        UsageError: there is no such cut, or rows would not be smaller.
    """
    config = load_config(source, trust_remote_code=options.trust_remote_code)
    resolved = resolve_model(source, config, trust_remote_code=options.trust_remote_code)
    require_text(resolved, text_only=options.text_only)
    dtype = resolve_dtype(source, config, options.dtype)
    return Prepared(source, options, config, resolved, dtype, study_model(resolved.model_class, config, options, dtype))
