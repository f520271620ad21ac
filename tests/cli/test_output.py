"""The output folder: nothing in it is lost, and nothing in it is half written."""

from __future__ import annotations

import pytest

from hf_headprune.cli.output import OutputFolder
from hf_headprune.errors import InvalidSettingError


def fill(folder, text="old"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
    return folder


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["new", "new/below/it", "empty"])
def test_a_folder_is_there_whole_or_not_at_all(tmp_path, name):
    (tmp_path / "empty").mkdir()
    output = OutputFolder(tmp_path / name)
    output.check([])
    before = contents(tmp_path)

    def broken():
        with output.staged() as folder:
            fill(folder)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert contents(tmp_path) == before
    with output.staged() as folder:
        fill(folder, "new")
        assert not (tmp_path / name / "config.json").exists()
    assert (tmp_path / name / "config.json").read_text() == "new"
    assert not [path for path in contents(tmp_path) if "partial" in path]


def test_overwriting_replaces_the_model_and_its_old_files(tmp_path):
    (fill(tmp_path / "model") / "old.bin").touch()
    with pytest.raises(InvalidSettingError, match=r"not empty. Choose another, or pass --overwrite"):
        OutputFolder(tmp_path / "model").check([])
    output = OutputFolder(tmp_path / "model", overwrite=True)
    output.check([])
    with output.staged() as folder:
        fill(folder, "new")
    assert contents(tmp_path) == ["model", "model/config.json"]
    assert (tmp_path / "model" / "config.json").read_text() == "new"


def test_what_comes_into_the_folder_meanwhile_stays_and_the_result_lies_beside_it(tmp_path):
    output = OutputFolder(tmp_path / "model")
    output.check([])

    def late():
        with output.staged() as folder:
            fill(folder, "new")
            fill(tmp_path / "model", "of another command")

    with pytest.raises(
        InvalidSettingError, match=r"something was written there meanwhile, and stays\. What was made is in"
    ):
        late()
    texts = {(tmp_path / path).read_text() for path in contents(tmp_path) if path.endswith("config.json")}
    assert texts == {"new", "of another command"}
    assert (tmp_path / "model" / "config.json").read_text() == "of another command"


def test_overwriting_spares_what_is_no_model_and_what_is_read(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(InvalidSettingError, match=r"this one has no config\.json"):
        OutputFolder(tmp_path / "home", overwrite=True).check([])
    dense = fill(tmp_path / "all" / "dense")
    fill(tmp_path / "all")
    for folder in (dense, tmp_path / "all"):
        with pytest.raises(InvalidSettingError, match="is read from there"):
            OutputFolder(folder, overwrite=True).check([str(dense), "bert-base-uncased"])
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettingError, match="there is a file of that name"):
        OutputFolder(tmp_path / "file", overwrite=True).check([])
