"""Fingerprints of examples, leaks between splits, and the splits that are made for the user."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_headprune.errors import DataLeakError, InvalidSettingError
from hf_headprune.guarantee.examples import ExampleFingerprints, check_disjoint, normalised
from hf_headprune.guarantee.splits import SplitSettings, split_known, three_way_split


def sentences(count=200, first=0):
    return [{"idx": i, "sentence": f"Sentence number {i}", "label": i % 3 == 0} for i in range(first, first + count)]


def tokenized(count=20, first=0):
    return [
        {"input_ids": [5, 6, 7 + i], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(first, first + count)
    ]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("A  dog\tbarks ", "a DOG barks", True),
        ("ﬁne", "fine", True),
        ("Straße", "STRASSE", True),
        ("a dog barks", "a dog bark", False),
    ],
)
def test_normalisation_ignores_case_spacing_and_unicode_form(first, second, same):
    assert (normalised(first) == normalised(second)) == same


def test_the_fingerprint_of_a_split_has_no_order_and_includes_labels():
    rows = sentences()
    prints = ExampleFingerprints.of(rows)
    assert ExampleFingerprints.of(rows[::-1]).sha256() == prints.sha256()
    assert ExampleFingerprints.of(Dataset.from_list(rows)).sha256() == prints.sha256()
    assert ExampleFingerprints.of([{**rows[0], "label": not rows[0]["label"]}, *rows[1:]]).sha256() != prints.sha256()
    assert ExampleFingerprints.of([*rows, rows[0]]).sha256() != prints.sha256()
    assert [sorted(prints.keys)[i] for i in range(3)] == [prints.keys[i] for i in prints.order[:3]]


def images(count=12, seed=0):
    values = np.random.default_rng(seed).random((count, 3, 24, 24)).astype(np.float32)
    return [{"pixel_values": image, "labels": 0} for image in values]


def test_images_have_the_same_fingerprints_however_they_are_held():
    arrays = images()
    prints = ExampleFingerprints.of(arrays)
    assert len({*prints.kinds["content"]}) == len(arrays)
    held = (torch.from_numpy, np.ndarray.tolist, lambda image: image.astype(np.float64))
    for hold in held:
        rows = [{**row, "pixel_values": hold(row["pixel_values"])} for row in arrays]
        assert ExampleFingerprints.of(rows).kinds == prints.kinds
    other = [{**row, "pixel_values": row["pixel_values"].transpose(0, 2, 1)} for row in arrays]
    assert not ExampleFingerprints.of(other).shared_with(prints)
    halves = [{**row, "pixel_values": torch.from_numpy(row["pixel_values"]).bfloat16()} for row in arrays]
    assert len({*ExampleFingerprints.of(halves).kinds["content"]}) == len(arrays)


def test_many_numbers_need_not_be_written_to_be_compared(monkeypatch):
    written, dumps = [], json.dumps
    monkeypatch.setattr(
        json, "dumps", lambda content, **options: written.append(dumps(content, **options)) or written[-1]
    )
    ExampleFingerprints.of(images())
    assert max(map(len, written)) < 200


class Random:
    """A data set whose examples a transform draws."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {"pixel_values": torch.rand(3, 20, 20) if index % 2 else torch.ones(3, 20, 20), "labels": 0}


def test_what_differs_at_each_reading_is_no_example(caplog):
    with pytest.raises(InvalidSettingError, match="must be the same each time it is read"):
        ExampleFingerprints.of(Random())
    assert ExampleFingerprints.of_training(Random()) is None
    assert "CertificationData(train=...) names the training set without its random transform" in caplog.text
    assert ExampleFingerprints.of_training(images()) == ExampleFingerprints.of(images())


def test_numbers_of_examples_are_no_text():
    rows = [{**row, "idx": f"test-{row['idx']}", "pair_id": "7"} for row in sentences(3)]
    assert ExampleFingerprints.of(rows).columns == ("sentence",)
    assert ExampleFingerprints.of(rows, columns=("sentence", "idx")).columns == ("sentence", "idx")


def test_padding_is_seen_where_no_mask_marks_it():
    rows = [{"input_ids": [101, *range(5, 5 + length), 102]} for length in (1, 4, 5)]
    padded = [{"input_ids": [*row["input_ids"], *[0] * (7 - len(row["input_ids"]))]} for row in rows]
    assert ExampleFingerprints.of(padded).sha256() == ExampleFingerprints.of(rows).sha256()
    with pytest.raises(DataLeakError, match="received 3 of 3"):
        check_disjoint(ExampleFingerprints.of(padded), ExampleFingerprints.of(rows), name="search")


def test_one_example_that_ends_twice_in_a_separator_does_not_hide_copies_of_the_others():
    rows = [{"input_ids": [101, *range(5, 5 + length), 102]} for length in range(1, 6)]
    odd = {"input_ids": [101, 9, 102, 102]}
    prints = ExampleFingerprints.of([*rows, odd])
    assert prints.shared_with(ExampleFingerprints.of(rows)) == (0, 1, 2, 3, 4)
    assert ExampleFingerprints.of([*rows, {"input_ids": [101, 9, 102]}]).shared_with(prints) == (0, 1, 2, 3, 4)


def test_names_of_numbers_and_labels_are_known_in_every_spelling():
    row = {
        "sentence": "a b",
        "pairID": "17n",
        "promptId": "3",
        "gold_label": "good",
        "label_text": "x",
        "SourceGUID": "9",
    }
    assert ExampleFingerprints.of([row]).columns == ("sentence",)
    assert ExampleFingerprints.of([{"paid": "a", "label": 0, "labelled_by": "b"}]).columns == ("labelled_by", "paid")


def test_padding_and_tensors_do_not_change_token_fingerprints():
    plain = ExampleFingerprints.of([{"input_ids": [5, 6, 7], "labels": 1}])
    padded = {"input_ids": [5, 6, 7, 0], "attention_mask": [1, 1, 1, 0], "labels": 1}
    tensors = {name: torch.tensor(value) for name, value in padded.items()}
    arrays = {name: np.array(value) for name, value in padded.items()}
    assert all(ExampleFingerprints.of([one]).sha256() == plain.sha256() for one in (padded, tensors, arrays))
    assert ExampleFingerprints.of([{**padded, "attention_mask": [1, 1, 1, 1]}]).sha256() != plain.sha256()


def test_examples_without_tokens_and_texts_are_known_by_all_their_fields():
    images = [{"pixel_values": torch.full((2, 2), float(i)), "labels": 0} for i in range(4)]
    prints = ExampleFingerprints.of(images)
    assert prints.kind == "content"
    assert ExampleFingerprints.of([{**images[2], "labels": 1}]).shared_with(prints) == (0,)


def test_a_copy_is_found_though_case_label_and_place_differ():
    known = ExampleFingerprints.of(sentences())
    other = ExampleFingerprints.of([*sentences(5, first=500), {"sentence": " SENTENCE number 7", "label": 1}])
    assert other.shared_with(known) == (5,)
    assert ExampleFingerprints.of(sentences(5, first=500)).shared_with(known) == ()
    with pytest.raises(DataLeakError, match=r"certify: no example may be in the search split.*1 of 6.*\[5\]"):
        check_disjoint(other, known, name="search")


def test_texts_that_many_examples_have_in_common_do_not_name_them():
    def rows(first, name):
        return [{**row, "domain": f"{name} {i % 2}"} for i, row in enumerate(tokenized(40, first))]

    prints = ExampleFingerprints.of(rows(0, "mail"))
    assert set(prints.kinds) == {"input_ids"}
    check_disjoint(prints, ExampleFingerprints.of(rows(40, "mail")), name="train")
    with pytest.raises(DataLeakError, match=r"1 of 40 that are .*, alike in token ids"):
        check_disjoint(prints, ExampleFingerprints.of(rows(39, "news")), name="train")
    named = [ExampleFingerprints.of(rows(first, "mail"), columns=("domain",)) for first in (0, 40)]
    with pytest.raises(DataLeakError, match=r"40 of 40 that are .*, alike in columns of text \(domain\)"):
        check_disjoint(*named, name="train")
    windows = [{**row, "question": f"number {i // 4}"} for i, row in enumerate(tokenized(40))]
    assert set(ExampleFingerprints.of(windows).kinds) == {"input_ids", "text"}


def test_a_copy_is_found_by_tokens_where_the_texts_differ():
    train = [{**row, "sentence": "x"} for row in tokenized()]
    other = [{**row, "sentence": f"y{i}"} for i, row in enumerate(tokenized(3, first=19))]
    assert ExampleFingerprints.of(other).shared_with(ExampleFingerprints.of(train)) == (0,)


def test_splits_that_cannot_be_compared_are_an_error():
    with pytest.raises(DataLeakError, match="can be compared by token ids or by the same columns of text"):
        ExampleFingerprints.of(sentences()).shared_with(ExampleFingerprints.of(tokenized()))
    premises = [{"premise": "a", "label": 0}]
    with pytest.raises(DataLeakError, match="can be compared"):
        ExampleFingerprints.of(sentences()).shared_with(ExampleFingerprints.of(premises))


def test_contents_are_compared_without_numbers_of_examples_and_with_the_same_fields_only():
    images = [{"pixel_values": [i, i], "id": i, "labels": 0} for i in range(4)]
    known = ExampleFingerprints.of(images)
    assert known.columns == ("pixel_values",)
    assert ExampleFingerprints.of([{**images[2], "id": 77}]).shared_with(known) == (0,)
    with pytest.raises(DataLeakError, match=r"can be compared.*\['pixel_values', 'width'\] and .*\['pixel_values'\]"):
        ExampleFingerprints.of([{**images[2], "width": 2}]).shared_with(known)
    assert ExampleFingerprints.of([{"id": 1, "labels": 0}]).columns == ("id",)


def test_texts_in_columns_of_another_name_are_found_but_their_absence_is_no_comparison():
    train = ExampleFingerprints.of([{**row, "sentence": f"Text {i}"} for i, row in enumerate(tokenized())])
    other = [{**row, "text": f"text {i}"} for i, row in enumerate(tokenized(3, first=100))]  # tokenized in another way
    assert ExampleFingerprints.of(other).shared_with(train) == (0, 1, 2)
    new = ExampleFingerprints.of([{**row, "text": f"new {i}"} for i, row in enumerate(other)])
    assert new.shared_with(train) == ()
    assert new.compared_with(train) == ("input_ids",)
    assert new.compared_with(new) == ("input_ids", "text")
    assert new.compared_with(ExampleFingerprints.of(sentences())) == ()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([], "must hold examples, received an empty list"),
        *((it, "must be sized and indexable") for it in ("text", {"a": 1}, iter([1]))),
    ],
)
def test_only_sized_indexable_data_sets_are_read(wrong, words):
    with pytest.raises(InvalidSettingError, match=words):
        ExampleFingerprints.of(wrong)


def test_examples_that_lack_a_column_are_named():
    with pytest.raises(InvalidSettingError, match="example 2 has no column 'sentence'"):
        ExampleFingerprints.of([*sentences(2), {"label": 0}])


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_both_sides_hold_every_example_once_with_like_shares_of_labels(kind):
    rows = sentences(300)
    split = three_way_split(kind(rows))
    assert sorted(split.search_indices + split.certify_indices) == list(range(300))
    assert all(list(side) == sorted(side) for side in (split.search_indices, split.certify_indices))
    assert [split.certify[i]["sentence"] for i in range(3)] == [rows[i]["sentence"] for i in split.certify_indices[:3]]
    assert len(split.certify) == pytest.approx(150, abs=1)
    shares = [np.mean([row["label"] for row in side]) for side in (split.search, split.certify)]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)


@pytest.mark.parametrize("group_column", [None, "pair"])
def test_a_split_depends_on_its_seed_and_not_on_the_order_of_the_examples(group_column):
    rows, settings = [{**row, "pair": row["idx"] // 2} for row in sentences()], SplitSettings(group_column=group_column)
    first = {row["idx"] for row in three_way_split(rows, settings=settings).certify}
    assert {row["idx"] for row in three_way_split(rows[::-1], settings=settings).certify} == first
    other = {row["idx"] for row in three_way_split(rows, settings=replace(settings, seed=1)).certify}
    assert 30 < len(first & other) < 70  # of 100, half of which meet again by chance


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_the_share_is_kept(share):
    assert len(three_way_split(sentences(), settings=SplitSettings(certify_share=share)).certify) == pytest.approx(
        200 * share, abs=2
    )


def test_labels_that_all_differ_still_make_two_sides_that_the_seed_decides():
    rows = [{"sentence": f"sentence {i}", "label": i / 100} for i in range(100)]
    split, other = three_way_split(rows), three_way_split(rows, settings=SplitSettings(seed=1))
    assert len(split.certify) == len(other.certify) == 50
    assert split.certify_indices != other.certify_indices


def test_copies_stay_on_one_side():
    rows = sentences(60)
    copies = [{**row, "sentence": row["sentence"].upper() + " ", "label": True} for row in rows]
    split = three_way_split([*rows, *copies])
    sides = [{normalised(row["sentence"]) for row in side} for side in (split.search, split.certify)]
    assert sides[0].isdisjoint(sides[1])
    assert len(split.search_indices) == pytest.approx(60, abs=1)


def test_groups_stay_on_one_side():
    rows = [{**row, "paragraph": i // 5} for i, row in enumerate(sentences())]
    split = three_way_split(rows, settings=SplitSettings(group_column="paragraph"))
    assert {row["paragraph"] for row in split.search}.isdisjoint({row["paragraph"] for row in split.certify})


def test_copies_by_any_way_of_comparing_stay_on_one_side():
    pairs = [(3 * i, 2 * i) for i in range(20)], [(3 * i + 1, 2 * i + 1) for i in range(20)]
    links = [(3 * i, 2 * i + 1) for i in range(20)]  # the tokens of the first, the text of the second
    rows = [
        {"input_ids": [5, t], "sentence": f"sentence {s}", "label": s % 3} for t, s in (*pairs[0], *pairs[1], *links)
    ]
    split = three_way_split(rows)
    assert {i % 20 for i in split.search_indices}.isdisjoint(i % 20 for i in split.certify_indices)
    assert len(split.certify) == 30


def test_texts_are_compared_by_the_columns_that_are_named():
    rows = [{**row, "note": f"note {i}"} for i, row in enumerate([*sentences(40), *sentences(40)])]
    prints, train = (
        ExampleFingerprints.of(examples, columns=["sentence"]) for examples in (rows, [{**rows[3], "note": "other"}])
    )
    split = split_known(rows, prints, train, SplitSettings(on_leak="drop"))
    assert split.leaked_indices == (3, 43)
    assert {i % 40 for i in split.search_indices}.isdisjoint(i % 40 for i in split.certify_indices)


def test_a_leaked_example_takes_its_group_along():
    rows = [{**row, "paragraph": i // 5} for i, row in enumerate(sentences())]
    split = three_way_split(rows, rows[7:8], SplitSettings(group_column="paragraph", on_leak="drop"))
    assert split.leaked_indices == (5, 6, 7, 8, 9)
    assert sorted(split.search_indices + split.certify_indices) == [i for i in range(200) if i // 5 != 1]


@pytest.mark.parametrize("nothing", [None, float("nan")], ids=["none", "nan"])
def test_examples_without_a_group_are_named_rather_than_put_together(nothing):
    rows = [{**row, "paragraph": "one"} for row in sentences(3)] + [{**sentences(4)[3], "paragraph": nothing}]
    with pytest.raises(
        InvalidSettingError, match=rf"group in the column 'paragraph', received {nothing} for example 3"
    ):
        three_way_split(rows, settings=SplitSettings(group_column="paragraph"))


def test_examples_without_the_column_of_groups_are_named():
    rows = [{**row, "paragraph": 0} for row in sentences(3)]
    with pytest.raises(InvalidSettingError, match=r"group_column=.*column 'paragraph', .*'sentence'\] for example 3"):
        three_way_split([*rows, *sentences(2)], settings=SplitSettings(group_column="paragraph"))


def test_examples_of_the_training_split_are_an_error_or_left_out_when_told_so():
    rows, train = sentences(), [{"sentence": f"sentence NUMBER {i}", "label": 0} for i in (3, 8, 999)]
    with pytest.raises(DataLeakError, match=r"2 of 200 that are \(indices \[3, 8\]\)"):
        three_way_split(rows, train)
    split = three_way_split(rows, train, SplitSettings(on_leak="drop"))
    assert split.leaked_indices == (3, 8)
    assert not {3, 8} & set(split.search_indices + split.certify_indices)
    assert three_way_split(rows, ExampleFingerprints.of(sentences(5, first=900))).leaked_indices == ()


def test_a_data_set_too_small_for_two_sides_is_refused():
    with pytest.raises(InvalidSettingError, match="both sides need examples, received 1 different"):
        three_way_split([*sentences(1), *sentences(1)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"certify_share": 0.0},
        {"certify_share": 1},
        {"on_leak": "ignore"},
        {"seed": -1},
        {"group_column": 3},
    ],
)
def test_impossible_split_settings_are_refused(wrong):
    with pytest.raises(InvalidSettingError, match=f"SplitSettings: {next(iter(wrong))} must be"):
        SplitSettings(**wrong)
