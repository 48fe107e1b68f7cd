"""The verbs of `jaxscale`: a file each, registered by being here."""

from jaxscale.cli.app import app, fail, main

__all__ = ["app", "fail", "main"]
