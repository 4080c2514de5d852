"""``prefold plan``, ``hardware`` and ``shapes`` as a shell sees them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CpmAntConfig

from tests.conftest import small_config
from tests.convert.conftest import environment
from tests.hub_server import HubServer, read_folder

CONFIGS = Path(__file__).parents[1] / "configs"
PALM = [
    "palm-540b",
    "--hardware",
    "tpu-v4",
    "--chips",
    "64",
    "--phase",
    "decode",
    "--batch",
    "512",
    "--context",
    "2048",
]
FIGURES = {
    *("ffn_layout", "attention_layout", "ideal_seconds", "calibrated_seconds", "mfu", "chip_seconds_per_token"),
    *("memory_bytes_per_chip", "fits", "bound"),
}
ONE_CHIP = """
[mine]
peak = {{ bf16 = "100 TFLOP/s" }}
memory = "{memory}"
memory_bandwidth = "1000 GB/s"
link_bandwidth = "0 GB/s"
host_bandwidth = "32 GB/s"
disk_bandwidth = "3 GB/s"
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan", "--help"], 0),
        (["hardware", "--help"], 0),
        (["shapes", "--help"], 0),
        (["plan", "llama3-8b", "--hardware", "h100", "--latency-target", "20ms"], 0),
        (["plan", *PALM, "--json"], 0),
        (["hardware"], 0),
        (["shapes", "palm-540b"], 0),
        (["plan", "palm-54b", "--hardware", "tpu-v4"], 2),
        (["plan", "palm-540b", "--hardware", "phone"], 3),
        (["plan", "./not/there", "--hardware", "l4"], 2),
    ],
)
def test_presets_need_neither_torch_nor_transformers_nor_matplotlib(arguments: list[str], code: int):
    look = (
        "import sys; sys.argv = ['prefold', *sys.argv[1:]]\n"
        "from prefold.cli.main import main\n"
        "code = 0\n"
        "try: main()\n"
        "except SystemExit as ended: code = ended.code or 0\n"
        "loaded = {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(code if not loaded else f'loaded {loaded}')"
    )
    done = subprocess.run([sys.executable, "-c", look, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "--help" not in arguments or "Example" in done.stdout


def test_every_layout_and_the_chosen_one_are_told_as_json(prefold):
    ran = prefold("plan", *PALM, "--json")
    told = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert {each["ffn_layout"] for each in told["layouts"]} == {"1d-ws", "2d-ws", "wg-x", "wg-xy", "wg-xyz"}
    assert all(each.keys() >= FIGURES for each in [*told["layouts"], told["chosen"], told["folded"]["chosen"]])
    assert (told["chosen"]["ffn_layout"], told["chosen"]["attention_layout"]) == ("2d-ws", "batch")
    assert told["chosen"]["ideal_seconds"] < told["chosen"]["calibrated_seconds"]
    assert all({"name", "seconds_saved", "share"} <= each.keys() for each in told["levers"])
    assert len(told["sweep"]) > 10


def test_the_text_has_what_the_json_has(prefold):
    ran, told = prefold("plan", *PALM), json.loads(prefold("plan", *PALM, "--json").out)
    assert ran.code == 0
    assert told["verdict"] in ran.out
    for lever in told["levers"]:
        assert lever["name"] in ran.out
    for layout in told["layouts"]:
        assert f"{layout['mfu']:.1%}" in ran.out
        assert f"{layout['ffn_layout']:<6}  {layout['attention_layout']}" in ran.out
    assert "GiB over" in ran.out
    assert "yes, chosen" in ran.out
    assert "folded" in ran.out


def test_a_chip_that_nobody_measured_has_ideal_times_only(prefold):
    arguments = ["plan", "llama3-8b", "--hardware", "mi300x", "--batch", "8"]
    ran, told = prefold(*arguments), json.loads(prefold(*arguments, "--json").out)
    assert told["chosen"]["calibrated_seconds"] is None
    assert told["chosen"]["basis"] == "ideal"
    assert "calibrated: no measurements of mi300x" in ran.out
    assert "(calibrated)" not in ran.out


SERVED = ("plan", "llama3.1-70b", "--hardware", "h100", "--prompt", "1024", "--new-tokens", "1024")


def test_serving_has_its_times_in_text_and_json(prefold):
    arguments = [*SERVED, "--chips", "4", "--concurrency", "64"]
    ran, told = prefold(*arguments), json.loads(prefold(*arguments, "--json").out)
    serving = told["serving"]
    assert serving["fits"] is True
    assert 0 < serving["ideal_tpot_seconds"] < serving["tpot_seconds"] < serving["ttft_seconds"]
    assert serving["concurrency_that_fits"] > 64
    assert serving["tokens_per_second_per_user"] == 1 / serving["tpot_seconds"]
    assert f"{serving['output_tokens_per_second']:,.1f}" in ran.out
    assert "from token to token, ideal" in ran.out
    assert "--tensor-parallel-size 4 --max-num-seqs 64 --max-model-len 2048 --gpu-memory-utilization 0.9" in ran.out
    assert told["commands"]["vllm"] in ran.out


def test_a_service_is_searched_over_chips_types_and_requests(prefold):
    told = json.loads(prefold(*SERVED, "--latency-target", "15ms", "--ttft-target", "1s", "--json").out)
    assert told["serving"]["fits"]
    assert told["serving"]["tpot_seconds"] <= 0.015
    assert told["serving"]["ttft_seconds"] <= 1
    assert (told["workload"]["weights"], told["workload"]["kv"]) == ("fp8", "fp8")
    kept = json.loads(prefold(*SERVED, "--latency-target", "20ms", "--weights", "bf16", "--kv", "bf16", "--json").out)
    assert (kept["workload"]["weights"], kept["workload"]["kv"]) == ("bf16", "bf16")


def test_tensorrt_keeps_its_own_cache_and_requests_that_wait_are_named(prefold):
    ran = prefold(*SERVED, "--chips", "2", "--weights", "fp8", "--engine", "tensorrt-llm", "--concurrency", "4096")
    assert "KV cache fp8" in ran.out
    assert "the others wait" in ran.out
    assert ran.code == 0


def test_a_service_of_which_not_one_request_fits_is_refused(prefold):
    ran = prefold(*SERVED, "--chips", "1", "--concurrency", "1")
    assert (ran.code, ran.err.count("\n")) == (3, 1)
    assert "int4 weights would fit" in ran.err


def test_a_draft_is_among_the_levers_where_its_acceptance_is_given(prefold):
    plain, drafted = (
        json.loads(prefold(*SERVED, "--chips", "4", "--concurrency", "1", "--json", *more).out)
        for more in ([], ["--acceptance", "0.7"])
    )
    assert "draft" not in {each["name"] for each in plain["levers"]}
    assert next(each for each in drafted["levers"] if each["name"] == "draft")["share"] > 0.3


def test_without_a_number_of_chips_it_takes_the_fewest(prefold):
    assert json.loads(prefold("plan", "palm-540b", "--hardware", "tpu-v4", "--json").out)["chips"] == 64
    assert json.loads(prefold("plan", "pythia-70m", "--hardware", "tpu-v4", "--json").out)["chips"] == 1


def test_a_mesh_is_taken_as_it_is(prefold):
    told = json.loads(prefold("plan", "palm-540b", "--hardware", "tpu-v4", "--mesh", "2x4x8", "--json").out)
    assert (told["chips"], told["mesh"]) == (64, "2x4x8")


def test_a_table_lies_where_it_is_told_to(prefold):
    told = json.loads(prefold("plan", *PALM, "--table", "host", "--json").out)
    assert told["folded"]["table"]["placement"] == "host"
    assert told["folded"]["chosen"]["terms"]["link_rows"] > 0


def test_shared_prefixes_are_among_the_levers(prefold):
    arguments = [
        "plan",
        "llama3-8b",
        "--hardware",
        "h100",
        "--batch",
        "16",
        "--branches",
        "8",
        "--shared-prefix",
        "1500",
    ]
    levers = json.loads(prefold(*arguments, "--json").out)["levers"]
    assert next(each for each in levers if each["name"] == "sharing prefixes")["seconds_saved"] > 0


def test_a_latency_finds_the_cheapest_plan_within_it(prefold):
    arguments = ["plan", "palm-540b", "--hardware", "tpu-v4", "--weights", "int8", "--latency-target", "30ms"]
    told = json.loads(prefold(*arguments, "--json").out)
    cost = told["chosen"]["chip_seconds_per_token"]
    within = [each for each in told["sweep"] if each["fits"] and each["calibrated_seconds"] <= 0.03]
    assert told["chosen"]["calibrated_seconds"] <= 0.03
    assert cost == min(each["chip_seconds_per_token"] for each in within)
    assert len({each["chips"] for each in told["sweep"]}) > 1


def test_what_was_given_is_not_searched(prefold):
    found = prefold("plan", *PALM, "--latency-target", "200ms", "--json")
    told = json.loads(found.out)
    assert (told["chips"], told["workload"]["batch"]) == (64, 512)
    assert prefold("plan", *PALM, "--latency-target", "20ms").code == 3


def test_a_cost_finds_the_fastest_plan_within_it(prefold):
    told = json.loads(prefold("plan", "palm-540b", "--hardware", "tpu-v4", "--max-cost", "0.01", "--json").out)
    within = [each for each in told["sweep"] if each["fits"] and each["chip_seconds_per_token"] <= 0.01]
    assert told["chosen"]["calibrated_seconds"] == min(each["calibrated_seconds"] for each in within)


def test_what_does_not_fit_is_shown_and_refused(prefold):
    arguments = ["plan", "palm-540b", "--hardware", "tpu-v4", "--chips", "8"]
    ran, told = prefold(*arguments), prefold(*arguments, "--json")
    assert (ran.code, told.code) == (3, 3)
    assert not any(each["fits"] for each in json.loads(told.out)["layouts"])
    assert "GiB over" in ran.out
    assert ran.err.count("\n") == told.err.count("\n") == 1
    assert "too large" in ran.err


def test_the_documented_example_is_todays_output(prefold):
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    command, *shown = page.split("```text\n")[1].split("```")[0].splitlines()
    told = [line.rstrip() for line in prefold(*command.removeprefix("$ prefold ").split()).out.splitlines()]
    assert shown == told[: len(shown)]


@pytest.mark.parametrize("kind", ["svg", "png", "html"])
def test_a_plot_is_written_beside_the_figures(prefold, tmp_path: Path, kind: str):
    file = tmp_path / f"plan.{kind}"
    ran = prefold("plan", *PALM, "--plot", file, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["model"] == "palm-540b"
    assert file.stat().st_size > 10_000


def test_a_config_is_the_same_as_its_preset(prefold):
    told = [
        json.loads(prefold("plan", model, "--hardware", "h100", "--json").out)
        for model in ("mistral-7b", CONFIGS / "mistral-7b.json")
    ]
    assert told[0]["layouts"] == told[1]["layouts"]
    assert told[1]["model"].endswith("mistral-7b.json")


def test_what_a_config_does_not_say_is_found_by_experiment(prefold, tmp_path: Path):
    small_config("gptj").save_pretrained(tmp_path)
    told = json.loads(prefold("shapes", tmp_path, "--json").out)
    assert (told["parallel"], told["gated"]) == (True, False)


def test_of_a_hub_id_the_config_alone_is_fetched(tmp_path: Path):
    small_config("gptj").save_pretrained(tmp_path / "source")
    look = [sys.executable, "-m", "prefold.cli.main", "shapes", "org/small", "--json"]
    with HubServer() as server:
        server.add("org/small", read_folder(tmp_path / "source") | {"model.safetensors": b"not to be fetched"})
        settings = environment(server.url, tmp_path / "home")
        done = subprocess.run(look, env=settings, capture_output=True, text=True, check=False)
        fetched = {name for _, name in server.resolved("org/small")}
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["name"], json.loads(done.stdout)["parallel"]) == ("org/small", True)
    assert fetched == {"config.json"}


def test_what_neither_says_can_be_told(prefold, tmp_path: Path):
    small_config("gpt2").save_pretrained(tmp_path)
    refused = prefold("plan", tmp_path, "--hardware", "h100")
    assert (refused.code, refused.out) == (2, "")
    assert "--not-gated" in refused.err
    assert prefold("plan", tmp_path, "--hardware", "h100", "--not-gated").code == 0


def test_of_a_model_that_does_not_fold_it_says_so(prefold, tmp_path: Path):
    CpmAntConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, dim_head=8).save_pretrained(
        tmp_path
    )
    ran = prefold("plan", tmp_path, "--hardware", "h100", "--not-gated", "--json")
    assert ran.code == 0
    assert "does not fold" in ran.err
    assert json.loads(ran.out)["chosen"]["fits"]


def test_a_preset_can_be_thought_of_otherwise(prefold):
    one, other = (json.loads(prefold("plan", *PALM, *more, "--json").out) for more in ([], ["--serial"]))
    assert other["chosen"]["terms"]["communication"] > one["chosen"]["terms"]["communication"]


def test_a_chip_may_come_from_a_file(prefold, tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(ONE_CHIP.format(memory="24 GB"))
    told = json.loads(prefold("plan", "llama3-8b", "--hardware", file, "--json").out)
    assert told["hardware"] == "mine"
    assert "24" not in prefold("hardware", file).err


def test_a_file_without_units_is_refused(prefold, tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(ONE_CHIP.format(memory="24"))
    ran = prefold("plan", "llama3-8b", "--hardware", file)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "memory: '24' is not a number of bytes with its unit" in ran.err


def test_a_config_without_fields_is_refused_with_all_of_them(prefold, tmp_path: Path):
    config = json.loads((CONFIGS / "mistral-7b.json").read_text())
    for field in ("hidden_size", "num_hidden_layers"):
        del config[field]
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = prefold("plan", tmp_path, "--hardware", "h100")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "hidden_size, num_hidden_layers" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["plan", "palm-54b", "--hardware", "tpu-v4"], 2, "the nearest: palm-540b"),
        (["plan", "palm-540b", "--hardware", "tpu-v5"], 2, "the nearest: tpu-v5e"),
        (["hardware", "h10"], 2, "h100"),
        ([*SERVED, "--chips", "4", "--concurrency", "0"], 2, "--concurrency: 0 requests; at least one"),
        ([*SERVED, "--batch", "4"], 2, "--prompt plans serving"),
        ([*SERVED[:4], "--prompt", "100"], 2, "--new-tokens: how many"),
        ([*SERVED[:4], "--concurrency", "4"], 2, "--concurrency: of requests to serve; --prompt is missing"),
        ([*SERVED[:4], "--ttft-target", "1s"], 2, "--ttft-target: of requests to serve"),
        ([*SERVED, "--engine", "vlm"], 2, "the nearest: vllm"),
        ([*SERVED, "--acceptance", "2"], 2, "2.0 is no probability"),
        ([*SERVED, "--branches", "4"], 2, "--branches are of one pass"),
        ([*SERVED[:4], "--engine", "vllm"], 2, "--engine: of requests to serve"),
        ([*SERVED[:4], "--latency-target", "0ms"], 2, "a target is above 0"),
        (["plan", "llama3-8b", "--hardware", "rtx-4090", "--chips", "16"], 3, "nothing joins more than 8 of them"),
        ([*SERVED, "--latency-target", "1us"], 3, "per token: the nearest takes"),
        (["shapes", "llama-8b"], 2, "llama3-8b"),
        (["plan", *PALM, "--mesh", "4x4x8"], 3, "mesh 4x4x8 has 128 chips, not 64"),
        (["plan", "palm-540b", "--hardware", "tpu-v4", "--mesh", "4x4"], 2, "not a mesh"),
        (["plan", "llama3-8b", "--hardware", "phone", "--chips", "2"], 3, "nothing joins several"),
        (["plan", *PALM, "--branches", "3"], 2, "not a multiple of 3 branches"),
        (["plan", "palm-540b", "--hardware", "tpu-v4", "--batch", "0"], 2, "at least one sequence"),
        (["plan", *PALM, "--weights", "int3"], 2, "int3: no such type"),
        (["plan", *PALM, "--phase", "both"], 2, "both: no such phase"),
        (["plan", *PALM, "--table", "cloud"], 2, "no such place"),
        (["plan", *PALM, "--latency-target", "30"], 2, "not a number of seconds with its unit"),
        (["plan", *PALM, "--latency-target", "3ms", "--max-cost", "1"], 2, "give one of the two kinds"),
        (["plan", "palm-540b", "--hardware", "tpu-v4", "--latency-target", "3ms"], 3, "the nearest takes"),
        (["plan", "palm-540b", "--hardware", "tpu-v4", "--max-cost", "1e-5"], 3, "the nearest costs"),
        (["plan", "palm-540b", "--hardware", "l4", "--latency-target", "1s"], 3, "nothing fits"),
        (["plan", *PALM, "--plot", "plan.pdf"], 2, "a plot is one of"),
        (["plan", "./nothing", "--hardware", "h100"], 2, "no such file"),
        (["plan", "palm-540b"], 2, "--hardware"),
    ],
)
def test_errors_are_one_line_and_a_code(prefold, arguments: list[str], code: int, line: str):
    ran = prefold(*arguments)
    assert ran.code == code
    assert line in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_matplotlib_is_asked_for_before_any_work(prefold, monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = prefold("plan", *PALM, "--plot", tmp_path / "plan.svg")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "prefold[plot]" in ran.err


def test_hardware_lists_every_chip_and_the_source_of_each_figure(prefold):
    listed, told = prefold("hardware").out, json.loads(prefold("hardware", "--json").out)["hardware"]
    assert all(chip["name"] in listed for chip in told)
    shown, one = prefold("hardware", "tpu-v4").out, json.loads(prefold("hardware", "tpu-v4", "--json").out)
    assert all(source in shown for source in one["source"].values())
    assert one["axes"]["64"] == [4, 4, 4]
    assert "table D.2" in shown


def test_shapes_lists_every_preset_and_its_source(prefold):
    listed, told = prefold("shapes").out, json.loads(prefold("shapes", "--json").out)["shapes"]
    assert all(shape["name"] in listed for shape in told)
    one = json.loads(prefold("shapes", "deepseek-v3", "--json").out)
    assert one["experts"]["num_experts"] == 256
    assert one["source"] in prefold("shapes", "deepseek-v3").out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--max-cost", "nan"], "nan is no number of chip-seconds above 0"),
        (["--max-cost", "0"], "0.0 is no number of chip-seconds above 0"),
        (["--batch", "4", "--shared-prefix", "100"], "shared prefix 100: no branches share it: it needs two and more"),
    ],
)
def test_a_question_without_an_answer_is_one_line(prefold, arguments: list[str], line: str):
    ran = prefold("plan", "pythia-70m", "--hardware", "l4", *arguments)
    assert ran.code == 2
    assert line in " ".join(ran.err.replace("│", " ").split())


def test_broken_json_is_no_model(prefold, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"a":')
    for command in (["plan", tmp_path / "config.json", "--hardware", "l4"], ["inspect", tmp_path / "config.json"]):
        ran = prefold(*command)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1)
        assert "no config.json of a model: config.json: not JSON" in ran.err


def test_weights_begin_with_what_the_checkpoint_stores(prefold, tmp_path: Path):
    config = json.loads((CONFIGS / "mistral-7b.json").read_text())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    own, asked = (
        json.loads(prefold("plan", file, "--hardware", "h100", *more, "--json").out)["workload"]["weights"]
        for more in ([], ["--weights", "int4"])
    )
    assert (own, asked) == ("fp8", "int4")
    file.write_text(json.dumps(config | {"quantization_config": {"quant_method": "vptq"}}))
    ran = prefold("plan", file, "--hardware", "h100", "--json")
    assert json.loads(ran.out)["workload"]["weights"] == "bf16"
    assert "vptq: no such type of weights; they are counted as bf16" in ran.err


def test_heads_on_too_many_chips_are_said_to_be_copied(prefold):
    ran = prefold("plan", "llama3-8b", "--hardware", "h100", "--mesh", "1x16x1", "--batch", "16")
    assert "8 heads of keys and values on 16 chips: each is kept twice" in ran.out


def test_the_share_of_the_memory_decides_what_fits(prefold):
    arguments = ["plan", "llama3-8b", "--hardware", "l4", "--chips", "1", "--context", "32000", "--json"]
    some, more = (json.loads(prefold(*arguments, "--memory-share", share).out) for share in ("0.8", "1"))
    assert [each["chosen"]["fits"] for each in (some, more)] == [False, True]
    held = more["chosen"]["memory"]
    assert sum(held.values()) - held["reserved"] == pytest.approx(more["chosen"]["memory_bytes_per_chip"])


def test_an_encoder_is_planned_as_a_prefill_and_has_no_decode_step(prefold, tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_text(small_config("bert").to_json_string())
    arguments = ["plan", file, "--hardware", "h100", "--not-gated", "--serial", "--context", "128"]
    ran, refused = prefold(*arguments, "--json"), prefold(*arguments, "--phase", "decode")
    assert json.loads(ran.out)["workload"]["phase"] == "prefill"
    assert (ran.code, refused.code) == (0, 3)
    assert refused.err.endswith("an encoder has no decode step; its one pass is a prefill\n")
    assert refused.err.count("\n") == 1
