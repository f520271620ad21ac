"""Checkpoints that were pruned elsewhere: made here in each format; they must compute what their source computes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from hf_headprune.errors import HeadPruneError, InvalidConfigError, InvalidSettingError, UnsupportedModelError
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.migration import migrate_checkpoint
from hf_headprune.shrink.saved_plan import plan_from_dense
from tests.support.foreign_checkpoints import cut_heads_, cut_units_, save_config, weights_of
from tests.support.models import TINY_FAMILIES, amplified, text_inputs, tiny_bert, tiny_distilbert, tiny_roberta

HEADS = {0: [1, 2], 1: [3]}  # pruned ones
SITES = {layer: f"encoder.layer.{layer}.attention" for layer in (0, 1)}


@torch.no_grad()
def logits(model):
    return model(**text_inputs()).logits


def expect(folder, outputs, **options):
    """Migrates, and checks the outputs before and after the model is saved and read again."""
    model = migrate_checkpoint(folder, **options)
    torch.testing.assert_close(logits(model), outputs, rtol=1e-4, atol=1e-5)
    model.save_pretrained(folder / "ours")
    reread = AutoModelForSequenceClassification.from_pretrained(folder / "ours")
    assert type(reread) is type(model)
    torch.testing.assert_close(logits(reread), logits(model), rtol=0, atol=0)
    assert "pruned_heads" not in (folder / "ours" / "config.json").read_text()
    return model


def masked_by_hand(model, head_mask):
    """Outputs where the context of each head is multiplied by its factor, by a hook of the test alone."""
    width = model.config.hidden_size // model.config.num_attention_heads
    layers = model.base_model.encoder.layer
    handles = [
        layer.attention.output.dense.register_forward_pre_hook(
            lambda _, args, row=row: (args[0] * row.repeat_interleave(width),)
        )
        for layer, row in zip(layers, head_mask, strict=True)
    ]
    outputs = logits(model)
    for handle in handles:
        handle.remove()
    return outputs


# --- Transformers 4 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_bert, tiny_roberta])
def test_a_checkpoint_of_transformers_4_is_read_with_the_plan_that_it_lists(make, tmp_path):
    dense = amplified(make(num_labels=2))
    mask = torch.ones(2, 4)
    mask[0, [1, 2]] = mask[1, 3] = 0
    outputs = masked_by_hand(dense, mask)
    save_config(tmp_path, dense, pruned_heads=HEADS)
    save_file(cut_heads_(weights_of(dense), dense.base_model_prefix, HEADS), tmp_path / "model.safetensors")
    model = expect(tmp_path, outputs)
    kept = {site: tuple(h for h in range(4) if h not in HEADS[layer]) for layer, site in SITES.items()}
    assert plan_from_dense(model).kept_heads == kept
    saved = PruningPlan.from_json((tmp_path / "ours" / "headprune_plan.json").read_text())
    assert saved.kept_heads == kept


def test_a_layer_without_heads_is_read_although_transformers_4_could_not_run_it(tmp_path):
    dense = amplified(tiny_bert(num_labels=2))
    mask = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]])
    save_config(tmp_path, dense, pruned_heads={0: [0, 1, 2, 3]})
    save_file(cut_heads_(weights_of(dense), "bert", {0: [0, 1, 2, 3]}), tmp_path / "model.safetensors")
    model = expect(tmp_path, masked_by_hand(dense, mask))
    assert [len(kept) for kept in PruningPlan.of(model).kept_heads.values()] == [0, 4]


def test_other_paths_and_transposed_matrices_are_read(tmp_path):
    dense = amplified(tiny_distilbert(num_labels=2))
    save_config(tmp_path / "distilbert", dense, pruned_heads={1: [0]})
    layers, names = "distilbert.transformer.layer", ("q_lin", "k_lin", "v_lin", "out_lin")
    cut = cut_heads_(weights_of(dense), "", {1: [0]}, site=f"{layers}.{{}}.attention", names=names)
    save_file(cut, tmp_path / "distilbert" / "model.safetensors")
    with torch.no_grad():
        dense.distilbert.transformer.layer[1].attention.out_lin.weight[:, :8] = 0
    expect(tmp_path / "distilbert", logits(dense))

    gpt2 = amplified(TINY_FAMILIES["gpt2"].make())
    weights = weights_of(gpt2)
    kept = torch.tensor([head * 8 + column for head in (0, 2, 3) for column in range(8)])
    with torch.no_grad():
        gpt2.transformer.h[0].attn.c_proj.weight[8:16] = 0
    own = "transformer.h.0.attn.c_attn"
    fused = torch.cat([part * 32 + kept for part in range(3)])
    weights[f"{own}.weight"], weights[f"{own}.bias"] = weights[f"{own}.weight"][:, fused], weights[f"{own}.bias"][fused]
    weights["transformer.h.0.attn.c_proj.weight"] = weights["transformer.h.0.attn.c_proj.weight"][kept]
    save_config(tmp_path / "gpt2", gpt2, pruned_heads={0: [1]})
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "gpt2" / "model.safetensors")
    migrated = migrate_checkpoint(tmp_path / "gpt2")
    torch.testing.assert_close(logits(migrated), logits(gpt2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pruned_heads", "message"),
    [
        ({0: [1]}, "layer 0: pruned_heads lists 1 of 4 heads, and the weights have 2"),
        ({0: [1, 2], 1: [3], 2: [0]}, r"pruned_heads lists head 0 of layer 2, which has 0"),
        *(
            (wrong, "pruned_heads must map layers to lists of heads, each a whole number and there once")
            for wrong in (
                {0: "many"},
                {0: "12"},
                {0: [-1, 2]},
                {0: [1, 1]},
                {0: [1.5, 2]},
                {"a": [1]},
                [1],
                {0: [1e999]},
            )
        ),
    ],
)
def test_a_list_that_contradicts_the_weights_is_refused(pruned_heads, message, tmp_path):
    dense = amplified(tiny_bert(num_labels=2))
    save_config(tmp_path, dense, pruned_heads=pruned_heads)
    save_file(cut_heads_(weights_of(dense), "bert", HEADS), tmp_path / "model.safetensors")
    with pytest.raises(InvalidConfigError, match=message):
        migrate_checkpoint(tmp_path)


def test_listed_heads_that_the_weights_still_have_are_refused(tmp_path):
    dense = amplified(tiny_bert(num_labels=2))
    save_config(tmp_path, dense, pruned_heads=HEADS)
    save_file(weights_of(dense), tmp_path / "model.safetensors")
    with pytest.raises(InvalidConfigError, match=r"layer 0: pruned_heads lists heads \[1, 2\], and the weights have"):
        migrate_checkpoint(tmp_path)


# --- TextPruner ------------------------------------------------------------------------------------------------------


def textpruner_folder(folder):
    """What TextPruner saves: a pickle, heads as Transformers 4 cuts them, one narrower FFN width for all layers."""
    dense = amplified(tiny_bert(num_labels=2))
    with torch.no_grad():
        for layer, heads in HEADS.items():
            own = dense.bert.encoder.layer[layer]
            own.attention.output.dense.weight[:, [8 * head + i for head in heads for i in range(8)]] = 0
            own.output.dense.weight[:, 40:] = 0
    save_config(folder, dense, pruned_heads=HEADS, intermediate_size=40)
    torch.save(cut_units_(cut_heads_(weights_of(dense), "bert", HEADS), 40), folder / "pytorch_model.bin")
    return logits(dense)


def test_a_textpruner_folder_is_read(tmp_path):
    outputs = textpruner_folder(tmp_path)
    model = expect(tmp_path, outputs, allow_pickle=True)
    assert [layer.intermediate.dense.out_features for layer in model.bert.encoder.layer] == [40, 40]
    assert plan_from_dense(model).num_removed_heads == 3


def test_ffn_widths_that_differ_by_layer_are_read_without_a_plan(tmp_path):
    dense = amplified(tiny_bert(num_labels=2))
    weights = cut_units_(weights_of(dense), 24, layers=(1,))
    with torch.no_grad():
        dense.bert.encoder.layer[1].output.dense.weight[:, 24:] = 0
    save_config(tmp_path, dense)
    save_file(weights, tmp_path / "model.safetensors")
    model = expect(tmp_path, logits(dense))
    assert plan_from_dense(model) is None, "which units they were is not known"


# --- nn_pruning ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def zero_(model):
    """Zeros as block movement pruning leaves them: biases stay, and so does a head with query rows of zeros alone."""
    first, second = model.bert.encoder.layer
    for part in (first.attention.self.query, first.attention.self.key, first.attention.self.value):
        part.weight[8:16] = 0
    second.attention.output.dense.weight[:, :8] = 0
    second.attention.self.query.weight[24:] = 0
    first.intermediate.dense.weight[:20] = 0
    second.output.dense.weight[:, 50:] = 0
    return model


@pytest.mark.parametrize("listed", [None, {0: [1]}])
def test_zeros_of_nn_pruning_are_cut_and_what_their_biases_add_is_kept(listed, tmp_path):
    dense = zero_(amplified(tiny_bert(num_labels=2)))
    save_config(tmp_path, dense, **({} if listed is None else {"pruned_heads": listed}))
    save_file(weights_of(dense), tmp_path / "model.safetensors")
    model = expect(tmp_path, logits(dense))
    plan = plan_from_dense(model)
    assert plan.kept_heads == {SITES[0]: (0, 2, 3), SITES[1]: (1, 2, 3)}
    assert [len(kept) for kept in plan.kept_ffn.values()] == [44, 50]


def test_cut_heads_beside_zeros_of_full_size_are_read(tmp_path):
    dense = amplified(tiny_bert(num_labels=2))
    with torch.no_grad():
        dense.bert.encoder.layer[0].attention.output.dense.weight[:, 8:24] = 0
        dense.bert.encoder.layer[0].intermediate.dense.weight[:20] = 0
    save_config(tmp_path, dense, pruned_heads={0: [1, 2]})
    save_file(cut_heads_(weights_of(dense), "bert", {0: [1, 2]}), tmp_path / "model.safetensors")
    plan = plan_from_dense(expect(tmp_path, logits(dense)))
    assert (plan.kept_heads[SITES[0]], plan.num_removed_ffn) == ((0, 3), 20)


def test_layers_without_layer_norm_are_refused(tmp_path):
    save_config(tmp_path, tiny_bert(), layer_norm_type="no_norm")
    with pytest.raises(UnsupportedModelError, match="layer_norm_type is 'no_norm'"):
        migrate_checkpoint(tmp_path)


# --- masks beside a dense model --------------------------------------------------------------------------------------


@pytest.fixture
def dense_folder(tmp_path):
    """A saved BERT, and the model."""
    model = amplified(tiny_bert(num_labels=2))
    model.save_pretrained(tmp_path)
    return tmp_path, model


def test_a_head_mask_is_cut_and_factors_between_are_exact(dense_folder):
    folder, dense = dense_folder
    mask = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]])
    torch.save(mask, folder / "head_mask.pt")
    model = expect(folder, masked_by_hand(dense, mask), allow_pickle=True)
    assert plan_from_dense(model).kept_heads == {SITES[0]: (0, 2, 3), SITES[1]: ()}


def zs(**changes):
    """Masks of CoFi for the tiny BERT, in the shapes that it saves."""
    found = {
        "head_z": torch.ones(2, 1, 4, 1, 1),
        "intermediate_z": torch.ones(2, 1, 1, 64),
        "head_layer_z": torch.tensor([1.0, 0.8]),
        "mlp_z": torch.tensor([0.9, 1.0]),
        "hidden_z": torch.ones(32),
    }
    found["head_z"][0, 0, 1] = 0
    found["head_z"][1, 0, 2] = 0.7
    found["intermediate_z"][0, 0, 0, :30] = 0
    found["intermediate_z"][1, 0, 0, 5] = 0.25
    return {**found, **changes}


def test_masks_of_cofi_are_cut_and_scale_a_block_with_its_bias(dense_folder):
    folder, dense = dense_folder
    masks = zs()
    torch.save(masks, folder / "zs.pt")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["CoFiBertForSequenceClassification"]}))
    source = copy.deepcopy(dense)
    for layer, own in enumerate(source.bert.encoder.layer):
        units = masks["intermediate_z"][layer].flatten()
        own.output.dense.register_forward_pre_hook(lambda _, args, units=units: (args[0] * units,))
        own.output.dense.register_forward_hook(lambda _m, _a, out, z=masks["mlp_z"][layer]: out * z)
        own.attention.output.dense.register_forward_hook(lambda _m, _a, out, z=masks["head_layer_z"][layer]: out * z)
    model = expect(folder, masked_by_hand(source, masks["head_z"].flatten(1)), allow_pickle=True)
    plan = plan_from_dense(model)
    assert plan.kept_heads == {SITES[0]: (0, 2, 3), SITES[1]: (0, 1, 2, 3)}
    assert [len(kept) for kept in plan.kept_ffn.values()] == [34, 64]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("zs.pt", {"hidden_z": torch.tensor([0.0] + 31 * [1.0])}, UnsupportedModelError, "hidden_z removes dimensions"),
        ("zs.pt", {"mlp_z": torch.tensor([1.0, 0.0])}, UnsupportedModelError, "CoFi then skips the layer norm"),
        ("zs.pt", {"head_z": torch.zeros(2, 4)}, UnsupportedModelError, "removes all of encoder.layer.0.attention"),
        ("zs.pt", {"emb_z": torch.ones(32)}, InvalidConfigError, r"unknown masks \['emb_z'\]"),
        ("zs.pt", {"head_z": torch.ones(12, 12)}, InvalidConfigError, "head_z must have 2 layers with 4 factors each"),
        ("head_mask.pt", torch.ones(4), InvalidConfigError, "head_z must have 2 layers with 4 factors each"),
        ("head_mask.pt", torch.full((2, 4), torch.nan), InvalidConfigError, "no finite numbers in layer 0"),
        ("head_mask.pt", [[1, 0]], InvalidConfigError, "it must hold a tensor"),
        ("head_mask.pt", torch.ones(2, 4), InvalidConfigError, "nothing is pruned in it"),
    ],
)
def test_masks_that_no_model_of_the_family_can_hold_are_refused(name, content, error, message, dense_folder):
    folder, _ = dense_folder
    torch.save(content, folder / name)
    with pytest.raises(error, match=message):
        migrate_checkpoint(folder, allow_pickle=True)


# --- what is refused before any weight is used -----------------------------------------------------------------------


def test_pickles_are_refused_unless_they_are_allowed(dense_folder, tmp_path_factory):
    folder, _ = dense_folder
    torch.save(torch.ones(2, 4), folder / "head_mask.pt")
    with pytest.raises(InvalidSettingError, match=r"head_mask\.pt: it is a pickle.*allow_pickle=True"):
        migrate_checkpoint(folder)
    other = tmp_path_factory.mktemp("textpruner")
    textpruner_folder(other)
    with pytest.raises(InvalidSettingError, match=r"pytorch_model\.bin: it is a pickle"):
        migrate_checkpoint(other)


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_an_allowed_pickle_is_read_as_weights_only(dense_folder, tmp_path):
    folder, _ = dense_folder
    torch.save(Harmful(tmp_path / "made"), folder / "head_mask.pt")
    with pytest.raises(InvalidSettingError, match="torch can't read it as weights only"):
        migrate_checkpoint(folder, allow_pickle=True)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"", "safetensors can't read it"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "safetensors can't read it"),
        ("model.safetensors.index.json", b"no JSON", "it must be JSON"),
        ("model.safetensors.index.json", b"[]", "weight_map must name the file of each tensor, received None"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "weight_map must name the file of each tensor"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "1-of-2"}}',
            r"it names \['1-of-2'\], and there are no",
        ),
        ("pytorch_model.bin", [torch.ones(1)], "received list. Save the model's state_dict"),
        ("pytorch_model.bin", {"a": torch.ones(1), "step": 3}, "received int as 'step'. Save the model's state_dict"),
    ],
)
def test_damaged_weights_are_refused_in_words(name, content, message, tmp_path):
    save_config(tmp_path, amplified(tiny_bert(num_labels=2)))
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(InvalidSettingError, match=message):
        migrate_checkpoint(tmp_path, allow_pickle=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 50}, "word_embeddings.weight has shape"),
        ({"num_hidden_layers": 1}, r"layer\.1\..* has weights, but no place in the configuration"),
        ({"hidden_act": "foo"}, "KeyError: .?'foo'"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ({"hidden_size": "32"}, "Transformers can't read its config.json"),
    ],
)
def test_a_configuration_of_another_model_is_refused_by_what_differs(changed, message, tmp_path):
    dense = amplified(tiny_bert(num_labels=2))
    save_config(tmp_path, dense, **changed)
    save_file(cut_heads_(weights_of(dense), "bert", HEADS), tmp_path / "model.safetensors")
    with pytest.raises(InvalidConfigError, match=message):
        migrate_checkpoint(tmp_path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InvalidConfigError, match=r"there is no config\.json"):
        migrate_checkpoint(tmp_path)
    save_config(tmp_path, amplified(tiny_bert(num_labels=2)))
    with pytest.raises(InvalidSettingError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        migrate_checkpoint(tmp_path)
    save_file({"bert.pooler.dense.bias": torch.zeros(32)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidConfigError, match="its weights lack"):
        migrate_checkpoint(tmp_path)
    save_config(tmp_path, amplified(tiny_bert(num_labels=2)), architectures=None)
    with pytest.raises(UnsupportedModelError, match=r"architectures in config\.json must name a model class"):
        migrate_checkpoint(tmp_path)


def test_a_head_of_the_task_that_is_missing_is_refused_and_not_made_up(tmp_path):
    dense = amplified(tiny_bert(num_labels=2))
    save_config(tmp_path, dense, pruned_heads=HEADS)
    weights = cut_heads_(weights_of(dense), "bert", HEADS)
    body = {name: it for name, it in weights.items() if not name.startswith("classifier")}
    save_file(body, tmp_path / "model.safetensors")
    with pytest.raises(InvalidConfigError, match=r"its weights lack \['classifier.bias', 'classifier.weight'\]"):
        migrate_checkpoint(tmp_path)


def test_weights_under_the_names_of_transformers_4_are_found(tmp_path):
    dense = TINY_FAMILIES["vit"].make()
    inputs = TINY_FAMILIES["vit"].inputs()
    with torch.no_grad():
        for layer, heads in HEADS.items():
            width = dense.config.hidden_size // dense.config.num_attention_heads
            columns = [column for head in heads for column in range(head * width, (head + 1) * width)]
            dense.vit.layers[layer].attention.o_proj.weight[:, columns] = 0.0
        expected = dense(**inputs).logits
    weights = cut_heads_(
        weights_of(dense),
        "",
        HEADS,
        site="vit.layers.{}.attention",
        names=("q_proj", "k_proj", "v_proj", "o_proj"),
    )
    earlier = {
        ".layers.": ".encoder.layer.",
        "attention.o_proj": "attention.output.dense",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for new, old in earlier.items():
        weights = {name.replace(new, old): it for name, it in weights.items()}
    assert "vit.encoder.layer.0.attention.attention.query.weight" in weights
    save_config(tmp_path, dense, pruned_heads=HEADS)
    save_file(weights, tmp_path / "model.safetensors")
    model = migrate_checkpoint(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
    assert len(plan_from_dense(model).kept_heads) == len(dense.vit.layers)


def test_heads_that_share_a_bias_of_all_heads_are_refused(tmp_path):
    dense = TINY_FAMILIES["mpnet"].make(num_labels=2)
    site, names = "mpnet.encoder.layer.{}.attention.attn", ("q", "k", "v", "o")
    save_config(tmp_path, dense, pruned_heads={1: [0]})
    cut = cut_heads_(weights_of(dense), "", {1: [0]}, site=site, names=names)
    save_file(cut, tmp_path / "model.safetensors")
    with pytest.raises(HeadPruneError, match="takes them of a bias that one layer makes"):
        migrate_checkpoint(tmp_path)
