"""Kafka's own tools (org.apache.kafka:kafka-tools, from Maven Central), for bench-kafka and conformance."""

import pathlib
import shutil
import subprocess
import sys

POM = pathlib.Path(__file__).resolve().parent / "kafka_clients" / "tools.xml"


def need(tool):
    if not shutil.which(tool):
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {tool} is not installed")


def tools(target):
    """Where the jars are: under the build's folder; fetched if they are not there."""
    folder = target / "kafka-clients" / "tools"
    if not (folder / "lib").exists():
        need("mvn")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(POM, folder / "pom.xml")
        subprocess.run(["mvn", "-q", "dependency:copy-dependencies", "-DoutputDirectory=lib"], cwd=folder, check=True)
    return folder / "lib"
