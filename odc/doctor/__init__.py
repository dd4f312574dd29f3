"""Whether this machine, a folder or a config will do, before hours of work: a line each, with the remedy."""

from odc.doctor.findings import Finding, told
from odc.doctor.machine import look_at_machine
from odc.doctor.plans import look_at

__all__ = ["Finding", "look_at", "look_at_machine", "told"]
