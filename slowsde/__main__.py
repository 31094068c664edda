"""`python -m slowsde demo [folder]` and `python -m slowsde info`."""

import argparse
import importlib.metadata
import platform

import jax


def info() -> str:
    """Versions, devices and precision."""
    packages = ("slowsde", "jax", "jaxlib", "diffrax", "equinox", "lineax", "optimistix", "numpy", "scipy", "sympy")
    lines = [f"python      {platform.python_version()} on {platform.platform()}"]
    for name in packages:
        try:
            lines.append(f"{name:<12}{importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name:<12}not installed")
    lines += [f"device      {device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]
    flag = "on" if jax.config.read("jax_enable_x64") else "off"
    lines.append(
        f"precision   float64 by default in slowsde (JAX's own 64-bit flag is {flag}); dtype='float32' on request"
    )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m slowsde", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="two pieces of real work with tables and figures, in about two minutes")
    demo.add_argument("folder", nargs="?", default="slowsde-demo", help="where the figures go")
    commands.add_parser("info", help="versions, devices, precision")
    arguments = parser.parse_args()
    if arguments.command == "info":
        print(info())
        return
    from .demo import run

    run(arguments.folder)


if __name__ == "__main__":
    main()
