"""``version``: what is installed here, for people who ask for help."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path

import click

from rearkit.cli.examples import Command

# Besides those that every report names.
PACKAGES = ("torchvision", "numpy", "click", "rich", "safetensors", "webdataset", "mlxtend", "wandb")


@click.command(cls=Command, example="version --verbose")
@click.option(
    "--verbose", is_flag=True, help="Versions, device and providers of components, as issues should have them."
)
def version(verbose: bool) -> None:
    """Show rearkit's version, and with --verbose what else matters for its results on this machine."""
    import rearkit
    from rearkit.system.versions import package_versions, versions

    click.echo(f"rearkit {package_versions()['rearkit']}")
    if not verbose:
        return
    click.echo(f"installed in: {Path(rearkit.__file__).parent}")
    for name, value in (versions() | package_versions(*PACKAGES)).items():
        if name != "rearkit":
            click.echo(f"{name}: {value}")
    for line in [*_device_lines(), *_component_lines()]:
        click.echo(line)


def _device_lines() -> list[str]:
    """Describe the processors and accelerators that torch would use."""
    import torch

    lines = [f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"]
    if not torch.cuda.is_available():
        return [*lines, f"CUDA: no device (torch is built for {torch.version.cuda or 'CPUs'})"]
    lines.append(f"CUDA: {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        lines.append(f"CUDA device {number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return lines


def _component_lines() -> list[str]:
    """List the components of each provider, then the plugins that failed to load."""
    from rearkit.registry.plugins import load_plugins

    plugins = load_plugins()
    found = sorted(plugins.registry.all(), key=lambda component: (component.provider, component.kind, component.name))
    lines = [
        f"components of {provider}: {', '.join(f'{component.kind} {component.name}' for component in group)}"
        for provider, group in groupby(found, key=lambda component: component.provider)
    ]
    lines += [
        f"{component.kind} {component.name} of {component.provider}: also provided by {' and '.join(rivals)}"
        for component in found
        if (rivals := plugins.registry.rivals(component))
    ]
    return lines + [f"failed to load: {plugin.provider}: {plugin.reason}" for plugin in plugins.broken]
