"""The demonstration: from the bundled Tideos to answers about a real video, and a report."""

from topa.demo.run import run_demo

__all__ = ["run_demo"]
