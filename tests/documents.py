"""The commands that NVIDIA's documents give for MLPerf's HeteroMIG harness, word for word."""

import shlex

HETEROGENEOUS_MIG_MD = {
    "help": "python3 scripts/launch_heterogeneous_mig.py --help",
    "performance": r"""python3 scripts/launch_heterogeneous_mig.py \
    --main_action=run_harness --background_benchmarks=datacenter \
    --main_benchmark=ssd-resnet34 --main_scenario=server""",
    "accuracy": r'''python3 scripts/launch_heterogeneous_mig.py \
    --main_action=run_harness --background_benchmarks=datacenter \
    --main_benchmark=ssd-resnet34 --main_scenario=server \
    --main_benchmark_runargs="--test_mode=AccuracyOnly"''',
    "audit": r"""python3 scripts/launch_heterogeneous_mig.py \
    --main_action=run_audit_test01 --background_benchmarks=datacenter \
    --main_benchmark=ssd-resnet34 --main_scenario=server""",
}
"""closed/NVIDIA/documentation/heterogeneous_mig.md of mlcommons/inference_results_v1.1 at 912dcdb."""

LAUNCH_HETEROGENEOUS_MIG_MD = {
    "performance": "python3 ./scripts/launch_heterogeneous_mig.py --main_action=run_harness "
    "--background_benchmarks=datacenter --main_benchmark=ssd-resnet34 --main_scenario=server",
    "accuracy": "python3 ./scripts/launch_heterogeneous_mig.py --main_action=run_harness "
    "--background_benchmarks=datacenter --main_benchmark=ssd-resnet34 --main_scenario=server "
    '--main_benchmark_args="--test_mode=AccuracyOnly"',
    "audit": "python3 ./scripts/launch_heterogeneous_mig.py --main_action=run_audit_test01 "
    "--background_benchmarks=datacenter --main_benchmark=resnet50 --main_scenario=Offline",
}
"""closed/NVIDIA/scripts/launch_heterogeneous_mig.md of mlcommons/inference_results_v1.0 at cd4f7a9."""


def words_of(command: str) -> list[str]:
    """What the script gets: a shell's words, without ``python3 scripts/launch_heterogeneous_mig.py``."""
    return shlex.split(command.replace("\\\n", " "))[2:]
