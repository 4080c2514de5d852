"""The shapes that have names."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefold.common.errors import UnknownName
from prefold.plan.model.shape import Shape, find_shape, presets

# Weights with the embedding once, as their sources count them (pope2022.md, section 2).
PAPER = {
    "palm-8b": 8.63e9,
    "palm-62b": 62.50e9,
    "palm-540b-48": 540.36e9,
    "palm-540b": 558.17e9,
    "mt-nlg-530b": 529.5e9,
}
# Parameters of the models on the hub, norms and biases too: of Pythia as its model cards have them, of the others as
# the hub counts their tensors, without encoders of images (Gemma 3, Llama 4) and without a head that is stored a second
# time (Qwen3-0.6B); of DeepSeek as its technical report has them (arXiv 2412.19437, abstract).
PUBLISHED = {
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "deepseek-v3": 671e9,
    "deepseek-r1": 671e9,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama2-7b": 6_738_415_616,
    "llama2-70b": 68_976_648_192,
    "qwen3.5-397b-a17b": 397e9,  # by their names
    "glm-5": 744e9,
    "llama4-scout": 108_641_793_536 - 871_932_416,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-4b": 4_300_079_472 - 419_816_304,
    "gemma-3-12b": 12_187_325_040 - 421_290_864,
    "gemma-3-27b": 27_432_406_640 - 423_060_336,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "mistral-small-24b": 23_572_403_200,
    "mixtral-8x22b": 140_620_634_112,
    "phi-4": 14_659_507_200,
    "command-r-35b": 34_980_831_232,
    "kimi-k2": 1_026_408_232_448,
    "minimax-m2": 228_703_644_928,
}
# The same with a layer that predicts a second token, which has an embedding and a head of its own.
WITH_A_SECOND_TOKEN = {"glm-4.5-air": 110_468_824_832, "glm-4.5": 358_337_791_296}
# Weights that a token goes through, as their makers round them.
ACTIVE = {
    "gpt-oss-20b": 3.61e9,
    "gpt-oss-120b": 5.13e9,
    "mixtral-8x22b": 39e9,
    "qwen3-30b-a3b": 3.3e9,
    "qwen3-235b-a22b": 22e9,
    "kimi-k2": 32e9,
    "minimax-m2": 10e9,
    "glm-4.5-air": 12e9,
    "glm-4.5": 32e9,
    "llama4-scout": 17e9,
}
# Of Pythia without the embedding and the head, from its paper (Biderman et al. 2023, table 1).
WITHOUT_EMBEDDINGS = {
    "pythia-70m": 18_915_328,
    "pythia-160m": 85_056_000,
    "pythia-410m": 302_311_424,
    "pythia-1b": 805_736_448,
    "pythia-1.4b": 1_208_602_624,
    "pythia-2.8b": 2_517_652_480,
    "pythia-6.9b": 6_444_163_072,
    "pythia-12b": 11_327_027_200,
}


@pytest.mark.parametrize(("name", "weights"), PAPER.items())
def test_weights_are_those_of_the_paper(name: str, weights: float):
    assert find_shape(name).weights == pytest.approx(weights, rel=1e-3)


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_weights_are_the_published_parameters_but_for_norms_and_biases(name: str, parameters: float):
    assert find_shape(name).weights == pytest.approx(parameters, rel=5e-3)


@pytest.mark.parametrize(("name", "parameters"), WITH_A_SECOND_TOKEN.items())
def test_weights_are_the_published_parameters_but_for_a_layer_of_another_kind(name: str, parameters: float):
    shape = find_shape(name)
    longer = replace(shape, num_layers=shape.num_layers + 1).layer_weights
    more = 2 * shape.head_weights + 2 * shape.hidden_size**2
    assert longer + 2 * shape.head_weights + more == pytest.approx(parameters, rel=5e-3)


@pytest.mark.parametrize(("name", "active"), ACTIVE.items())
def test_a_token_goes_through_as_many_weights_as_its_maker_tells(name: str, active: float):
    assert find_shape(name).active_weights == pytest.approx(active, rel=0.1)


@pytest.mark.parametrize(("name", "parameters"), WITHOUT_EMBEDDINGS.items())
def test_layers_have_the_published_parameters(name: str, parameters: float):
    assert find_shape(name).layer_weights == pytest.approx(parameters, rel=5e-3)


def test_every_shape_is_checked_against_a_published_count():
    assert set(presets()) - PAPER.keys() - PUBLISHED.keys() - WITH_A_SECOND_TOKEN.keys() == {
        "whisper-tiny"
    }  # against its model, in test_config.py


def test_heads_added_for_the_mesh_are_eighteen_billion_weights():
    assert find_shape("palm-540b").weights - find_shape("palm-540b-48").weights == 118 * 2 * 16 * 256 * 18432


def test_a_token_goes_through_two_of_eight_experts():
    assert find_shape("mixtral-8x7b").active_weights == pytest.approx(12.75e9, rel=1e-3)


def test_a_token_goes_through_37_billion_weights_of_deepseek():
    assert find_shape("deepseek-v3").active_weights == pytest.approx(37e9, rel=2e-2)  # the report rounds to billions


def test_what_is_made_of_an_encoders_output_is_stored_and_not_read_in_a_step():
    whisper = find_shape("whisper-tiny")
    assert whisper.cross_weights == 2 * 384 * 384
    assert whisper.weights - whisper.weights_read(1) == whisper.num_layers * whisper.cross_weights


@pytest.mark.parametrize("shape", presets().values(), ids=presets())
def test_every_shape_has_a_source_and_plausible_figures(shape: Shape):
    assert shape.source
    assert shape.num_attention_heads % shape.num_key_value_heads == 0
    assert shape.nominal is None or shape.nominal == pytest.approx(shape.weights, rel=0.1)


@given(st.sampled_from(list(presets())), st.integers(1, 10_000))
def test_a_step_reads_no_more_than_there_is_and_no_less_than_one_token_needs(name: str, tokens: int):
    shape = find_shape(name)
    assert shape.active_weights * (1 - 1e-9) <= shape.weights_read(tokens) <= shape.weights
    assert shape.weights_read(tokens) <= shape.weights_read(tokens + 1)


def test_names_are_found_in_any_case():
    assert find_shape("PaLM-540B") is find_shape("palm-540b")


def test_an_unknown_name_comes_with_the_nearest():
    with pytest.raises(UnknownName, match=r"^palm-450b: no such shape; the nearest: palm-540b"):
        find_shape("palm-450b")


def test_the_catalogue_needs_neither_torch_nor_transformers():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from prefold.plan.chip.chips import catalogue\n"
        "from prefold.plan.model.config import shape_from_config\n"
        "from prefold.plan.model.shape import presets\n"
        "print(len(presets()), len(catalogue()))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.split() == [str(len(presets())), "24"]
