"""What this machine has and can do, and what is wrong with the set-up: `gather` looks, `diagnose` judges."""

from minimoe.doctor.facts import gather
from minimoe.doctor.findings import Finding, diagnose

__all__ = ["Finding", "diagnose", "gather"]
