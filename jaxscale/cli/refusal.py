"""What a user can mend is one line on stderr."""

import sys

from jaxscale.files.redact import one_line


def fail(message: str, code: int) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code
