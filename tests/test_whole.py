"""Files that are whole or not there, and places that cannot be written, known before."""

import os
import stat

import pytest

from jaxscale.files.whole import require_directory, require_file, write_whole


def test_a_file_is_replaced_whole_with_the_usual_rights(tmp_path):
    path = tmp_path / "a.txt"
    assert write_whole(path, "caf\u00e9\n") == path
    assert path.read_bytes() == b"caf\xc3\xa9\n"
    (tmp_path / "usual").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    write_whole(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "usual"]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("as it was")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "a", "new")
    assert (tmp_path / "precious").read_text() == "as it was"
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_what_was_there(tmp_path, monkeypatch, error):
    def fails(*_):
        raise error

    path = write_whole(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(type(error)):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_refused_before(tmp_path):
    require_file(None, tmp_path / "new")
    require_directory(tmp_path / "a" / "b", said="x", fix="y")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere" / "a"):
        with pytest.raises(ValueError, match="give -o a file in a directory that exists and can be written"):
            require_file(path, give="give -o")
    with pytest.raises(ValueError, match=r"cannot write to --png: Not a directory; choose another"):
        require_directory(tmp_path / "file" / "a", said="--png", fix="choose another")
