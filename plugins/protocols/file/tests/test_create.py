"""Creating files: new ones, over old ones, and leaving things alone when it does not come to an end."""

import os
from pathlib import Path

import pytest

from diskwright.errors import InvalidOption, LockConflict, NodeIOError
from diskwright.hookspecs import ProtocolOptions
from diskwright.node import Permission
from diskwright_file import create as create_module
from diskwright_file.create import OverwrittenFile, create
from diskwright_file.node import FileNode
from diskwright_file.plugin import FileDriver

WRITABLE = ProtocolOptions(writable=True)


def created(path: Path | str, **values: object) -> OverwrittenFile:
    node = create(str(path), ProtocolOptions(writable=True, values=values))
    assert isinstance(node, OverwrittenFile)
    return node


def test_new_file(tmp_path: Path) -> None:
    path = tmp_path / "new"
    os.umask(umask := os.umask(0o022))
    node = created(path, nocow=True, extent_size_hint=1 << 20)
    node.write_at(0, b"image")
    node.commit()
    node.close()
    assert path.read_bytes() == b"image"
    assert path.stat().st_mode & 0o777 == 0o644 & ~umask


@pytest.mark.parametrize("how", ["abandon", "close"])
def test_new_file_that_is_not_committed_is_removed(tmp_path: Path, how: str) -> None:
    node = created(tmp_path / "new")
    node.write_at(0, b"half")
    getattr(node, how)()
    assert os.listdir(tmp_path) == []


def test_abandoning_spares_a_file_that_took_the_name_meanwhile(tmp_path: Path) -> None:
    path, other = tmp_path / "new", tmp_path / "other"
    node = created(path)
    other.write_bytes(b"other")
    other.replace(path)
    node.abandon()
    assert path.read_bytes() == b"other"


def test_old_file_stands_until_commit(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old content")
    path.chmod(0o640)
    node = created(path)
    node.write_at(0, b"new")
    assert path.read_bytes() == b"old content"
    assert node.size == 3
    node.commit()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    node.write_at(3, b"!")
    node.close()
    assert path.read_bytes() == b"new!"
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("how", ["abandon", "close"])
def test_old_file_survives_what_is_not_committed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old content")
    node = created(path)
    node.write_at(0, b"new")
    getattr(node, how)()
    assert path.read_bytes() == b"old content"
    assert os.listdir(tmp_path) == ["old"]


def test_extended_attributes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.origin", b"here")
    except OSError:
        pytest.skip("the file system has no user attributes")
    node = created(path)
    node.commit()
    node.close()
    assert os.getxattr(path, "user.origin") == b"here"


def test_links_are_followed(tmp_path: Path) -> None:
    path, link, dangling = tmp_path / "old", tmp_path / "link", tmp_path / "dangling"
    path.write_bytes(b"old")
    link.symlink_to("old")
    dangling.symlink_to("fresh")
    for name in (link, dangling):
        node = created(name)
        node.write_at(0, b"new")
        node.commit()
        node.close()
        assert name.is_symlink()
    assert path.read_bytes() == b"new"
    assert (tmp_path / "fresh").read_bytes() == b"new"


def test_file_with_several_names_is_overwritten_in_place(tmp_path: Path) -> None:
    path, second = tmp_path / "old", tmp_path / "second"
    path.write_bytes(b"old content")
    second.hardlink_to(path)
    node = created(path)
    node.write_at(0, b"new")
    node.commit()
    node.close()
    assert second.read_bytes() == b"new"
    assert path.stat().st_nlink == 2


def test_mount_point_is_overwritten_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_module, "_is_mount_point", lambda _: True)
    path = tmp_path / "old"
    path.write_bytes(b"old content")
    inode = path.stat().st_ino
    node = created(path)
    node.write_at(0, b"new")
    node.commit()
    node.close()
    assert (path.read_bytes(), path.stat().st_ino) == (b"new", inode)


def test_empty_file_is_used_in_place_and_left_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch(0o600)
    inode = path.stat().st_ino
    node = created(path)
    node.write_at(0, b"half")
    node.abandon()
    assert (path.read_bytes(), path.stat().st_ino) == (b"", inode)


def test_file_in_use_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "old"
    for content in (b"", b"old"):
        path.write_bytes(content)
        user = FileDriver().open(str(path), ProtocolOptions())
        assert isinstance(user, FileNode)
        user.set_permissions(Permission.CONSISTENT_READ, Permission.ALL & ~(Permission.WRITE | Permission.RESIZE))
        with pytest.raises(LockConflict, match='^Failed to get "write" lock$') as caught:
            created(path)
        assert caught.value.hint == f"Is another process using the image [{path}]?"
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["old"]
        user.close()


def test_old_file_stays_locked_until_commit(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    node = created(path)
    with pytest.raises(LockConflict, match='^Failed to get "resize" lock$'):
        created(path)
    node.abandon()
    assert path.read_bytes() == b"old"


def test_names_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(NodeIOError, match="^Could not create '.*/no/x': No such file or directory$"):
        created(tmp_path / "no" / "x")
    with pytest.raises(NodeIOError, match="^Could not create"):
        created("a\0b")
    with pytest.raises(NodeIOError, match="File name too long$"):
        created(tmp_path / ("x" * 300))
    with pytest.raises(NodeIOError, match="Is a directory$"):
        created(tmp_path)
    with pytest.raises(NodeIOError, match="^Could not create '': No such file or directory$"):
        created("")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(InvalidOption, match="to be a regular file$"):
        created(fifo)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(NodeIOError, match="^Could not create '.*': Permission denied$"):
        created(path)


def test_long_names_are_replaced_too(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    path.write_bytes(b"old")
    node = created(path)
    node.commit()
    node.close()
    assert path.read_bytes() == b""
