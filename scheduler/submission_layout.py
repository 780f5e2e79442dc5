"""Where the files of a submission to an MLPerf round are, and what they are called. Pure.

From the round's submission checker, as submission_rules.py; v6.x has measurements and compliance among the results.
"""

from dataclasses import dataclass
from typing import Literal

from scheduler.spec import RoundName
from workloads.protocol import Scenario

Division = Literal["closed", "open"]
Target = Literal["99", "99.9"]

SUMMARY, DETAIL, ACCURACY = "mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json"
ACCURACY_TEXT = "accuracy.txt"
MOST_ACCURACY_LOG_BYTES = 10 * 1024
VIEWABLE_BYTES = 4096
"""What truncate_accuracy_log.py leaves of an accuracy log: so much of its beginning and of its end."""
TOLD_FIELDS = (
    "division",
    "submitter",
    "status",
    "system_name",
    "system_type",
    "number_of_nodes",
    "host_processor_model_name",
    "host_processors_per_node",
    "host_processor_core_count",
    "host_memory_capacity",
    "host_storage_capacity",
    "host_storage_type",
    "accelerators_per_node",
    "accelerator_model_name",
    "accelerator_memory_capacity",
    "framework",
    "operating_system",
)
"""Fields of a system's description that must say something; those of an accelerator may be empty without one."""
FIELDS = (
    *TOLD_FIELDS,
    "other_software_stack",
    "host_processor_frequency",
    "host_processor_caches",
    "host_memory_configuration",
    "host_processor_interconnect",
    "host_networking",
    "host_networking_topology",
    "accelerator_frequency",
    "accelerator_host_interconnect",
    "accelerator_interconnect",
    "accelerator_interconnect_topology",
    "accelerator_memory_configuration",
    "accelerator_on-chip_memories",
    "cooling",
    "hw_notes",
    "sw_notes",
)
FIELDS_SINCE_V4 = ("host_network_card_count", "system_type_detail")
REHEARSAL = "NOT-FOR-SUBMISSION.md"
"""At the tree's root: it is none of MLPerf's files, and says what the tree is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one benchmark's files are."""

    round: RoundName
    division: Division
    submitter: str
    system: str
    model: str
    """As the round calls it: ``resnet``, ``bert-99`` …"""
    scenario: Scenario
    implementation: str = "hetero-mig"

    @property
    def base(self) -> str:
        return f"{self.division}/{self.submitter}"

    @property
    def _below(self) -> str:
        return f"{self.system}/{self.model}/{self.scenario}"

    @property
    def results(self) -> str:
        return f"{self.base}/results/{self._below}"

    @property
    def measurements(self) -> str:
        return self.results if flat(self.round) else f"{self.base}/measurements/{self._below}"

    @property
    def description(self) -> str:
        """The JSON that tells how it was measured."""
        name = "measurements" if flat(self.round) else f"{self.system}_{self.implementation}_{self.scenario}"
        return f"{self.measurements}/{name}.json"

    @property
    def compliance(self) -> str:
        return self.results if flat(self.round) else f"{self.base}/compliance/{self._below}"

    @property
    def code(self) -> str:
        return (
            f"{self.base}/src/{self.model}/README.md"
            if flat(self.round)
            else f"{self.base}/code/{self.model}/{self.implementation}/README.md"
        )

    @property
    def calibration(self) -> str:
        return (
            f"{self.base}/documentation/calibration.md" if flat(self.round) else f"{self.base}/calibration.md"
        )

    @property
    def system_description(self) -> str:
        return f"{self.base}/systems/{self.system}.json"


def flat(round_: RoundName) -> bool:
    """Whether measurements and compliance stand among the results, as they do since v6.0."""
    return round_ == "v6.1"


def measurement_files(round_: RoundName) -> tuple[str, ...]:
    """Beside the description."""
    return ("user.conf", "README.md") if flat(round_) else ("mlperf.conf", "user.conf", "README.md")
