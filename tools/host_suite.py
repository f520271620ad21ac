"""Runs the host's own tests of models on the pruned classes of each family: `make test-host`.

The source distribution of the installed Transformers is downloaded from the package registry and its tests are unpacked
below `build/host`; none of them is committed. What is expected to fail is in `tests.host.expected`, with the reason;
what fails on the dense classes, too, is the host's. Anything else that fails ends the run with an error.

Run: python -m tools.host_suite [family ...] [--write]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from hf_headprune._compat import is_older_than
from hf_headprune.families import FAMILIES
from tests.host.expected import reason_for

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "host"
RESULTS = ROOT / "benchmarks" / "results" / "host_suite.json"
CASES = "tests/host/cases.py"
NEEDED = ("parameterized",)  # by the tests, and by nothing else here
MIXINS = {"exporters/test_export.py": "ExportTesterMixin", "generation/test_utils.py": "GenerationTesterMixin"}
SECONDS = 3600  # per family
logger = logging.getLogger("host_suite")


def unpacked() -> Path:
    """Downloads and unpacks the tests of the installed Transformers once; returns the folder to import them from."""
    version = metadata.version("transformers")
    folder = BUILD / version
    package = folder / "host_tests"
    if (package / "test_modeling_common.py").is_file():
        return folder
    package.mkdir(parents=True, exist_ok=True)
    _pip("download", "--no-binary", "transformers", "--dest", str(BUILD), f"transformers=={version}")
    with tarfile.open(BUILD / f"transformers-{version}.tar.gz") as archive:
        for member in archive.getmembers():
            path = Path(member.name)
            if path.suffix == ".py" and path.parts[1:-1] == ("tests",):
                (package / path.name).write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
    (package / "__init__.py").touch()
    for path, mixin in MIXINS.items():  # not in the source distribution; without them, their tests do not run
        (package / path).parent.mkdir(exist_ok=True)
        (package / path).write_text(f"class {mixin}:\n    pass\n", encoding="utf-8")
    _pip("install", "--target", str(folder), *NEEDED)
    return folder


def _pip(command: str, *arguments: str) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", command, *options, *arguments], check=True)


def outcomes(folder: Path, family: str, names: list[str] | None = None, *, dense: bool = False) -> dict[str, str]:
    """Runs the tests of a family, or some of them; returns for each "passed", "skipped", or how it failed."""
    case, report = f"{CASES}::Test_{family.replace('-', '_')}", BUILD / f"{family}{'-dense' if dense else ''}.xml"
    chosen = [case] if names is None else [f"{case}::{name}" for name in names]
    settings = ["-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider", "-q", "--tb=short"]
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "HEADPRUNE_HOST_CLASSES": "dense" if dense else "prunable"}
    command = [sys.executable, "-m", "pytest", *settings, f"--junitxml={report}", *chosen]
    with report.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=SECONDS, check=False)
    return read_outcomes(report)


def read_outcomes(report: Path) -> dict[str, str]:
    """Returns for each test in a JUnit report "passed", "skipped", or how it failed."""
    found: dict[str, str] = {}
    for test in ElementTree.parse(report).getroot().iter("testcase"):
        name = test.attrib["name"]
        failures = [*test.findall("failure"), *test.findall("error")]
        if failures:
            found[name] = failures[0].attrib.get("message", "").partition("\n")[0] or "failed"
        elif found.get(name, "skipped") == "skipped":  # a test and its subtests are listed one by one
            found[name] = "skipped" if test.find("skipped") is not None else "passed"
    return found


def summary(folder: Path, family: str) -> dict[str, object]:
    """Runs the tests of a family; returns how many passed and were skipped, and what failed, and why."""
    found = outcomes(folder, family)
    failed = {name: message for name, message in found.items() if message not in ("passed", "skipped")}
    expected = {name: reason for name in failed if (reason := reason_for(family, name)) is not None}
    unknown = [name for name in failed if name not in expected]
    on_dense = outcomes(folder, family, unknown, dense=True) if unknown else {}
    of_host = sorted(name for name in unknown if on_dense.get(name) not in ("passed", "skipped", None))
    return {
        "passed": sum(message == "passed" for message in found.values()),
        "skipped": sum(message == "skipped" for message in found.values()),
        "expected": dict(sorted(expected.items())),
        "fails on the dense class too": of_host,
        "unexpected": {name: failed[name][:300] for name in sorted(set(unknown) - set(of_host))},
    }


def main() -> int:
    """Runs the families that are named, or all; returns 1 if anything fails that is not expected to."""
    supported = [name for name, family in FAMILIES.items() if family.since is None or not is_older_than(family.since)]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("families", nargs="*", choices=[*supported, []], metavar="family")
    parser.add_argument("--write", action="store_true", help=f"keep what was found in {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, is_clean = unpacked(), True
    for family in arguments.families or supported:
        found = summary(folder, family)
        is_clean &= not found["unexpected"]
        logger.info("%s: %s", family, json.dumps(found, indent=2))
        if arguments.write:
            known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
            known = {"transformers": metadata.version("transformers"), "families": known.get("families", {})}
            known["families"][family] = found
            RESULTS.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
