"""The verbs of `jaxscale`: a file each, registered by being here (`app`)."""


def main() -> None:
    """Run the verb that the command line names."""
    from jaxscale.cli.app import main as run

    run()
