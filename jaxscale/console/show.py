"""What `show` prints."""

from pathlib import Path

from rich.markup import escape

from jaxscale import config as cfg
from jaxscale.console.tables import make_console, make_table, tell
from jaxscale.predict.costs import active_parameters, parameter_counts


def show_config(config: cfg.Config, num_devices: int | None) -> None:
    from jaxscale.training.layout import parameter_layout

    mesh_text, rows = parameter_layout(config, num_devices)  # first, as it may refuse
    console = make_console()
    tell(console, cfg.dump_config(config))
    counts = parameter_counts(config.model)
    table = make_table("Parameters, without vocabulary padding", "part", "parameters", "share")
    for part, number in counts.items():
        if number:
            table.add_row(part, f"{number:,}", f"{number / sum(counts.values()):.1%}")
    table.add_row("all", f"{sum(counts.values()):,}", "100%", style="bold")
    if config.model.moe:
        active = active_parameters(config.model)
        table.add_row("active for a token", f"{active:,}", f"{active / sum(counts.values()):.1%}")
    console.print(table)
    columns = ["<parameter", "<logical axes", "<PartitionSpec", "<global\nshape", "global\nbytes", "<shape\na device",
               "bytes\na device"]  # fmt: skip
    spare = ("global\nbytes", "logical axes", "global\nshape")
    table = make_table(f"Every parameter on {mesh_text}", *columns, spare=spare)
    for row in rows:
        table.add_row(
            row.name,
            ", ".join(row.axes),
            row.spec,
            shape_text(row.shape),
            f"{row.bytes:,}",
            shape_text(row.device_shape),
            f"{row.device_bytes:,}",
        )
    table.add_row(
        "all", "", "", "", f"{sum(r.bytes for r in rows):,}", "", f"{sum(r.device_bytes for r in rows):,}", style="bold"
    )
    if num_devices is None and -1 in config.mesh.model_dump().values() and len(rows):
        tell(
            console,
            "An axis of the mesh is -1 (the devices that are left), taken as 1 here; --devices N says how many.",
        )
    console.print(table)


def show_fields(directory: str) -> None:
    """What each field of a published config.json became."""
    published = cfg.read_published(Path(directory))
    table = make_table(f"{directory} is of the family {published.family}", "config.json", "<value", "<here")
    for key, value, ours in published.fields:
        table.add_row(escape(key), escape(str(value)), escape(ours))
    make_console().print(table)


def shape_text(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape)) or "scalar"
