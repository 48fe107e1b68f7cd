"""What a user can mend is one line on stderr."""

import contextlib
import os
import sys
from collections.abc import Iterator

from jaxscale.files.redact import one_line


def fail(message: str, code: int) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Ctrl-C inside ends the process, its message said: devices that still compute are not waited for."""
    try:
        yield
    except KeyboardInterrupt as error:
        code = fail(str(error) or "stopped", getattr(error, "code", 130))
        sys.stderr.flush()
        os._exit(code)
