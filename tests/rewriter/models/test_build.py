"""Models are built by name with random weights, and get batches that they train on."""

import json
import logging

import pytest
import torch
from lowtide.rewriter.errors import ModelError
from lowtide.rewriter.models.batches import default_sequence, sample_batch
from lowtide.rewriter.models.build import build_model, head_of_model
from lowtide.rewriter.models.config_overrides import parse_settings
from lowtide.rewriter.models.resolve import choose_model, preset_names
from small_models import SMALL, UNSEEN, small_model


@pytest.mark.parametrize("name", [*SMALL, *UNSEEN])
def test_every_small_model_trains_one_step_with_dropout(name):
    model, batch = small_model(name)
    assert model.training
    loss = model(**batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    reached = [p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None]
    assert sum(reached) > 0.8 * len(list(model.parameters()))


@pytest.mark.parametrize("name", [n for n in [*SMALL, *UNSEEN] if n not in ("resnet", "mamba")])
def test_small_models_draw_random_numbers_when_trained(name):
    model, batch = small_model(name)
    before = torch.get_rng_state()
    model(**batch)
    assert not torch.equal(before, torch.get_rng_state())


def test_a_type_with_several_heads_for_its_task_is_built_with_images_of_the_side_it_fixes():
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = build_model("deit", overrides={**sizes, "image_size": 32, "patch_size": 8})
    assert type(model).__name__ == "DeiTForImageClassification"
    assert default_sequence(model) == 32
    assert sample_batch(model, 2)["pixel_values"].shape == (2, 3, 32, 32)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral", "gemma3_text"])
def test_small_llamas_share_keys_and_values_between_heads(name):
    config = choose_model(name, {**SMALL, **UNSEEN}[name]).config
    assert config.num_key_value_heads < config.num_attention_heads


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_stream_alone():
    before = torch.get_rng_state()
    first, second = small_model("gpt2")[0], small_model("gpt2")[0]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = small_model("gpt2", seed=1)[0]
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_a_batch_is_the_same_each_time_and_another_with_another_seed():
    model, batch = small_model("bert")
    repeated = sample_batch(model, 2, 24)
    assert all(torch.equal(batch[name], repeated[name]) for name in batch)
    assert not torch.equal(batch["input_ids"], sample_batch(model, 2, 24, seed=1)["input_ids"])


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "roberta"])
def test_padded_rows_end_early_and_ask_for_no_label_there(name):
    model, _ = small_model(name)
    batch = sample_batch(model, 3, 16, padded=True)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths == [16, 12, 8]
    assert (batch["labels"][2, 8:] == -100).all()
    assert torch.isfinite(model(**batch)["loss"])


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_builds_on_meta_with_its_batch(preset):
    choice = choose_model(preset)
    model = build_model(preset, meta=True)
    tensors = [
        *model.parameters(),
        *model.buffers(),
        *sample_batch(model, choice.batch, choice.sequence).values(),
    ]
    assert all(tensor.is_meta for tensor in tensors)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, choice.dtype)}


def test_llama_70b_has_the_shape_of_llama_3_70b():
    count = sum(p.numel() for p in build_model("llama-70b", meta=True).parameters())
    assert count == 70_553_706_496


def test_settings_are_typed_by_what_the_configuration_has_now():
    settings = parse_settings(["num_hidden_layers=2", "embd_pdrop=0", "use_cache=false", "n_inner=64"])
    config = choose_model("gpt2", settings).config
    assert (config.n_layer, config.embd_pdrop, config.use_cache, config.n_inner) == (2, 0.0, False, 64)


def test_a_dotted_name_reaches_a_nested_configuration():
    config = choose_model("gemma3", {"text_config.num_hidden_layers": "2", "text_config.vocab_size": "99"}).config
    assert config.text_config.num_hidden_layers == 2
    assert choose_model("llama", {"rope_parameters.rope_theta": "5e5"}).config.rope_parameters["rope_theta"] == 5e5


def test_what_follows_from_a_changed_field_follows():
    config = choose_model("qwen3", {"num_hidden_layers": "5"}).config
    assert len(config.layer_types) == 5


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gpt2", {"n_layers": "4"}, r"configuration of gpt2 has no n_layers; did you mean n_layer"),
        ("gpt2", {"n_layer": "four"}, r"n_layer of gpt2 is 12 by default, of type int; got 'four'"),
        (
            "gpt2",
            {"use_cache": "perhaps"},
            r"use_cache of gpt2 is True by default, of type bool; got 'perhaps'",
        ),
        (
            "llama",
            {"rope_parameters.theta": "1"},
            r"rope_parameters of llama has no theta; it holds rope_theta",
        ),
        ("gpt2", {"n_embd.width": "1"}, r"n_embd of gpt2 is 768, so it has no width; set n_embd itself"),
        ("gtp2", {}, r"no model is called 'gtp2': did you mean gpt2"),
        ("./nowhere", {}, r"nowhere does not exist; give a folder with a config.json"),
        ("nobody/nothing", {}, r"nobody/nothing is not a local folder and cannot be read from the hub"),
    ],
)
def test_what_cannot_be_configured_says_why(name, settings, message):
    with pytest.raises(ModelError, match=message):
        choose_model(name, settings)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpt2", {"overrides": {"n_head": "7"}}, r"gpt2 cannot be built with these options: .*divisible"),
        ("gpt2", {"dtype": "int4"}, r"dtype 'int4' is not one of float32, bfloat16"),
        ("detr", {}, r"detr has none of the heads that lowtide can make a batch for"),
        ("gpt2", {"overrides": SMALL["gpt2"], "device": "warp"}, r"gpt2 cannot be placed on device 'warp'"),
    ],
)
def test_what_cannot_be_built_says_why(name, options, message):
    with pytest.raises(ModelError, match=message):
        build_model(name, **options)


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(ModelError, match=r"--set 'n_layer' is not NAME=VALUE"):
        parse_settings(["n_layer"])


def test_a_sequence_longer_than_the_positions_is_refused_with_what_would_help():
    model, _ = small_model("gpt2")
    with pytest.raises(
        ModelError, match=r"positions for 32 tokens, got a sequence of 33; .*max_position_embeddings=33"
    ):
        sample_batch(model, 2, 33)
    assert default_sequence(model) == 32
    # RoBERTa's positions start after its padding id.
    assert default_sequence(small_model("roberta")[0]) == SMALL["roberta"]["max_position_embeddings"] - 2


def test_a_module_of_unknown_kind_is_refused():
    with pytest.raises(ModelError, match="lowtide cannot make a batch for Linear"):
        sample_batch(torch.nn.Linear(2, 2), 1, 4)


def test_a_folder_or_file_with_a_configuration_stands_for_its_model(tmp_path):
    config = choose_model("bert", SMALL["bert"]).config
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(tmp_path)
    for name in (str(tmp_path), str(tmp_path / "config.json")):
        model = build_model(name, overrides={"num_hidden_layers": "1"})
        assert head_of_model(model).task == "text class"
        assert model.config.num_hidden_layers == 1 and model.config.vocab_size == SMALL["bert"]["vocab_size"]
        assert torch.isfinite(model(**sample_batch(model, 2, 8))["loss"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bort"}))
    with pytest.raises(ModelError, match="configured as model_type 'bort', which transformers does not know"):
        build_model(str(tmp_path))


def test_small_vocabularies_and_losses_make_transformers_warn_of_nothing(caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        for name in ("gpt2", "t5", "whisper"):
            model, batch = small_model(name)
            model(**batch)
        build_model("gpt2-small-cpu")
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []
