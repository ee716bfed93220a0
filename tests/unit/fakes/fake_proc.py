"""A folder that looks like /proc, as far as the daemon reads it."""

from collections.abc import Sequence
from pathlib import Path

from optpolined.qemu.proc import Proc

__all__ = ("FakeProc",)

_HEADING = "Num       RefCount Protocol Flags    Type St Inode Path\n"


class FakeProc:
    """Processes and unix sockets in files below ``root``."""

    def __init__(self, root: Path) -> None:
        self.proc = Proc(root)
        self._root = root
        (root / "net").mkdir()
        (root / "net/unix").write_text(_HEADING)
        (root / "self").mkdir()

    def add_process(
        self,
        pid: int,
        name: str,
        *,
        program: str = "/usr/bin/program",
        state: str = "S",
        start_time: int = 1000,
        maps: Sequence[str] = (),
        inodes: Sequence[int] = (),
    ) -> None:
        """Add a process.

        :param maps: Lines of its maps file.
        :param inodes: Of the sockets that it has open, from file descriptor 3 on.
        """
        folder = self._root / str(pid)
        (folder / "fd").mkdir(parents=True)
        fields = [state, *["0"] * 18, str(start_time), "0"]
        (folder / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
        (folder / "comm").write_text(f"{name}\n")
        (folder / "exe").symlink_to(program)
        (folder / "maps").write_text("".join(f"{line}\n" for line in maps))
        (folder / "fd/0").symlink_to("/dev/null")
        for descriptor, inode in enumerate(inodes, 3):
            (folder / f"fd/{descriptor}").symlink_to(f"socket:[{inode}]")

    def add_socket(self, path: Path | str, inode: int, *, listens: bool = True) -> None:
        """Add a unix socket that is bound to ``path``."""
        flags, state = (0x10000, 1) if listens else (0, 3)
        with (self._root / "net/unix").open("a") as sockets:
            sockets.write(f"0000000000000000: 00000002 00000000 {flags:08X} 0001 {state:02X} ")
            sockets.write(f"{inode:5} {path}\n")
