"""Where a soak runs: a small disk that can be full, and hosts whose link can be cut."""

import os
import shutil
import subprocess
from pathlib import Path

PROBLEM = (OSError, subprocess.SubprocessError)


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=20)


class Disk:
    """A tmpfs of a few MB; raises PROBLEM where none may be mounted."""

    def __init__(self, path: Path, megabytes: int = 32):
        path.mkdir(parents=True)
        command("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path))
        self.path, self.filler = path, path / "filler"

    def fill(self, leave: int) -> None:
        size = shutil.disk_usage(self.path).free - leave
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))

    def make_room(self) -> None:
        self.filler.unlink(missing_ok=True)

    def close(self) -> None:
        command("umount", "-l", str(self.path))


class Hosts:
    """Two hosts, each a network namespace, with one link between them; raises PROBLEM where none may be made."""

    ADDRESSES = ("10.77.0.1", "10.77.0.2")

    def __init__(self, folder: Path):
        self.names = [f"jx{os.getpid()}{side}" for side in "ab"]
        self.files = [folder / f"hosts-{name}" for name in self.names]
        try:
            for name in self.names:
                command("ip", "netns", "add", name)
            a, b = self.names
            command("ip", "link", "add", f"{a}v", "netns", a, "type", "veth", "peer", "name", f"{b}v", "netns", b)
            for name, address, file in zip(self.names, self.ADDRESSES, self.files, strict=True):
                command("ip", "-n", name, "address", "add", f"{address}/24", "dev", f"{name}v")
                command("ip", "-n", name, "link", "set", "lo", "up")
                file.write_text(f"127.0.0.1 localhost\n{address} {os.uname().nodename}\n")
            self.set_link("up")
        except PROBLEM:
            self.close()
            raise

    def set_link(self, state: str) -> None:
        for name in self.names:
            command("ip", "-n", name, "link", "set", f"{name}v", state)

    def wrap(self, rank: int) -> list[str]:
        """A command that starts another one on the host of this process, whose name is the host's own address."""
        own = f'mount --bind {self.files[rank]} /etc/hosts && exec "$@"'
        return ["ip", "netns", "exec", self.names[rank], "sh", "-c", own, "sh"]

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)
