"""What inspecting, converting and verifying begin with: a source, what it is loaded as, and what of it folds."""

from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedConfig

from prefold.convert.checkpoint.side_files import SideFiles, find_side_files
from prefold.convert.checkpoint.source import Source
from prefold.convert.checkpoint.tensor_names import live_names
from prefold.convert.model.load import ResolvedModel, load_config, load_kind, require_text, resolve_dtype
from prefold.convert.model.skeleton import build_on_meta
from prefold.convert.options import FoldOptions
from prefold.convert.study import Study, study_model


@dataclass(frozen=True)
class Prepared:
    """A source and what is known of it before a weight is read.

    Attributes:
        source: the checkpoint, with or without its weights.
        options: how it is to be folded.
        config: its config.
        resolved: the class that it is loaded as.
        dtype: the type that it runs in.
        study: what folds.
    """

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
        """What goes along with its weights."""
        return find_side_files(self.source, trust_remote_code=self.options.trust_remote_code)


def prepare_source(source: Source, options: FoldOptions = FoldOptions()) -> Prepared:
    """Load the config of a source and study its model.

    Raises:
        UnsupportedModel: it cannot be folded.
        UsageError: there is no such cut, or rows would not be smaller.
    """
    config = load_config(source, trust_remote_code=options.trust_remote_code)
    kind = load_kind(source, config, trust_remote_code=options.trust_remote_code)
    require_text(kind, text_only=options.text_only)
    dtype = resolve_dtype(source, config, options.dtype)
    return Prepared(source, options, config, kind, dtype, study_model(kind.model_class, config, options, dtype))
