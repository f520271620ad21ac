"""The output folder: nothing in it is lost, and nothing in it is half written."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

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


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    with pytest.raises(InvalidSettingError, match=r"it is a mount point.* Name a folder in it, such as .*/model\."):
        OutputFolder(tmp_path, overwrite=True).check([])
    OutputFolder(tmp_path / "model").check([])


def test_what_can_not_be_put_in_its_place_is_kept_beside_it(tmp_path, monkeypatch):
    output, rename = OutputFolder(fill(tmp_path / "model"), overwrite=True), Path.rename

    def busy(self, target):
        if self == tmp_path / "model":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)

    def written():
        with output.staged() as folder:
            fill(folder, "new")

    with pytest.raises(InvalidSettingError, match="it can't be replaced: Device or resource busy") as problem:
        written()
    kept = Path(str(problem.value).rsplit("What was made is in ", 1)[1].rstrip("."))
    assert (kept / "config.json").read_text() == "new"
    assert contents(tmp_path) == sorted(["model", "model/config.json", kept.name, f"{kept.name}/config.json"])


def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path, monkeypatch):
    output = OutputFolder(tmp_path / "model")

    def full():
        with output.staged() as folder:
            fill(folder, "new")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InvalidSettingError, match=r"/model: it can't be written: .*No space left.* MB are free in"):
        full()
    assert contents(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    output.check_space(1_999_999)
    with pytest.raises(InvalidSettingError, match=r"the model has 3\.0 MB\. 2\.0 MB are free in"):
        output.check_space(3_000_000)


def test_a_model_that_a_killed_run_has_hidden_is_named(tmp_path):
    hidden = fill(tmp_path / ".model.0123abcd.replaced")
    with pytest.raises(InvalidSettingError, match=f"What was there is in {hidden}"):
        OutputFolder(tmp_path / "model", overwrite=True).check([])
    OutputFolder(tmp_path / "mode").check([])
